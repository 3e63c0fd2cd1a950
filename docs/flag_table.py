#!/usr/bin/env python3
"""Write the pages of flags from the parser: docs/flags.md (timm's) and docs/a2aug_flags.md (those of A²-Aug).

    python docs/flag_table.py
"""
import argparse
from pathlib import Path

from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.arguments.with_branches import NOTES, REFUSED

PATH = Path(__file__).with_name('flags.md')
A2AUG_PATH = Path(__file__).with_name('a2aug_flags.md')
HEAD = """# timm's flags with branches

Written by `python docs/flag_table.py` from the parser of `train.py`. With `--a2aug-branches 1` every flag means what it
means in timm. With two branches or more it works (a note says what to know), or it is refused before any data is read,
with the sentence that stands here. The flags of A²-Aug have [a page of their own](a2aug_flags.md).
"""
A2AUG_HEAD = """# The flags of A²-Aug

Written by `python docs/flag_table.py` from the parser of `train.py`. The defaults are the paper's method. An empty
default means "not set". [Policies](policies.md) says what `--a2aug-policies` takes, [Cheaper forms](cheaper.md) what
the flags from `--a2aug-views` to `--a2aug-batch` cost, [The method](method.md) what the loss is.

| flag | default | meaning |
|---|---|---|
"""


def flag_table() -> str:
    """The whole page of timm's flags."""
    lines = [HEAD]
    for title, flags in train_parser().flags().items():
        actions = [action for action in flags if not action.dest.startswith(('a2aug', 'help', 'config'))]
        if not actions:
            continue
        heading = title.capitalize() if title.islower() else title
        lines += [f'## {heading}', '', '| flag | default | with branches |', '|---|---|---|']
        lines += [f'| {_names(action)} | {_default(action)} | {_with_branches(action.dest)} |' for action in actions]
        lines.append('')
    return '\n'.join(lines)


def a2aug_flag_table() -> str:
    """The whole page of the flags of A²-Aug."""
    flags = train_parser().flags().values()
    actions = [action for group in flags for action in group if action.dest.startswith('a2aug')]
    lines = [f'| `{_usage(action)}` | {_default(action)} | {_meaning(action)} |\n' for action in actions]
    return A2AUG_HEAD + ''.join(lines)


def _names(action: argparse.Action) -> str:
    return ' '.join(f'`{name}`' for name in action.option_strings or [action.dest])


def _usage(action: argparse.Action) -> str:
    """A flag with the name of its value; `N...` means one value or more."""
    value = '' if action.nargs == 0 or action.choices else f' {action.metavar}'
    return action.option_strings[-1] + value + ('...' if action.nargs == '+' else '')


def _default(action: argparse.Action) -> str:
    value = action.default
    if value is False or value in (None, '', [], {}):
        return ''
    return ' '.join(map('{:.6g}'.format, value)) if isinstance(value, list) else str(value)


def _meaning(action: argparse.Action) -> str:
    choices = ', '.join(f'`{choice}`' for choice in action.choices or ())
    return (action.help or '') + (f'; one of {choices}' if choices else '')


def _with_branches(name: str) -> str:
    if name in REFUSED:
        return f'**refused**: {REFUSED[name]}'
    return f'works: {NOTES[name]}' if name in NOTES else 'works'


if __name__ == '__main__':
    PATH.write_text(flag_table(), encoding='utf-8')
    A2AUG_PATH.write_text(a2aug_flag_table(), encoding='utf-8')

#!/usr/bin/env python3
"""Write docs/flags.md: what each of timm's flags means with two branches or more.

    python docs/flag_table.py
"""
import argparse
from pathlib import Path

from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.arguments.with_branches import NOTES, REFUSED

PATH = Path(__file__).with_name('flags.md')
HEAD = """# timm's flags with branches

Written by `python docs/flag_table.py` from the parser of `train.py`. With `--a2aug-branches 1` every flag means what it
means in timm. With two branches or more it works (a note says what to know), or it is refused before any data is read,
with the sentence that stands here. The flags of A²-Aug itself are in the README.
"""


def flag_table() -> str:
    """The whole page."""
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


def _names(action: argparse.Action) -> str:
    return ' '.join(f'`{name}`' for name in action.option_strings or [action.dest])


def _default(action: argparse.Action) -> str:
    value = action.default
    if value is False or value in (None, '', [], {}):
        return ''
    return ' '.join(map('{:.6g}'.format, value)) if isinstance(value, list) else str(value)


def _with_branches(name: str) -> str:
    if name in REFUSED:
        return f'**refused**: {REFUSED[name]}'
    return f'works: {NOTES[name]}' if name in NOTES else 'works'


if __name__ == '__main__':
    PATH.write_text(flag_table(), encoding='utf-8')

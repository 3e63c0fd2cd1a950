"""Strict configuration: one-sentence errors, YAML files checked against the parser, and the names that were set."""
import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from timm.utils import ParseKwargs
from timm.utils.distributed import world_info_from_env

from .recipes import find_config

_UNSET = object()
# A group of flags, as `add_argument_group` returns it; argparse has no public name for the class.
FlagGroup = argparse._ArgumentGroup


class StrictParser(argparse.ArgumentParser):
    """Argument parser that answers bad input with one sentence and exit code 2, on the first rank of a node.

    Attributes:
        replaces: Argument of the command line -> arguments of the config file that it replaces, besides itself.
        switches_off: The same for one value of an argument of the command line.
    """

    def __init__(self, prog: str, **kwargs: Any):
        # A message names the program as the user typed it; the console scripts are a2aug-train, a2aug-validate, …
        typed = Path(sys.argv[0]).name
        super().__init__(prog=typed if typed.startswith('a2aug-') else prog, allow_abbrev=False, **kwargs)
        self.replaces: dict[str, set[str]] = {}
        self.switches_off: dict[tuple[str, Any], set[str]] = {}

    def error(self, message: str) -> NoReturn:
        local_rank = world_info_from_env()[0]
        self.exit(2, f'{self.prog}: error: {message}\n' if local_rank == 0 else None)

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """Turn the user's mistakes (``ValueError``, and ``OSError`` of files) into one sentence and exit code 2.

        All ranks raise a ``ValueError`` alike, so one rank per node prints it. An ``OSError`` may concern a single
        rank, so each rank prints its own.
        """
        try:
            yield
        except ValueError as error:
            self.error(one_line(error))
        except OSError as error:
            where = f'rank {rank}: ' if (rank := world_info_from_env()[1]) else ''
            self.exit(2, f'{self.prog}: error: {where}{one_line(error)} ({type(error).__name__})\n')

    @property
    def defaults(self) -> dict[str, Any]:
        """Default of each argument."""
        return {action.dest: action.default for action in self._actions}

    def flags(self) -> dict[str, list[argparse.Action]]:
        """Flags of each group, by the group's title; argparse has no public list of them."""
        return {group.title or '': list(group._group_actions) for group in self._action_groups}

    def changed(self, args: argparse.Namespace) -> set[str]:
        """Names of the arguments that differ from their defaults."""
        defaults = self.defaults
        return {name for name, value in vars(args).items() if name in defaults and value != defaults[name]}

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
        """Parse a command line over an optional ``-c RECIPE`` of YAML over the defaults.

        Returns:
            The arguments, and the names of those that the command line or the file set.
        """
        config_parser = StrictParser(prog=self.prog, add_help=False)
        config_parser.add_argument('-c', '--config', default='')
        config, remaining = config_parser.parse_known_args(argv)
        actions = {action.dest: action for action in self._actions if action.dest not in ('help', 'config')}

        args = argparse.Namespace(**dict.fromkeys(actions, _UNSET))
        args, unknown = self.parse_known_args(remaining, args)
        if unknown:
            self.error(f"unknown argument '{unknown[0]}'" + self._did_you_mean(
                unknown[0].split('=')[0], list(self._option_string_actions)))
        args.__dict__.pop('config', None)
        settings = self._read_yaml(config.config, actions) if config.config else {}
        explicit = {name for name, value in vars(args).items() if value is not _UNSET and value is not None}
        for name in self._replaced(args, explicit) & settings.keys():
            settings.pop(name)
        for name, action in actions.items():
            if name not in explicit:
                setattr(args, name, settings.get(name, action.default))
        return args, explicit | set(settings)

    def _replaced(self, args: argparse.Namespace, explicit: set[str]) -> set[str]:
        """Arguments of the config file that those of the command line replace."""
        names = set().union(*(self.replaces.get(name, ()) for name in explicit))
        return names.union(*(others for (name, value), others in self.switches_off.items()
                             if name in explicit and getattr(args, name) == value))

    def _read_yaml(self, path: str, actions: dict[str, argparse.Action]) -> dict[str, Any]:
        with self.user_errors():
            path = find_config(path)
        try:
            with open(path, encoding='utf-8') as file:
                settings = yaml.safe_load(file) or {}
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"cannot read the config file '{path}': {getattr(error, 'strerror', 'not UTF-8')}")
        except yaml.YAMLError as error:
            self.error(f"'{path}' is not YAML: {' '.join(str(error).split())}")
        if not isinstance(settings, dict):
            self.error(f"'{path}' must hold 'key: value' lines")
        values = {}
        for key, value in settings.items():
            name = str(key).replace('-', '_')
            if name not in actions:
                self.error(f"'{path}': unknown key '{key}'" + self._did_you_mean(name, list(actions)))
            try:
                values[name] = _convert(actions[name], value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                self.error(f"'{path}': {key}: {error}")
        return values

    @staticmethod
    def _did_you_mean(name: str, names: list[str]) -> str:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        return f", did you mean '{nearest[0]}'?" if nearest else ''


def one_line(error: BaseException) -> str:
    """Message of an error without its line breaks."""
    return ' '.join(str(error).split())


@contextmanager
def user_error_from(*kinds: type[Exception], what: str) -> Iterator[None]:
    """Raise ``ValueError`` for the exceptions that a call of timm or torch raises for a wrong setting.

    Args:
        kinds: Exceptions of that call; wrap the call alone, so that a bug of ours keeps its traceback.
        what: Beginning of the sentence.
    """
    try:
        yield
    except kinds as error:
        raise ValueError(f'{what}: {one_line(error)} ({type(error).__name__})') from error


def _convert(action: argparse.Action, value: Any) -> Any:
    """A YAML value as the command line would have given it; ``ValueError`` says what was expected."""
    if value is None:
        if action.default not in (None, ''):
            raise ValueError(f'expected a value like {action.default!r}, got null')
        return action.default
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise ValueError(f'expected true or false, got {value!r}')
        return value
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise ValueError(f'expected a mapping, got {value!r}')
        return value
    if action.nargs in ('+', '*') or isinstance(action.nargs, int):
        return _convert_list(action, value)
    return _convert_scalar(action, value)


def _convert_list(action: argparse.Action, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f'expected a list, got {value!r}')
    if isinstance(action.nargs, int) and len(value) != action.nargs:
        raise ValueError(f'expected a list of {action.nargs} values, got {len(value)}')
    if action.nargs == '+' and not value and action.default:
        raise ValueError('expected at least one value, got an empty list')
    return [_convert_scalar(action, item) for item in value]


def _convert_scalar(action: argparse.Action, value: Any) -> Any:
    kind: Any = action.type or str
    name = kind.__name__.strip('_').replace('_', ' ')
    # YAML reads `no` as false and `1e-3` as text; the first is a mistake here, the second is not.
    if isinstance(value, (bool, list, dict)) or (getattr(kind, 'kind', kind) is int and isinstance(value, float)):
        raise ValueError(f'expected {name}, got {value!r}')
    try:
        value = kind(str(value))
    except ValueError:  # the flag's own type raises a sentence of its own
        raise ValueError(f'expected {name}, got {value!r}') from None
    if action.choices and value not in action.choices:
        raise ValueError(f'expected one of {", ".join(map(str, action.choices))}, got {value!r}')
    return value

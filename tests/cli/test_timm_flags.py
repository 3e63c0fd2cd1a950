"""The commands take timm's flags with their types, defaults and choices; bounds may be stricter than timm's."""
import csv
import json
from pathlib import Path

from a2aug_timm.train.arguments import train_parser
from a2aug_timm.validate.arguments import validate_parser

FLAGS = Path(__file__).parent / 'timm_flags'
TYPES = {'int': int, 'float': float, 'str': None, '': None}


def flags_of(name):
    with open(FLAGS / f'{name}.csv', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def held_against(parser, rows):
    """Rows of timm's flags that a parser lacks or has otherwise.

    Ours may bound a number, name the choices that timm checks later, and count the values that timm leaves open.
    """
    actions = {name: action for flags in parser.flags().values() for action in flags
               for name in action.option_strings or [action.dest]}
    for row in rows:
        for name in row['flags'].split():
            action = actions.get(name)
            if action is None:
                yield name, None
                continue
            nargs = '+' if row['nargs'] == '+' and isinstance(action.nargs, int) else action.nargs
            choices = ' '.join(action.choices or ()) if row['choices'] else ''
            own = (type(action).__name__.strip('_').removesuffix('Action'), getattr(action.type, 'kind', action.type),
                   '' if nargs is None else str(nargs), action.default, choices)
            if own != (row['action'], TYPES[row['type']], row['nargs'], json.loads(row['default']), row['choices']):
                yield name, own


def test_train_takes_timms_flags_with_their_types_defaults_and_choices():
    assert list(held_against(train_parser(), flags_of('train'))) == []


def test_validate_takes_timms_flags_with_their_types_defaults_and_choices():
    assert list(held_against(validate_parser(), flags_of('validate'))) == []

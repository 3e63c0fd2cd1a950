"""The rooms of the package: who may import whom, read from the source, and how large files and functions may be."""
import ast

import pytest

from tests import ROOT

PACKAGE = ROOT / 'a2aug_timm'
METHOD = ('multi_branch', 'branches', 'logits', 'loss', 'task')
LIBRARY = {'method', 'data', 'engine', 'export'}
MAY_IMPORT = {
    'method': set(),
    'data': set(),
    'engine': set(),
    'models': set(),
    'export': {'method', 'engine'},
    'cli': {'data'},
    'train': LIBRARY | {'cli'},
    'validate': LIBRARY | {'cli'},
    'report': LIBRARY | {'cli', 'train'},
    'study': LIBRARY | {'cli', 'train', 'report'},
}
COMMANDS = {'cli', 'train', 'validate', 'report', 'study'}
FILES = sorted(path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')


def room_of(parts):
    return 'method' if parts[0] in METHOD else parts[0]


def imported(path):
    """Rooms and other packages that a file imports."""
    package = path.relative_to(PACKAGE).parent.parts
    rooms, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = (*package[:len(package) - node.level + 1], *(node.module or '').split('.'))
            rooms.add(room_of(parts))
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            others.update(alias.name.split('.')[0] for alias in node.names)
    return rooms, others


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    room = room_of(path.relative_to(PACKAGE).with_suffix('').parts)
    rooms, others = imported(path)
    allowed = MAY_IMPORT[room] | {room} | ({'cli'} if path.name == '__main__.py' else set())
    assert rooms <= allowed and 'a2aug_timm' not in others
    # A checkpoint of timm's own script holds its arguments as a Namespace.
    if room not in COMMANDS and path.name not in ('__main__.py', 'checkpoint.py'):
        assert 'argparse' not in others


def test_files_and_functions_keep_their_size():
    for path in [*FILES, ROOT / 'train.py', ROOT / 'validate.py']:
        source = path.read_text(encoding='utf-8')
        assert source.count('\n') <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                limit = 100 if node.name == 'main' else 60
                assert node.end_lineno - node.lineno < limit, f'{path}: {node.name}'
    folders = {path.parent for path in FILES}
    assert max(len(list(folder.glob('*.py'))) for folder in folders) <= 14

"""The rooms of the package, read from the source: who may import whom, private names, and sizes of files and functions.
"""
import ast

import pytest

from tests import ROOT

PACKAGE = ROOT / 'a2aug_timm'
METHOD = ('multi_branch', 'branches', 'merge', 'logits', 'loss', 'task')
LIBRARY = {'method', 'data', 'engine', 'export'}
MAY_IMPORT = {
    'method': set(),
    'upstream': set(),
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
    allowed = MAY_IMPORT[room] | {room, 'upstream'} | ({'cli'} if path.name == '__main__.py' else set())
    assert rooms <= allowed and 'a2aug_timm' not in others
    # A checkpoint of timm's own script holds its arguments as a Namespace.
    if room not in COMMANDS and path.name not in ('__main__.py', 'checkpoint.py'):
        assert 'argparse' not in others


def is_private(name):
    return name.startswith('_') and not name.startswith('__')


def private_names(source):
    """Private names in a source that the source itself does not define: imported, attributes, or in ``getattr``."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in nodes:
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [*node.module.split('.'), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split('.')]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ('self', 'super()'):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ('getattr', 'hasattr', 'setattr'):
            names = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
        yield from (name for name in names if is_private(name) and name not in own)


@pytest.mark.parametrize('source', [
    'from torch._dynamo import config', 'from torch.nn.modules.batchnorm import _BatchNorm as Norm',
    'import torch._inductor', 'torch._C.is_there()', 'parent._modules[name] = child',
    "getattr(optimizer, '_base', None)"])
def test_private_names_of_other_packages_are_found(source):
    assert list(private_names(source))


def test_private_names_of_other_packages_are_in_one_file():
    # The parser's file is the home of argparse's private names.
    homes = {PACKAGE / 'upstream.py', PACKAGE / 'cli' / 'config.py'}
    found = {path: set(private_names(path.read_text(encoding='utf-8'))) for path in FILES if path not in homes}
    assert {path: names for path, names in found.items() if names} == {}


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

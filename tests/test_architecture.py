"""Who may import whom: read from the source, so that no run is needed to see a wrong arrow."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'a2aug_timm'
MAY_IMPORT = {
    'policies': {'opencv_ops'},
    'opencv_ops': set(),
    'multi_branch': set(),
    'branches': {'multi_branch'},
    'logits': {'branches', 'multi_branch'},
    'loss': set(),
    'datasets': {'torchvision_datasets'},
    'torchvision_datasets': set(),
    'engine': {'loss_meters'},
    'loss_meters': set(),
    'metrics': set(),
    'views': {'policies'},
    'holdout': set(),
    'random_state': set(),
    'mixup': set(),
    'cutout': set(),
    'models': set(),
    'task': {'branches', 'logits', 'loss'},
    'checkpoint': set(),
    'summary': {'checkpoint'},
    'export': {'branches', 'checkpoint'},
    'pretrained_file': {'export'},
    'report': set(),
    'study': {'checkpoint', 'datasets', 'policies', 'report'},
    'run_folder': {'checkpoint', 'export', 'summary'},
    '__init__': {'branches', 'export', 'loss', 'models', 'multi_branch', 'policies', 'pretrained_file', 'task'},
}


def imported(path):
    """Names of our modules that a file imports, and of other packages; a package's own files do not count."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and path.parent != PACKAGE:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            ours.update([node.module.split('.')[0]] if node.module else [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            others.update(alias.name.split('.')[0] for alias in node.names)
    return ours, others


@pytest.mark.parametrize('module', MAY_IMPORT)
def test_a_module_imports_only_what_its_place_in_the_house_allows(module):
    files = [PACKAGE / f'{module}.py']
    if (PACKAGE / module).is_dir():
        files = [path for path in (PACKAGE / module).glob('*.py') if path.stem != '__main__']
    for path in files:
        ours, others = imported(path)
        assert ours <= MAY_IMPORT[module], path
        assert not others & {'a2aug_timm', 'train', 'validate', 'argparse'} or module == 'checkpoint', path


def test_every_module_has_its_place_and_none_below_imports_the_command_line():
    modules = {path.stem for path in PACKAGE.glob('*.py')} | {
        path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert modules == set(MAY_IMPORT) | {'cli'}


def test_files_and_functions_keep_their_size():
    root = PACKAGE.parent
    for path in [*PACKAGE.rglob('*.py'), root / 'train.py', root / 'validate.py']:
        source = path.read_text(encoding='utf-8')
        assert source.count('\n') <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                limit = 100 if node.name == 'main' else 60
                assert node.end_lineno - node.lineno < limit, f'{path}: {node.name}'

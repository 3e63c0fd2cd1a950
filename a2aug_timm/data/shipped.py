"""Files of ``hparams/`` that the package ships, by name: in a checkout and in an installed package."""
import difflib
import os
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_POLICIES = 'policies'


def shipped_recipes() -> dict[str, Path]:
    """Recipes by name, such as ``cifar10/wide_resnet40_2_a2aug``."""
    folder = _folder()
    recipes = {path.relative_to(folder).with_suffix('').as_posix(): path for path in folder.rglob('*.yaml')}
    return {name: path for name, path in recipes.items() if not name.startswith(f'{_POLICIES}/')}


def shipped_policies() -> dict[str, Path]:
    """Published policies by name, such as ``fast_autoaugment_cifar10``."""
    return {path.stem: path for path in (_folder() / _POLICIES).glob('*.yaml')}


def is_file(name: str | Path) -> bool:
    """Whether a name is that of a file or pipe, which wins over a shipped file of that name; a folder does not."""
    return os.path.exists(name) and not os.path.isdir(name)


def nearest_name(name: str, names: Iterable[str]) -> str:
    """``", did you mean 'NAME'?"`` with the nearest of some names, or nothing if none is near."""
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean '{nearest[0]}'?" if nearest else ''


def _folder() -> Path:
    """The folder ``hparams``: a wheel carries it inside the package, a checkout has it beside the package."""
    inside = _PACKAGE / 'hparams'
    return inside if inside.is_dir() else _PACKAGE.parent / 'hparams'

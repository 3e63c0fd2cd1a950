"""Recipes by name: the YAML files of ``hparams/``, in a checkout and in an installed package."""
import difflib
import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def find_config(name: str) -> str:
    """Path of the YAML file that ``-c`` names.

    Args:
        name: A file, or the name of a recipe such as ``quickstart`` or ``cifar10/wide_resnet40_2_a2aug``. A file of
            that name wins; a folder does not.

    Raises:
        ValueError: There is no such file or recipe; the message says the nearest recipe.
    """
    if os.path.exists(name) and not os.path.isdir(name):
        return name
    recipes = {path.relative_to(_folder()).with_suffix('').as_posix(): path for path in _folder().rglob('*.yaml')}
    recipe = name.removeprefix('hparams/').removesuffix('.yaml')
    if recipe in recipes:
        return str(recipes[recipe])
    nearest = difflib.get_close_matches(recipe, recipes, n=1)
    hint = f", did you mean '{nearest[0]}'?" if nearest else ''
    raise ValueError(f"cannot read the config file '{name}': there is no such file and no such recipe{hint}")


def _folder() -> Path:
    """The folder of recipes: a wheel carries it inside the package, a checkout has it beside the package."""
    inside = _PACKAGE / 'hparams'
    return inside if inside.is_dir() else _PACKAGE.parent / 'hparams'

"""Recipes by name: the YAML files of ``hparams/``, except its policies."""
from ..data.shipped import is_file, nearest_name, shipped_recipes


def find_config(name: str) -> str:
    """Path of the YAML file that ``-c`` names.

    Args:
        name: A file, or the name of a recipe such as ``quickstart`` or ``cifar10/wide_resnet40_2_a2aug``. A file of
            that name wins; a folder does not.

    Raises:
        ValueError: There is no such file or recipe; the message says the nearest recipe.
    """
    if is_file(name):
        return name
    recipes = shipped_recipes()
    recipe = name.removeprefix('hparams/').removesuffix('.yaml')
    if recipe in recipes:
        return str(recipes[recipe])
    raise ValueError(f"cannot read the config file '{name}': there is no such file and no such recipe"
                     f'{nearest_name(recipe, recipes)}')

"""Recipe of a study: train.py's arguments, what the rows need to know of them, and train.py's own checks."""
import argparse
from collections.abc import Sequence
from typing import Any

import timm

from ..cli.checks import flag
from ..data.policies import SPACES
from ..train.arguments import train_parser
from ..train.checks import check_train
from ..train.data import build_datasets
from ..train.resolve import resolve
from .rows import Method

# Set by the study itself, or compared by its tables.
_OWN = ('seed', 'a2aug_seed', 'aa', 'output', 'experiment', 'resume', 'start_epoch', 'initial_checkpoint',
        'a2aug_op_backend', 'a2aug_views', 'a2aug_anchor_share', 'a2aug_start_epoch', 'a2aug_batch')
# Schedules with settings in epochs; the others stretch with the number of epochs.
_STEPS = ('step', 'multistep', 'plateau')


def read_recipe(
        config: str | None,
        data_dir: str | None,
        flags: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe from a file and flags of train.py.

    Returns:
        All arguments of train.py by name, and those that the trials share.

    Raises:
        ValueError: An argument is the study's own, or is missing.
    """
    namespace, explicit = train_parser().parse([*(['-c', config] if config else []), *flags])
    settings = vars(namespace)
    explicit = {name for name in explicit if settings[name] is not None}
    if 'data' in explicit:
        raise ValueError(f"'{settings['data']}' is not expected here; the names of the tables come first, and --data "
                         'names the folder of the images')
    for name in _OWN:
        if name in explicit:
            raise ValueError(f'{flag(name)} is set by the study itself; leave it out of the recipe')
    num_branches, named = settings['a2aug_branches'], settings['a2aug_policies']
    if num_branches < 2:
        raise ValueError('a study needs a recipe of A²-Aug; add --a2aug-branches N')
    if named and not len(named) == len(set(named)) == num_branches:
        raise ValueError(f"--a2aug-branches {num_branches} needs {num_branches} different policies, got "
                         f"{' '.join(named)}")
    if not settings['val_split']:
        raise ValueError('a study measures accuracy on the validation split; leave --val-split as it is')
    recipe = {name: value for name, value in settings.items() if name in explicit - {'model', 'epochs'}}
    recipe.update({'data_dir': data_dir} if data_dir else {})
    recipe.setdefault('holdout', 0.1)
    recipe.setdefault('checkpoint_hist', 1)
    if settings['sched'] in _STEPS:
        recipe.update({name: settings[name] for name in ('decay_epochs', 'decay_milestones', 'patience_epochs')})
    return settings, recipe


def method_of(settings: dict[str, Any], models: Sequence[str]) -> Method:
    """Parts of a recipe that the rows depend on.

    Raises:
        ValueError: The networks expect images of different sizes.
    """
    space = settings['a2aug_space']
    num_layers, magnitudes = SPACES.get(space, (settings['a2aug_num_layers'], settings['a2aug_magnitudes']))
    if settings['img_size'] or settings['input_size']:
        sizes = {settings['img_size'] or settings['input_size'][-1]}
    else:
        sizes = {config.input_size[-1] for model in models if (config := timm.get_pretrained_cfg(model)) is not None}
    if len(sizes) > 1:
        raise ValueError(f'the networks expect images of {sorted(sizes)} pixels; give one --img-size for all')
    size = next(iter(sizes), 224)
    nearest = 'imagenet' if size > 64 else 'svhn' if space == 'svhn' else 'cifar10'
    return Method(settings['a2aug_branches'], num_layers, magnitudes, size, settings['cutout'],
                  f'autoaugment_{nearest}', settings['a2aug_policies'] or ())


def check_config(config: dict[str, Any]) -> argparse.Namespace:
    """All arguments of a trial, after train.py's own checks.

    Raises:
        ValueError: train.py would refuse the arguments.
    """
    parser = train_parser()
    namespace = resolve(argparse.Namespace(**{**parser.defaults, **config}), set(config))
    check_train(namespace, set(config), parser.changed(namespace))
    return namespace


def num_train_images(config: dict[str, Any]) -> int:
    """Number of training images of a plain trial.

    Raises:
        ValueError: The data set is missing or too small.
    """
    plain = check_config(config)
    in_chans = plain.in_chans or (plain.input_size or [3])[0]
    images: Any = build_datasets(plain, {'input_size': (in_chans,)}, plain.num_classes or 10 ** 9).train
    return len(images)

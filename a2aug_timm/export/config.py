"""Descriptions of timm models: enough to build a model again, in the schema of timm's ``config.json``."""
import json
import tempfile
from pathlib import Path
from typing import Any

import timm
from timm.utils import unwrap_model
from torch import nn

from ..branches import create_branches, networks_of
from ..engine.checkpoint import read_checkpoint
from ..engine.record import is_model_config
from ..upstream import save_config_for_hf

# Arguments of timm.create_model that choose weights to load, and those that a description has fields of its own for.
_NO_MODEL_ARGS = {
    'model_name', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir',
    'num_classes'}


def model_config(
        model: nn.Module,
        data_config: dict[str, Any] | None = None,
        label_names: list[str] | None = None,
) -> dict[str, Any]:
    """Describe a timm model in the schema of timm's ``config.json``; ``create_from_config`` builds it again.

    Args:
        model: Plain or multi-branch model that ``timm.create_model`` built.
        data_config: ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``.
        label_names: Name of each class.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        extra = {'label_names': list(label_names)} if label_names else {}
        network = networks_of(unwrap_model(model))[0]
        save_config_for_hf(network, str(path), model_config=extra, data_config=data_config)
        config: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    # transformers refuses a number of classes that is given twice.
    config.get('model_args', {}).pop('num_classes', None)
    if config['architecture'] == 'fbnetc_100':
        # timm builds it with another epsilon for `pretrained=True`, which is how an export is loaded.
        epsilon = next(module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        config['model_args'] = {'bn_eps': epsilon, **config.get('model_args', {})}
    return config


def create_from_config(config: dict[str, Any], num_branches: int = 1, own: str = 'bn') -> nn.Module:
    """Create the model that ``model_config`` described, without its weights.

    Args:
        config: Description of the plain model.
        num_branches: ``N``; 1 is a plain model.
        own: Part of the model that each branch has of its own, see ``create_branches``.

    Raises:
        ValueError: This timm has no such architecture, or it does not take the arguments of the description.
    """
    architecture, model_args = config['architecture'], config.get('model_args', {})
    if not timm.is_model(architecture):
        raise ValueError(f"this timm {timm.__version__} has no model '{architecture}'")
    # A description comes from a file; it must not make timm load weights from elsewhere.
    if odd := sorted(_NO_MODEL_ARGS & model_args.keys()):
        raise ValueError(f"the description of '{architecture}' must not set the argument '{odd[0]}'")
    pretrained_cfg = {
        **config['pretrained_cfg'], 'architecture': architecture, 'num_classes': config['num_classes']}

    def create() -> nn.Module:
        try:
            return timm.create_model(
                architecture, pretrained_cfg=pretrained_cfg, num_classes=config['num_classes'], **model_args)
        except Exception as error:  # timm's constructors can raise anything for a damaged description
            raise ValueError(f"the description of '{architecture}' does not fit it: {error}") from error

    return create_branches(create, num_branches, own)


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The ``model_config`` in a weight file, or in the ``config.json`` beside it; None if there is neither.

    Raises:
        ValueError: The file is missing or is no weight file, or ``config.json`` is no JSON.
    """
    config = read_checkpoint(path).get('config')
    beside = Path(path).with_name('config.json')
    if config is None and beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding='utf-8'))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{beside}' is not a JSON file or is damaged") from error
    # Other libraries write a config of their own.
    return config if is_model_config(config) else None

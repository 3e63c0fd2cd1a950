"""The keyword ``pretrained_file`` of ``timm.create_model``, which importing this package adds."""
import functools
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..upstream import timm_factory
from .config import read_config


def add_pretrained_file() -> None:
    """Add the keyword ``pretrained_file`` to ``timm.create_model``; calls without it behave as before.

    ``timm.create_model('resnet50', pretrained_file='…/model.safetensors')`` loads a weight file. It takes the number
    of classes, the input and the model's arguments from the file's metadata or from the ``config.json`` beside it.
    Keywords of the call take precedence, as they do for ``pretrained=True``: another ``num_classes`` gives a new head.
    A second call of this function changes nothing.
    """
    original = timm.models.create_model
    if hasattr(original, 'takes_pretrained_file'):
        return

    @functools.wraps(original)
    def create_model(
            model_name: str, *args: Any, pretrained_file: str | Path | None = None, **kwargs: Any) -> nn.Module:
        if pretrained_file is None:
            return original(model_name, *args, **kwargs)
        kwargs = {**dict(zip(('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay'), args, strict=False)), **kwargs}
        config = read_config(pretrained_file) or {}
        architecture = timm.models.parse_model_name(model_name)[1].split('.')[0]
        if config.get('architecture', architecture) != architecture:
            raise ValueError(f"'{pretrained_file}' holds a {config['architecture']}, not a {architecture}")
        overlay = {**config.get('pretrained_cfg', {}), **(kwargs.pop('pretrained_cfg_overlay', None) or {})}
        overlay['file'] = str(pretrained_file)
        num_classes = config.get('num_classes', kwargs.get('num_classes'))
        if num_classes is not None:
            overlay['num_classes'] = num_classes
        kwargs = {**config.get('model_args', {}), 'num_classes': num_classes, **kwargs, 'pretrained': True}
        return original(model_name, pretrained_cfg_overlay=overlay, **kwargs)

    create_model.takes_pretrained_file = True  # type: ignore[attr-defined]
    for module in (timm, timm.models, timm_factory):
        module.create_model = create_model  # type: ignore[attr-defined]

"""Networks of the paper that timm lacks; importing them registers their names for ``timm.create_model``."""
from .wide_resnet import WideResNet

__all__ = ['WideResNet']

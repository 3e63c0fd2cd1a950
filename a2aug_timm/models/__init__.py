"""Networks of the paper that timm lacks. The import registers their names for ``timm.create_model``."""
from .pyramidnet import PyramidNet
from .shake_shake import ShakeShakeNet
from .wide_resnet import WideResNet

__all__ = ['PyramidNet', 'ShakeShakeNet', 'WideResNet']

"""Plain timm models from the branches of a checkpoint, written as folders that timm loads.

The command is ``python -m a2aug_timm.export CHECKPOINT --branch best|i|all -o FOLDER``.
"""
from .config import create_from_config, model_config, read_config
from .folder import export_branch, export_recorded_branch, load_line
from .load import load_branches

__all__ = ['create_from_config', 'export_branch', 'export_recorded_branch', 'load_branches', 'load_line',
           'model_config', 'read_config']

"""Plain timm models from the branches of a checkpoint, written as folders that timm loads.

The command is ``python -m a2aug_timm.export CHECKPOINT --branch best|i|all|merged -o FOLDER``.
"""
from .config import create_from_config, model_config, read_config
from .folder import export_branch, export_model, export_recorded_branch, load_line
from .load import load_branches
from .merged import export_merged, load_merged

__all__ = ['create_from_config', 'export_branch', 'export_merged', 'export_model', 'export_recorded_branch',
           'load_branches', 'load_line', 'load_merged', 'model_config', 'read_config']

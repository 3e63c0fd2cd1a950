"""A²-Aug for timm: train one network jointly under N augmentation policies and keep the best branch.

Importing it adds the keyword ``pretrained_file`` to ``timm.create_model``, see ``pretrained_file.py``, and the networks
in ``models`` to what it builds.
"""
from . import models
from .branches import convert_multi_branch_bn, convert_multi_branch_norm, extract_branch, select_branch
from .data.policies import MultiPolicyRandAugment, sample_policies
from .export import export_branch
from .export.pretrained_file import add_pretrained_file
from .loss import A2AugLoss
from .merge import estimate_statistics, merge_branches
from .multi_branch import MultiBranchBN, MultiBranchNetwork, MultiBranchNorm
from .task import A2AugTask

__version__ = '0.2.0.dev0'
__all__ = [
    'A2AugLoss',
    'A2AugTask',
    'MultiBranchBN',
    'MultiBranchNetwork',
    'MultiBranchNorm',
    'MultiPolicyRandAugment',
    'add_pretrained_file',
    'convert_multi_branch_bn',
    'convert_multi_branch_norm',
    'estimate_statistics',
    'export_branch',
    'extract_branch',
    'merge_branches',
    'models',
    'sample_policies',
    'select_branch',
]

add_pretrained_file()

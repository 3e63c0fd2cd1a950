"""A²-Aug for timm: train one network jointly under N augmentation policies and keep the best branch."""
from .branches import MultiBranchBN, convert_multi_branch_bn, extract_branch, select_branch
from .loss import A2AugLoss
from .policies import MultiPolicyRandAugment, sample_policies
from .task import A2AugTask

"""A²-Aug for timm: train one network jointly under N augmentation policies and keep the best branch."""
from .policies import MultiPolicyRandAugment, sample_policies

"""Augmentation policies: their strings, the search space, and the transforms that they stand for."""
from .grammar import AUTO_AUGMENT, check_policies, is_known_to_timm, parse_policy
from .sampling import MAGNITUDES, NUM_LAYERS, SPACES, sample_beside, sample_policies
from .transforms import OP_BACKENDS, Mixture, MultiPolicyRandAugment, create_anchor, create_policy

__all__ = [
    'AUTO_AUGMENT', 'MAGNITUDES', 'NUM_LAYERS', 'OP_BACKENDS', 'SPACES', 'Mixture', 'MultiPolicyRandAugment',
    'check_policies', 'create_anchor', 'create_policy', 'is_known_to_timm', 'parse_policy', 'sample_beside',
    'sample_policies',
]

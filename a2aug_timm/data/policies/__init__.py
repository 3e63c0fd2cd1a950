"""Augmentation policies: strings, sampling, and the transforms that they stand for.

A policy is a string, see ``grammar``; that string is what is sampled, logged, stored in checkpoints and parsed.
"""
from .grammar import AUTO_AUGMENT, check_policies, is_known_to_timm, parse_policy
from .published_ops import MAX_MAGNITUDE, identity, mend_posterize
from .sampling import MAGNITUDES, NUM_LAYERS, SPACES, sample_beside, sample_policies
from .transforms import OP_BACKENDS, MultiPolicyRandAugment, create_anchor, create_policy

__all__ = [
    'AUTO_AUGMENT', 'MAGNITUDES', 'MAX_MAGNITUDE', 'NUM_LAYERS', 'OP_BACKENDS', 'SPACES', 'MultiPolicyRandAugment',
    'check_policies', 'create_anchor', 'create_policy', 'identity', 'is_known_to_timm', 'mend_posterize',
    'parse_policy', 'sample_beside', 'sample_policies']

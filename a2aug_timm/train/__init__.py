"""The training command: ``python -m a2aug_timm.train``."""

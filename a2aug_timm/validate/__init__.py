"""The validation command: ``python -m a2aug_timm.validate``."""

"""One epoch of training or evaluation, checkpoints and random state; nothing here knows the method or a flag."""

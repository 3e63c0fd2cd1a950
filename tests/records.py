"""Records of checkpoints, made by one call."""
from typing import Any

from a2aug_timm.engine.record import CheckpointRecord

CONFIG = {'architecture': 'test_resnet', 'num_classes': 10, 'pretrained_cfg': {}}


def make_record(num_branches: int, **fields: Any) -> CheckpointRecord:
    """The record of a run of ``num_branches`` branches after its first epoch; ``fields`` replace its own."""
    defaults = dict(
        epoch=0, num_branches=num_branches, own='bn', branch_sizes=None, judged_ema=False,
        mu=[1 / num_branches] * num_branches, policies=['v0', '3a', 'augmix-m3', 'none'][:num_branches], metrics=None,
        best_branch=0, config=CONFIG, data_config={'input_size': (1, 32, 32)})
    return CheckpointRecord(**{**defaults, **fields})

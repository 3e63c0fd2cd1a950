"""Multi-branch models from checkpoints."""
from typing import Any

from torch import nn

from ..engine.checkpoint import check_weights, state_dict_of
from ..engine.record import require_record
from .config import create_from_config


def load_branches(checkpoint: dict[str, Any], source: str, use_ema: bool | None = None) -> nn.Module:
    """Build the model of a training checkpoint, with all its branches and weights.

    Args:
        checkpoint: As ``read_checkpoint`` returned it.
        source: Path of the checkpoint, for error messages.
        use_ema: Whether to take the EMA weights (default: those that the run judged).

    Raises:
        ValueError: The checkpoint is not one of this package, is damaged, or holds no EMA weights.
    """
    record = require_record(checkpoint, source)
    model = create_from_config(record.config, record.num_branches, record.own)
    weights = state_dict_of(checkpoint, record.judged_ema if use_ema is None else use_ema)
    # The norms of split batch norm's other splits serve training alone.
    weights = {key: value for key, value in weights.items() if '.aux_bn.' not in key}
    check_weights(model, weights, source)
    model.load_state_dict(weights)
    return model

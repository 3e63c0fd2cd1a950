"""The record of a run and its branches that a checkpoint holds beside tensors and arguments."""
import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from .fields import check_fields, fits, is_json, shown

# The entry of a checkpoint that holds the record, and the version of its format. A field with a default needs no new
# version: older files are read with the default, and older versions of this package refuse the unknown field.
_ENTRY = 'a2aug'
VERSION = 1
_OWN = ('bn', 'norms', 'network', 'nothing')
_MODEL_CONFIG = {'architecture': str, 'num_classes': int, 'pretrained_cfg': dict[str, Any]}
_MODEL_CONFIG_OPTIONS = {'model_args': dict[str, Any], 'label_names': list[Any] | None}


@dataclass
class CheckpointRecord:
    """Description of a run in a checkpoint: its branches, how they were judged, and how to build the model again.

    Attributes:
        epoch: The epoch after which the checkpoint was written; -1 before the end of the first.
        num_branches: ``N``; 1 is plain training.
        own: Part of the model that each branch has of its own, see ``branches.create_branches``.
        branch_sizes: Image size of each branch in pixels; None if all are the size of ``data_config``.
        judged_ema: Whether the weights that were judged are the EMA's.
        mu: Weight of each branch in the ensemble.
        policies: Policy of each branch; None is no policy.
        metrics: Validation metrics of each branch, and of the ensemble where there is one; None without validation.
        best_branch: The branch to export.
        config: Plain model of one branch, as ``export.model_config`` describes it.
        data_config: Preprocessing of the images, as timm resolves it.
        is_lr_computed: Whether the learning rate was computed from ``--lr-base``.
    """
    epoch: int
    num_branches: int
    own: str
    branch_sizes: list[int] | None
    judged_ema: bool
    mu: list[float]
    policies: list[str | None]
    metrics: list[dict[str, float]] | None
    best_branch: int
    config: dict[str, Any]
    data_config: dict[str, Any]
    is_lr_computed: bool = False

    @classmethod
    def from_dict(cls, value: Any, source: str) -> 'CheckpointRecord':
        """The record that ``to_dict`` wrote.

        Args:
            value: A checkpoint's entry, as it was read.
            source: Path of the checkpoint, for error messages.

        Raises:
            ValueError: A newer version wrote it, or a field is missing, unknown or wrong.
        """
        name = f"the record of '{source}'"
        version = value.get('version', 1) if isinstance(value, dict) else 1
        if fits(version, int) and version > VERSION:
            raise ValueError(f'a newer version of a2aug_timm wrote {name} (format {version}; this one reads formats up '
                             f'to {VERSION})')
        hints = typing.get_type_hints(cls)
        optional = {field.name for field in dataclasses.fields(cls)
                    if (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)}
        fields = check_fields(value, {'version': int, **hints}, name, {'version', *optional})
        record = cls(**{field: content for field, content in fields.items() if field != 'version'})
        record._check(name)
        return record

    def to_dict(self) -> dict[str, Any]:
        """The record as primitives, with the version of its format."""
        return {'version': VERSION, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}}

    def to_entry(self) -> dict[str, dict[str, Any]]:
        """The record as an entry of a checkpoint, which ``record_of`` reads."""
        return {_ENTRY: self.to_dict()}

    def _check(self, name: str) -> None:
        """Raise ``ValueError`` if fields have the right types but values that cannot be."""
        num, sizes = self.num_branches, self.branch_sizes
        rules = (
            ('epoch', self.epoch >= -1, 'must be -1 or more'),
            ('num_branches', num >= 1, 'must be 1 or more'),
            ('own', self.own in _OWN, f'must be one of {", ".join(_OWN)}'),
            ('branch_sizes', sizes is None or len(sizes) == num and min(sizes) > 0,
             f'must be {num} positive numbers, one per branch'),
            ('mu', len(self.mu) == num, f'must have {num} values, one per branch'),
            ('policies', len(self.policies) == num, f'must have {num} values, one per branch'),
            ('metrics', self.metrics is None or len(self.metrics) >= self.num_model_branches,
             f'must have {self.num_model_branches} dicts or more, one per branch'),
            ('best_branch', 0 <= self.best_branch < self.num_model_branches,
             f'must be in 0 to {self.num_model_branches - 1}'),
            ('config', is_model_config(self.config), 'must describe a model of timm'),
            ('data_config', is_json(self.data_config), 'must have no values but those of JSON'),
            ('data_config', fits(self.data_config.get('input_size'), tuple[int, int, int]),
             'must have an input_size of three integers'),
        )
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"the field '{field}' of {name} {rule}, got {shown(getattr(self, field))}")

    @property
    def num_model_branches(self) -> int:
        """Number of branches of the model: 1 where all policies share the whole of it."""
        return 1 if self.own == 'nothing' else self.num_branches

    def resolve(self, branch: str) -> list[int]:
        """Indices of the branches that ``best``, ``all`` or a number stands for.

        Raises:
            ValueError: There is no such branch.
        """
        if branch == 'best':
            return [self.best_branch]
        if branch == 'all':
            return list(range(self.num_model_branches))
        if not branch.isdecimal() or int(branch) >= self.num_model_branches:
            raise ValueError(f"there is no branch '{branch}'; this checkpoint has branches 0 to "
                             f"{self.num_model_branches - 1}, 'best' and 'all'")
        return [int(branch)]

    def policy_of(self, branch: int) -> str | None:
        """Policy of a branch; None for no policy, and where all policies share the whole model."""
        return self.policies[branch] if self.num_model_branches == self.num_branches else None

    def size_of(self, branch: int) -> int | None:
        """Image size of a branch in pixels where branches have sizes of their own, else None."""
        return self.branch_sizes[branch] if self.branch_sizes else None

    def data_config_of(self, branch: int) -> dict[str, Any]:
        """Preprocessing of the images of a branch."""
        size = self.size_of(branch)
        if size is None:
            return self.data_config
        return {**self.data_config, 'input_size': (self.data_config['input_size'][0], size, size)}

    def metadata(self, branch: int) -> dict[str, Any]:
        """JSON values that describe a branch: its policy and μ (all policies if they share a model), metrics, epoch."""
        metrics = self.metrics[branch] if self.metrics else None
        if self.own == 'nothing':
            return {'policies': self.policies, 'metrics': metrics, 'epoch': self.epoch}
        return {'policy': self.policies[branch], 'mu': self.mu[branch], 'metrics': metrics, 'epoch': self.epoch}


def has_record(checkpoint: dict[str, Any]) -> bool:
    """Whether this package wrote a checkpoint while it trained."""
    return _ENTRY in checkpoint


def record_of(checkpoint: dict[str, Any], source: str) -> CheckpointRecord | None:
    """The record of a checkpoint, or None if this package did not write it.

    Raises:
        ValueError: The record is damaged, or a newer version wrote it.
    """
    return CheckpointRecord.from_dict(checkpoint[_ENTRY], source) if has_record(checkpoint) else None


def require_record(checkpoint: dict[str, Any], source: str) -> CheckpointRecord:
    """The record of a checkpoint that must have one.

    Raises:
        ValueError: This package did not write the checkpoint, or see ``record_of``.
    """
    record = record_of(checkpoint, source)
    if record is None:
        raise ValueError(f"'{source}' is not a checkpoint of a2aug_timm's train.py")
    return record


def is_model_config(value: Any) -> bool:
    """Whether a value has the fields of a model description in timm's schema, each of its type; others may follow."""
    return isinstance(value, dict) and is_json(value) and all(
        fits(value.get(field), hint) for field, hint in _MODEL_CONFIG.items()) and all(
        fits(value[field], hint) for field, hint in _MODEL_CONFIG_OPTIONS.items() if field in value)

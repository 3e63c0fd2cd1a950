"""A run: what it does after an update and after an epoch (judge every branch, keep it, show it), and at its end."""
import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm import utils
from torch import distributed as dist
from torch import nn

from ..branches import branch_logits
from ..checkpoint import training_state
from ..engine import OptimizerStep, Update, evaluate
from ..export import build_model, load_line
from ..random_state import RememberingCollate, gather_rng_states
from ..run_folder import RunFolder
from ..summary import summary_row
from ..task import A2AugTask
from .build_model import model_dtype
from .console import RunProgress, branch_table, print_table
from .tracking import save_batch


@dataclass
class Run:
    """What the epochs of a run share.

    Attributes:
        args: All arguments; ``run_args`` are those that belong to the run and not to this invocation.
        config: The plain model, as ``model_config`` describes it.
        workers: Remembers the random states of plain training's workers.
        log: Takes the row of each epoch's summary.
    """
    args: argparse.Namespace
    folder: RunFolder
    step: OptimizerStep
    progress: RunProgress
    device: torch.device
    run_args: dict[str, Any]
    config: dict[str, Any]
    data_config: dict[str, Any]
    workers: RememberingCollate | None = None
    log: Callable[[dict[str, Any]], None] = field(default=lambda _: None)

    def on_update(self, update: Update) -> None:
        """Show an update, and do what the flags want at it."""
        if self.args.synchronize_step and self.device.type != 'cpu':
            torch.accelerator.synchronize()
        self.progress.on_update(update.number, update.terms, update.rate, update.lr)
        if self.args.save_images and update.terms is not None and utils.is_primary(self.args):
            path = self.folder.path / f'train-batch-{update.number}.jpg'
            save_batch(update.images, self.args.a2aug_branches, path)

    def recover(self, epoch: int, update: int) -> None:
        """Keep a checkpoint in the middle of an epoch; a resume from it begins that epoch again."""
        record = self._record(epoch - 1)
        # The workers are ahead of the update, and a resume begins their epoch again.
        state = self._state(with_workers=False)
        if utils.is_primary(self.args):
            self.folder.save_recovery({**state, 'a2aug': record}, epoch, update)

    def end_epoch(self, epoch: int, terms: dict[str, float], loader: Any, datasets: list[Any]) -> float:
        """Judge every branch, keep the epoch, show it; the metric that it is judged by.

        Args:
            terms: Mean loss terms of the epoch.
            loader: Of validation images, or None.
            datasets: Which count the broken images that they skip.

        Raises:
            FloatingPointError: The weights, or the losses of all branches, are not finite.
        """
        record = self._judge(epoch, loader)
        metric = terms['loss']
        if record['metrics']:
            metric = record['metrics'][record['best_branch']][self.args.eval_metric]
        row = summary_row(epoch, terms, record['metrics'], record['mu'], record['best_branch'], self.step.lr)
        state = self._state()
        num_skipped = self._count_skipped(datasets)
        if utils.is_primary(self.args):
            model = self.step.task.get_eval_model(ema=record['judged_ema'])
            self.folder.save(self._as_built(model), state, row, record, metric)
            self.log(row)
            self._show(record, terms, num_skipped)
        return metric

    def _judge(self, epoch: int, loader: Any) -> dict[str, Any]:
        args, record = self.args, self._record(epoch)
        model = self.step.task.get_eval_model(ema=record['judged_ema']).eval()
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise FloatingPointError(f'the weights are not finite after epoch {epoch}')
        if loader is None:
            return record
        metrics = evaluate(
            partial(branch_logits, model), torch.tensor(record['mu']), loader, device=self.device,
            autocast=self.step.autocast, channels_last=args.channels_last, dtype=model_dtype(args))
        sign = -1 if args.eval_metric == 'loss' else 1
        num_judged = 1 if args.a2aug_shared_bn else len(record['mu'])
        finite = [branch for branch in range(num_judged) if math.isfinite(metrics[branch]['loss'])]
        if not finite:
            raise FloatingPointError(f'the validation loss is not finite after epoch {epoch}')
        # Of equal branches the one with the lower loss.
        best_branch = max(
            finite, key=lambda branch: (sign * metrics[branch][args.eval_metric], -metrics[branch]['loss']))
        return {**record, 'metrics': metrics, 'best_branch': best_branch}

    def _record(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint says of the run, before any image is judged."""
        args, task = self.args, self.step.task
        judged_ema = args.model_ema and not args.model_ema_force_cpu
        mu = task.mu(judged_ema) if isinstance(task, A2AugTask) else torch.ones(1)
        # Without validation images the paper's observation must do: the stronger branch has the larger weight
        # (Table 6).
        best_branch = 0 if args.a2aug_shared_bn else int(mu.argmax())
        return dict(
            epoch=epoch, num_branches=args.a2aug_branches, norm=args.a2aug_norm, shared_bn=args.a2aug_shared_bn,
            judged_ema=judged_ema, is_lr_computed=args.is_lr_computed, mu=mu.tolist(),
            policies=args.a2aug_policies or [args.aa], metrics=None,
            best_branch=best_branch, config=self.config, data_config=self.data_config)

    def _state(self, with_workers: bool = True) -> dict[str, Any]:
        """Tensors, random state and arguments of a checkpoint; every rank must call this."""
        step = self.step
        rng = gather_rng_states(self.workers.read() if self.workers is not None and with_workers else None)
        return {**training_state(step.task, step.optimizer, step.lr_scheduler, step.loss_scaler),
                'arch': self.args.model, 'args': self.run_args, 'rng': rng}

    def _as_built(self, model: nn.Module) -> nn.Module:
        """The model as timm builds it, where ``--torchscript`` or ``--split-bn`` has made something else of it."""
        if not (self.args.torchscript or self.args.split_bn):
            return model
        # Norms of the other splits serve training alone.
        weights = {key: value for key, value in utils.get_state_dict(model).items() if '.aux_bn.' not in key}
        with torch.random.fork_rng(devices=[]):  # initial weights, drawn for nothing
            built = build_model(self.config)
        built.load_state_dict(weights)
        return built

    def _count_skipped(self, datasets: list[Any]) -> int:
        """Number of broken images since the last call, over all ranks."""
        count = sum(dataset.take_num_skipped() for dataset in datasets if hasattr(dataset, 'take_num_skipped'))
        count = torch.tensor(count, device=self.device)
        if dist.is_initialized():
            dist.all_reduce(count)
        return int(count)

    def _show(self, record: dict[str, Any], terms: dict[str, float], num_skipped: int) -> None:
        """Print the epoch's line and its table of branches."""
        self.progress.pause()
        title = f"epoch {record['epoch'] + 1}/{self.progress.num_epochs}  train loss {terms['loss']:.4f}"
        if num_skipped:
            title += f'  skipped {num_skipped} broken image{"s" if num_skipped > 1 else ""}'
        if record['metrics'] is None:
            print(title)
            return
        labels = [policy or '' for policy in record['policies']]
        if record['shared_bn']:
            labels = ['all policies, shared batch norm']
        print_table(title, branch_table(labels, record['metrics'], record['mu'], record['best_branch']))

    def report(self) -> None:
        """Say what came out and how to load it."""
        args, keeper = self.args, self.folder.keeper
        if not utils.is_primary(args) or keeper.best_epoch is None:
            return
        row = next(row for row in self.folder.history if row['epoch'] == keeper.best_epoch)
        branch = row.get('best_branch', 0)
        policy = f' ({args.a2aug_policies[branch]})' if args.a2aug_branches > 1 and not args.a2aug_shared_bn else ''
        source = ''.join(f' {name} {value}' for name, value in (
            ('--data-dir', args.data_dir), ('--dataset', args.dataset),
            ('--split', args.val_split if args.val_split != 'validation' else '')) if value)
        export, architecture = self.folder.export_path, self.config['architecture']
        print(f"""
Best: branch {branch}{policy}, {args.eval_metric} {keeper.best_metric:.4g} at epoch {keeper.best_epoch + 1}
Exported to {export}; load it with timm, by file with this package, or judge all branches again:

    {load_line(architecture, export)}
    timm.create_model('{architecture}', pretrained_file='{export}/model.safetensors')  # after import a2aug_timm
    python validate.py{source} --checkpoint {self.folder.last_path} --branch all""")

"""A training run: its work after an update, after an epoch (evaluate, save, print) and at the end."""
import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from timm import utils
from torch import distributed as dist
from torch import nn

from ..branches import num_branches_of
from ..cli.console import RunProgress, branch_labels, branch_table, print_table
from ..cli.resolve import dtype_of
from ..engine.checkpoint import read_checkpoint, state_dict_of, training_state
from ..engine.epoch import OptimizerStep, TrainedEpoch, Update, evaluate
from ..engine.process import Process
from ..engine.random_state import RememberingCollate, gather_rng_states
from ..engine.record import CheckpointRecord
from ..export import create_from_config, load_line
from ..logits import branch_logits, resize
from ..task import A2AugTask
from .model import owned_by_branches
from .run_folder import RunFolder, summary_row
from .tracking import save_batch

_METRICS = ('top1', 'top5', 'loss')


@dataclass
class Run:
    """State that the epochs of a run share.

    Attributes:
        args: All arguments; ``run_args`` are those that belong to the run and not to this invocation.
        config: Description of the plain model, see ``model_config``.
        workers: Random states of plain training's workers.
        log: Receives the row of each epoch's summary.
    """
    args: argparse.Namespace
    folder: RunFolder
    step: OptimizerStep
    progress: RunProgress
    process: Process
    run_args: dict[str, Any]
    config: dict[str, Any]
    data_config: dict[str, Any]
    workers: RememberingCollate | None = None
    log: Callable[[dict[str, Any]], None] = field(default=lambda _: None)
    # Counted since the last row of the summary; with --val-interval some epochs have no row.
    _num_views: int = field(default=0, init=False)
    _seconds: float = field(default=0., init=False)

    def on_update(self, update: Update) -> None:
        """Print the progress of an update, and save a picture of its batch if asked for."""
        if self.args.synchronize_step and self.process.device.type != 'cpu':
            torch.accelerator.synchronize()
        self.progress.on_update(update.number, update.terms, update.rate, update.lr)
        if self.args.save_images and update.terms is not None and self.process.is_primary:
            path = self.folder.path / f'train-batch-{update.number}.jpg'
            save_batch(update.images, self.num_views_in(self.progress.epoch), path)

    def num_views_in(self, epoch: int) -> int:
        """Number of views per image in an epoch."""
        if self.args.a2aug_branches == 1 or not self.has_started(epoch):
            return 1
        return self.args.a2aug_views

    def recover(self, epoch: int, update: int) -> None:
        """Save a checkpoint in the middle of an epoch; a resume from it restarts that epoch."""
        record = self._record(epoch - 1)
        # The workers are ahead of the update, and a resume restarts their epoch.
        state = self._state(with_workers=False)
        if self.process.is_primary:
            self.folder.save_recovery({**state, **record.to_entry()}, epoch, update)

    def end_epoch(self, epoch: int, trained: TrainedEpoch, loader: Any, datasets: Sequence[Any]) -> float | None:
        """Evaluate every branch, save the epoch and print it.

        ``--val-interval`` skips epochs, but not the last.

        Args:
            loader: Loader of validation images, or None.
            datasets: Data sets, which count the broken images that they skip.

        Returns:
            Metric of the epoch; None for a skipped epoch.

        Raises:
            FloatingPointError: The weights, or the losses of all branches, are not finite.
        """
        self._num_views += trained.num_images * self.num_views_in(epoch)
        self._seconds += trained.seconds
        if (epoch + 1) % self.args.val_interval and epoch + 1 < self.progress.num_epochs:
            return None
        record = self._judge(epoch, loader)
        metric = trained.terms['loss']
        if record.metrics:
            metric = record.metrics[record.best_branch][self.args.eval_metric]
        row = summary_row(
            epoch, trained.terms, record.metrics, record.mu, record.best_branch, self.step.lr,
            train_views=self._num_views, train_seconds=round(self._seconds, 3))
        self._num_views, self._seconds = 0, 0.
        state = self._state()
        num_skipped = self._count_skipped(datasets)
        if self.process.is_primary:
            self.folder.save(self._as_built(self._judged_model(record)), state, row, record, metric)
            self.log(row)
            self._show(record, trained.terms, num_skipped)
        return metric

    def _judge(self, epoch: int, loader: Any) -> CheckpointRecord:
        args, record = self.args, self._record(epoch)
        model = self._judged_model(record).eval()
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise FloatingPointError(f'the weights are not finite after epoch {epoch}')
        if loader is None:
            return record
        metrics = self._metrics(model, epoch, record.mu, loader)
        sign = -1 if args.eval_metric == 'loss' else 1
        num_judged = record.num_model_branches
        finite = [branch for branch in range(num_judged) if math.isfinite(metrics[branch]['loss'])]
        if not finite:
            raise FloatingPointError(f'the validation loss is not finite after epoch {epoch}')
        # Among equal branches, the lower loss decides.
        best_branch = max(
            finite, key=lambda branch: (sign * metrics[branch][args.eval_metric], -metrics[branch]['loss']))
        return replace(record, metrics=metrics, best_branch=best_branch)

    def _judged_model(self, record: CheckpointRecord) -> nn.Module:
        """The model that is evaluated and exported: the EMA's, if it is on the device, or the trained one."""
        model = self.step.task.get_eval_model(ema=record.judged_ema)
        assert model is not None
        return model

    def _metrics(self, model: nn.Module, epoch: int, mu: list[float], loader: Any) -> list[dict[str, float]]:
        """Metrics of every branch and the ensemble."""
        predict = partial(branch_logits, model, sizes=self.args.a2aug_branch_sizes)
        if self.has_started(epoch) or self.args.a2aug_branch_sizes or len(mu) == 1:
            return self._evaluate(predict, mu, loader)
        # All branches are copies of branch 0, so their metrics, and those of the ensemble, are equal.
        first, = self._evaluate(partial(predict, branches=[0]), [1.], loader)
        return [first] * (1 if num_branches_of(model) == 1 else len(mu) + 1)

    def has_started(self, epoch: int) -> bool:
        """Whether all branches are trained in an epoch, or branch 0 alone (``--a2aug-start-epoch``)."""
        return epoch >= self.args.a2aug_start_epoch

    def _evaluate(self, predict: Callable[..., Any], mu: list[float], loader: Any) -> list[dict[str, float]]:
        return evaluate(
            predict, torch.tensor(mu), loader, device=self.process.device, autocast=self.step.autocast,
            channels_last=self.args.channels_last, dtype=dtype_of(self.args.model_dtype))

    def _record(self, epoch: int) -> CheckpointRecord:
        """Record of the run, before any image is evaluated."""
        args, task = self.args, self.step.task
        judged_ema = args.model_ema and not args.model_ema_force_cpu
        mu = task.mu(judged_ema) if isinstance(task, A2AugTask) else torch.ones(1)
        # Without validation images, the largest weight decides: in the paper (Table 6) it is the best branch's.
        own = owned_by_branches(args)
        best_branch = 0 if own == 'nothing' else int(mu.argmax())
        return CheckpointRecord(
            epoch=epoch, num_branches=args.a2aug_branches, own=own, branch_sizes=args.a2aug_branch_sizes,
            judged_ema=judged_ema, is_lr_computed=args.is_lr_computed, mu=mu.tolist(),
            policies=args.a2aug_policies or [args.aa], metrics=None, best_branch=best_branch,
            config=self.config, data_config=self.data_config)

    def _state(self, with_workers: bool = True) -> dict[str, Any]:
        """Tensors, random state and arguments for a checkpoint; every rank must call this."""
        step = self.step
        rng = gather_rng_states(self.workers.read() if self.workers is not None and with_workers else None)
        return {**training_state(step.task, step.optimizer, step.lr_scheduler, step.loss_scaler),
                'arch': self.args.model, 'args': self.run_args, 'rng': rng}

    def _as_built(self, model: nn.Module) -> nn.Module:
        """The model as timm builds it, also after ``--torchscript`` or ``--split-bn``."""
        if not (self.args.torchscript or self.args.split_bn):
            return model
        # The norms of the other splits are only needed in training.
        weights = {key: value for key, value in utils.get_state_dict(model).items() if '.aux_bn.' not in key}
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
            built = create_from_config(self.config)
        built.load_state_dict(weights)
        return built

    def _count_skipped(self, datasets: Sequence[Any]) -> int:
        """Number of broken images that all ranks skipped since the last call."""
        count = sum(dataset.take_num_skipped() for dataset in datasets if hasattr(dataset, 'take_num_skipped'))
        count = torch.tensor(count, device=self.process.device)
        if dist.is_initialized():
            dist.all_reduce(count)
        return int(count)

    def _show(self, record: CheckpointRecord, terms: dict[str, float], num_skipped: int) -> None:
        """Print the epoch's line and its table of branches."""
        self.progress.pause()
        title = f"epoch {record.epoch + 1}/{self.progress.num_epochs}  train loss {terms['loss']:.4f}"
        if num_skipped:
            title += f'  skipped {num_skipped} broken image{"s" if num_skipped > 1 else ""}'
        if record.metrics is None:
            print(title)
            return
        labels = branch_labels(record.policies, record.branch_sizes)
        if record.own == 'nothing':
            labels = ['all policies, shared batch norm']
        metrics = record.metrics
        if not self.has_started(record.epoch):
            title += f'  (branches start at epoch {self.args.a2aug_start_epoch + 1})'
            labels, metrics = labels[:1], metrics[:1]
        print_table(title, branch_table(labels, metrics, record.mu, record.best_branch))

    def finish(self, loader: Any) -> None:
        """Evaluate the chosen branch on the test images, if there are any, and print and save the result.

        Every rank must call this.
        """
        args, keeper = self.args, self.folder.keeper
        row = next((row for row in self.folder.history if row['epoch'] == keeper.best_epoch), None)
        test = None if loader is None else self._test(row, loader)
        if not self.process.is_primary or row is None:
            return
        branch = row.get('best_branch', 0)
        policy = branch_labels(args.a2aug_policies or [args.aa], args.a2aug_branch_sizes)[branch]
        result = {
            'chosen_on': self._chosen_on(), 'eval_metric': args.eval_metric, 'epoch': row['epoch'], 'branch': branch,
            'policy': None if args.a2aug_shared_bn else policy,
            'chosen_with': {name: row[f'eval_{name}'] for name in _METRICS if f'eval_{name}' in row},
            'test_split': args.val_split if test else None, 'test': test}
        self.folder.save_result(result)
        self._report(result)

    def _chosen_on(self) -> str:
        args = self.args
        if args.holdout is not None:
            return f'{args.holdout} held out of {args.train_split}'
        return args.val_split or 'training loss'

    def _test(self, row: dict[str, Any] | None, loader: Any) -> dict[str, float] | None:
        """Metrics of the export on the test images; only the first rank has the export and its row of the history."""
        branch = torch.tensor(-1 if row is None else row.get('best_branch', 0), device=self.process.device)
        model = create_from_config(self.config)
        if row is not None:
            model.load_state_dict(state_dict_of(read_checkpoint(self.folder.export_path / 'model.safetensors')))
        model.to(self.process.device, dtype_of(self.args.model_dtype)).eval()
        if dist.is_initialized():
            for tensor in (branch, *model.state_dict().values()):
                dist.broadcast(tensor, src=0)
        if branch < 0:
            return None
        size = self.args.a2aug_branch_sizes[branch] if self.args.a2aug_branch_sizes else None
        metrics = self._evaluate(lambda images: branch_logits(model, resize(images, size)), [1.], loader)[0]
        return {name: metrics[name] for name in _METRICS}

    def _report(self, result: dict[str, Any]) -> None:
        """Print the chosen branch, its metrics, and how to load it."""
        args, export, architecture = self.args, self.folder.export_path, self.config['architecture']
        source = ''.join(f' {name} {value}' for name, value in (
            ('--data-dir', args.data_dir), ('--dataset', args.dataset),
            ('--split', args.val_split if args.val_split != 'validation' else '')) if value)
        policy = f" ({result['policy']})" if args.a2aug_branches > 1 and result['policy'] else ''
        chosen_on = f", chosen on {result['chosen_on']}" if args.holdout is not None else ''
        print(f"""
Best: branch {result['branch']}{policy}, {args.eval_metric} {self.folder.keeper.best_metric:.4g} at epoch """
              f"{result['epoch'] + 1}{chosen_on}")
        if result['test']:
            metrics = ', '.join(f'{name} {value:.4g}' for name, value in result['test'].items())
            print(f"On {result['test_split']}, which had no part in the choice: {metrics}")
        print(f"""\
Exported to {export}. Load it with timm, by file with this package, or evaluate all branches again:

    {load_line(architecture, export)}
    timm.create_model('{architecture}', pretrained_file='{export}/model.safetensors')  # after import a2aug_timm
    python validate.py{source} --checkpoint {self.folder.last_path} --branch all""")

#!/usr/bin/env python3
"""Train a timm model on one policy, or jointly on N of them with A²-Aug, and export the best branch.

    python train.py -c hparams/quickstart.yaml
    ./distributed_train.sh 8 --a2aug-branches 3 --model resnet50 --data-dir /data/imagenet -b 128 --amp --channels-last

A run's folder holds args.yaml, summary.csv, checkpoints and export/, a plain timm model of the best branch.
"""
import argparse
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm import utils
from timm.data import resolve_input_data_config
from timm.task import TrainingTask
from torch import distributed as dist

from a2aug_timm import A2AugTask
from a2aug_timm.branches import branch_logits
from a2aug_timm.checkpoint import (
    gather_rng_states,
    load_training_state,
    read_checkpoint,
    set_rng_state,
    training_state,
)
from a2aug_timm.cli.arguments import train_parser
from a2aug_timm.cli.build import (
    build_amp,
    build_datasets,
    build_loaders,
    build_mixup,
    build_model,
    build_optimizer,
    build_task,
    init_device,
    start_schedule,
)
from a2aug_timm.cli.checks import NOT_OF_THE_RUN, adopt_run, check_train
from a2aug_timm.cli.config import StrictParser
from a2aug_timm.cli.console import RunProgress, branch_table, print_table
from a2aug_timm.datasets import names_of_classes
from a2aug_timm.engine import OptimizerStep, evaluate, train_one_epoch
from a2aug_timm.export import model_config
from a2aug_timm.run_folder import RunFolder, choose_folder
from a2aug_timm.summary import summary_row
from a2aug_timm.views import set_epoch, start_workers

_logger = logging.getLogger('train')


def main(argv: list[str] | None = None) -> None:
    parser = train_parser()
    with parser.user_errors():
        args, checkpoint, path = parse(parser, argv)
    folder = RunFolder(path, args.checkpoint_hist, decreasing=args.eval_metric == 'loss')
    run_args = {name: value for name, value in vars(args).items() if name not in NOT_OF_THE_RUN}
    # What timm raises for settings that do not go together comes before any epoch, and is the user's to mend.
    with parser.user_errors(RuntimeError, TypeError, KeyError, AssertionError, IndexError, OSError, ImportError):
        device = init_device(args)
        model = build_model(args, checkpoint, device)
        data_config = resolve_input_data_config(model, vars(args), verbose=utils.is_primary(args))
        train_set, eval_set = build_datasets(args, data_config, model.num_classes)
        collate, mix = build_mixup(args, model.num_classes)
        loader, eval_loader = build_loaders(args, data_config, device, train_set, eval_set, collate)
        config = model_config(model, data_config, names_of_classes(train_set.dataset))
        task = build_task(args, model, device)
        optimizer, lr_scheduler, num_epochs = build_optimizer(args, task, loader)
        autocast, loss_scaler = build_amp(args, device)
        num_updates = -(-len(loader) // args.grad_accum_steps)
        start_epoch = args.start_epoch or 0
        if checkpoint is not None:
            start_epoch = checkpoint.get('epoch', -1) + 1 if args.start_epoch is None else args.start_epoch
            load_training_state(checkpoint, task, None if args.no_resume_opt else optimizer, lr_scheduler, loss_scaler)
        start_schedule(args, lr_scheduler, start_epoch, num_updates, (checkpoint or {}).get('metric'))
        if checkpoint is not None:
            resume_random_state(args, checkpoint, loader, eval_loader)
        if args.distributed:
            task.prepare_distributed(
                device_ids=None if device.type == 'cpu' else [device],
                **({'broadcast_buffers': False} if args.no_ddp_bb else {}))
        if utils.is_primary(args):
            run_args.update(lr=args.lr, lr_base_scale=args.lr_base_scale, num_classes=model.num_classes,
                            in_chans=data_config['input_size'][0])
            folder.begin(run_args, checkpoint, Path(args.resume).parent, start_epoch)

    step = OptimizerStep(task, optimizer, lr_scheduler=lr_scheduler, loss_scaler=loss_scaler,
                         clip_grad=args.clip_grad, clip_mode=args.clip_mode)
    progress = RunProgress(num_epochs, num_updates, start_epoch, enabled=utils.is_primary(args))
    with progress, exit_on_bad_loss(folder):
        for epoch in range(start_epoch, num_epochs):
            set_epoch(loader, epoch)
            if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
                (mix or loader).mixup_enabled = False
            progress.start_epoch(epoch)
            terms = train_one_epoch(
                step, loader, epoch=epoch, device=device, autocast=autocast, mix=mix,
                grad_accum_steps=args.grad_accum_steps, channels_last=args.channels_last,
                log_interval=args.log_interval, on_update=progress.on_update)
            synchronize_bn(args, task)
            metric = None
            if (epoch + 1) % args.val_interval == 0 or epoch + 1 == num_epochs:
                record = judge(args, task, eval_loader, device, autocast, epoch)
                record.update(config=config, data_config=data_config)
                metric = save(args, folder, record, terms, step, run_args)
                show(args, progress, record, terms, num_epochs, count_skipped(device, train_set, eval_set))
            if lr_scheduler is not None:
                lr_scheduler.step(epoch + 1, metric)
    report(args, folder, config)
    if args.distributed:
        dist.destroy_process_group()


def parse(
        parser: StrictParser,
        argv: list[str] | None,
) -> tuple[argparse.Namespace, dict[str, Any] | None, Path]:
    """Arguments that have passed all checks, the checkpoint that is resumed if there is one, the run's folder."""
    args, explicit = parser.parse(argv)
    checkpoint = read_checkpoint(args.resume) if args.resume else None
    if checkpoint is not None:
        adopt_run(args, explicit, checkpoint)
    if not args.val_split:
        args.eval_metric = 'loss'
    check_train(args, explicit, {action.dest: action.default for action in parser._actions})
    name = timm.models.safe_model_name(args.model)
    if args.a2aug_branches > 1:
        name += f'-a2aug{args.a2aug_branches}'
    resumed = Path(args.resume).parent if args.resume and not explicit & {'output', 'experiment'} else None
    return args, checkpoint, choose_folder(args.output or 'output/train', args.experiment, name, resumed)


def resume_random_state(args: argparse.Namespace, checkpoint: dict[str, Any], *loaders: Any) -> None:
    """Put the random generators of all ranks where the checkpoint left them."""
    if args.a2aug_branches == 1:
        # Workers of plain training draw from streams of their own, which must not be the first epoch's again.
        utils.random_seed(args.seed + 1000 * (checkpoint.get('epoch', 0) + 1), args.rank)
    for loader in filter(None, loaders):
        start_workers(loader)
    states = checkpoint.get('rng', [])
    if len(states) == args.world_size:
        set_rng_state(states[args.rank])
    else:
        _logger.warning('The random state of %d ranks cannot continue on %d.', len(states), args.world_size)
    _logger.info("Resumed from '%s'", args.resume)


def synchronize_bn(args: argparse.Namespace, task: TrainingTask) -> None:
    """Make the running statistics of all ranks equal, as ``--dist-bn`` says."""
    if not args.distributed or args.sync_bn or not args.dist_bn:
        return
    for ema in (False, True):
        module = task.get_trainable_module(ema=ema)
        if module is not None and not (ema and args.model_ema_force_cpu):
            utils.distribute_bn(module, args.world_size, args.dist_bn == 'reduce')


def judge(
        args: argparse.Namespace,
        task: TrainingTask,
        loader: Any,
        device: torch.device,
        autocast: Callable,
        epoch: int,
) -> dict[str, Any]:
    """Evaluate every branch; what the checkpoint says of it.

    Raises:
        FloatingPointError: The weights, or the losses of all branches, are not finite.
    """
    judged_ema = args.model_ema and not args.model_ema_force_cpu
    mu = task.mu(judged_ema) if isinstance(task, A2AugTask) else torch.ones(1)
    num_judged = 1 if args.a2aug_shared_bn else len(mu)
    model = task.get_eval_model(ema=judged_ema).eval()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError(f'the weights are not finite after epoch {epoch}')
    metrics = None
    # Without validation images the paper's observation must do: the stronger branch has the larger weight (Table 6).
    best_branch = int(mu[:num_judged].argmax())
    if loader is not None:
        metrics = evaluate(
            partial(branch_logits, model), mu, loader, device=device, autocast=autocast,
            channels_last=args.channels_last)
        sign = -1 if args.eval_metric == 'loss' else 1
        finite = [branch for branch in range(num_judged) if math.isfinite(metrics[branch]['loss'])]
        if not finite:
            raise FloatingPointError(f'the validation loss is not finite after epoch {epoch}')
        # Of equal branches the one with the lower loss.
        best_branch = max(
            finite, key=lambda branch: (sign * metrics[branch][args.eval_metric], -metrics[branch]['loss']))
    return dict(
        epoch=epoch, num_branches=args.a2aug_branches, shared_bn=args.a2aug_shared_bn, judged_ema=judged_ema,
        mu=mu.tolist(),
        policies=args.a2aug_policies or [args.aa], metrics=metrics, best_branch=best_branch)


def save(
        args: argparse.Namespace,
        folder: RunFolder,
        record: dict[str, Any],
        terms: dict[str, float],
        step: OptimizerStep,
        run_args: dict[str, Any],
) -> float:
    """Keep the epoch in the run's folder; returns the metric that it is judged by."""
    metric = terms['loss']
    if record['metrics']:
        metric = record['metrics'][record['best_branch']][args.eval_metric]
    rng = gather_rng_states()
    if utils.is_primary(args):
        row = summary_row(
            record['epoch'], terms, record['metrics'], record['mu'], record['best_branch'], step.lr)
        state = training_state(step.task, step.optimizer, step.lr_scheduler, step.loss_scaler)
        state.update(arch=args.model, args=run_args, rng=rng)
        folder.save(step.task.get_eval_model(ema=record['judged_ema']), state, row, record, metric)
    return metric


def show(
        args: argparse.Namespace,
        progress: RunProgress,
        record: dict[str, Any],
        terms: dict[str, float],
        num_epochs: int,
        num_skipped: int,
) -> None:
    """Print the epoch's line and its table of branches."""
    if not utils.is_primary(args):
        return
    progress.pause()
    title = f"epoch {record['epoch'] + 1}/{num_epochs}  train loss {terms['loss']:.4f}"
    if num_skipped:
        title += f'  skipped {num_skipped} broken image{"s" if num_skipped > 1 else ""}'
    if record['metrics'] is None:
        print(title)
        return
    labels = ['all policies, shared batch norm'] if record['shared_bn'] else [p or '' for p in record['policies']]
    print_table(title, branch_table(labels, record['metrics'], record['mu'], record['best_branch']))


def count_skipped(device: torch.device, *datasets: Any) -> int:
    """Number of broken images since the last call, over all ranks."""
    count = torch.tensor(sum(dataset.take_num_skipped() for dataset in datasets if dataset), device=device)
    if dist.is_initialized():
        dist.all_reduce(count)
    return int(count)


@contextmanager
def exit_on_bad_loss(folder: RunFolder) -> Iterator[None]:
    """End the program with code 1 and one sentence if the loss is not finite."""
    try:
        yield
    except FloatingPointError as error:
        good = f'the last good checkpoint is {folder.last_path}' if folder.last_path.exists() else 'no checkpoint yet'
        _logger.error('%s; %s', error, good)
        sys.exit(1)


def report(args: argparse.Namespace, folder: RunFolder, config: dict[str, Any]) -> None:
    """Say what came out and how to load it."""
    keeper = folder.keeper
    if not utils.is_primary(args) or keeper.best_epoch is None:
        return
    row = next(row for row in folder.history if row['epoch'] == keeper.best_epoch)
    branch = row.get('best_branch', 0)
    policy = f' ({args.a2aug_policies[branch]})' if args.a2aug_branches > 1 and not args.a2aug_shared_bn else ''
    source = ''.join(f' {name} {value}' for name, value in (
        ('--data-dir', args.data_dir), ('--dataset', args.dataset),
        ('--split', args.val_split if args.val_split != 'validation' else '')) if value)
    export, architecture = folder.export_path, config['architecture']
    print(f"""
Best: branch {branch}{policy}, {args.eval_metric} {keeper.best_metric:.4g} at epoch {keeper.best_epoch + 1}
Exported to {export}; load it with timm alone, by file with this package, or judge all branches again:

    timm.create_model('local-dir:{export}', pretrained=True)
    timm.create_model('{architecture}', pretrained_file='{export}/model.safetensors')  # after import a2aug_timm
    python validate.py{source} --checkpoint {folder.last_path} --branch all""")


if __name__ == '__main__':
    utils.setup_default_logging()
    main()

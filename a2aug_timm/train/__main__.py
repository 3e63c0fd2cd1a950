"""Train a timm model on one policy, or jointly on N of them with A²-Aug, and export the best branch.

    python train.py -c hparams/quickstart.yaml
    ./distributed_train.sh 8 --a2aug-branches 3 --model resnet50 --data-dir /data/imagenet -b 128 --amp --channels-last

The folder of a run holds args.yaml, summary.csv, checkpoints and export/, a plain timm model of the best branch.
"""
import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import timm
from timm import utils
from timm.data import resolve_input_data_config
from timm.task import TrainingTask
from torch import distributed as dist
from torch import nn

from ..branches import networks_of
from ..cli.config import StrictParser, user_error_from
from ..cli.console import RunProgress
from ..cli.resolve import dtype_of
from ..data.datasets import names_of_classes
from ..data.draw import BranchDraw
from ..data.views import set_epoch
from ..engine.checkpoint import load_training_state, read_checkpoint
from ..engine.epoch import Hooks, OptimizerStep, train_one_epoch
from ..engine.process import Process, start_process
from ..engine.random_state import remember_workers, set_rng_state, start_workers
from ..export import model_config
from ..task import A2AugTask
from .arguments import train_parser
from .checks import check_train
from .data import Datasets, build_datasets, build_draw, build_loaders, build_mixup
from .model import build_model, set_backends
from .resolve import resolve, resolve_lr
from .resume import args_of_run, check_resume, folder_of_run, output_of
from .run import Run
from .run_folder import RunFolder, choose_folder
from .task import (
    build_amp,
    build_loss_scale,
    build_optimizer,
    build_task,
    compile_task,
    mean_batch_size,
    start_schedule,
)
from .tracking import command_and_versions, start_wandb

_logger = logging.getLogger('train')


class Data(NamedTuple):
    """Images of a run, ready to be iterated.

    Attributes:
        config: Size and normalisation of the images.
        datasets: Images that are trained, chosen and tested on.
        train: Loader of training batches; ``eval`` and ``test`` are loaders or None.
        mixing: Switches mixup off, in the collate or on the device; None without mixup.
        mix: Mixup on the device, where the collate does not mix.
    """
    config: dict[str, Any]
    datasets: Datasets
    train: Any
    eval: Any
    test: Any
    mixing: Any
    mix: Any


class Training(NamedTuple):
    """Everything that changes the weights: the step, its schedule, and the epochs that it is for."""
    step: OptimizerStep
    num_updates: int
    start_epoch: int
    num_epochs: int


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    parser = train_parser()
    with parser.user_errors():
        args, checkpoint, folder = read_arguments(parser, argv)
        process = start_process(args.device)
        set_backends(args, process)
        model = build_model(args, checkpoint, process)
        data = build_data(args, model, process)
        args = resolve_lr(args, mean_batch_size(args, data.train), process.world_size)
        training = build_training(args, checkpoint, model, data, process)
        run = begin_run(args, checkpoint, folder, model, data, training, process)
    train(args, data, training, run)
    run.finish(data.test)
    if process.is_distributed:
        dist.destroy_process_group()


def read_arguments(
        parser: StrictParser,
        argv: list[str] | None,
) -> tuple[argparse.Namespace, dict[str, Any] | None, RunFolder]:
    """Parse, resolve and check the arguments; read the checkpoint to resume, and choose the folder of the run.

    Raises:
        ValueError: The arguments contradict each other, the checkpoint, or what is installed.
    """
    args, explicit = parser.parse(argv)
    checkpoint = read_checkpoint(args.resume) if args.resume else None
    args = resolve(args, explicit, checkpoint)
    if checkpoint is not None:
        check_resume(args, explicit, checkpoint)
    check_train(args, explicit, parser.changed(args))
    name = timm.models.safe_model_name(args.model)
    if args.a2aug_branches > 1:
        name += f'-a2aug{args.a2aug_branches}'
    path = choose_folder(output_of(args), args.experiment, name, folder_of_run(args, explicit, checkpoint))
    return args, checkpoint, RunFolder(path, args.checkpoint_hist, decreasing=args.eval_metric == 'loss')


def build_data(args: argparse.Namespace, model: nn.Module, process: Process) -> Data:
    """Open the images and build their loaders. Raises ``ValueError``."""
    with user_error_from(AssertionError, RuntimeError, what='the input settings do not go together'):
        data_config = resolve_input_data_config(networks_of(model)[0], vars(args), verbose=process.is_primary)
    num_classes = cast(int, model.num_classes)
    datasets = build_datasets(args, data_config, num_classes, process.rank)
    collate, mix = build_mixup(args, data_config, num_classes)
    loaders = build_loaders(args, data_config, model, process, datasets, collate)
    return Data(data_config, datasets, *loaders, mixing=mix or collate, mix=mix)


def build_training(
        args: argparse.Namespace,
        checkpoint: dict[str, Any] | None,
        model: nn.Module,
        data: Data,
        process: Process,
) -> Training:
    """Build task, optimizer and schedule, with the state of the checkpoint. Raises ``ValueError``."""
    task = build_task(args, model, data.config, process)
    num_updates = -(-len(data.train) // args.grad_accum_steps)
    optimizer, lr_scheduler, num_epochs = build_optimizer(args, task, num_updates)
    autocast, loss_scaler = build_amp(args, process.device)
    start_epoch = (checkpoint or {}).get('epoch', -1) + 1 if args.start_epoch is None else args.start_epoch
    if checkpoint is not None:
        load_training_state(checkpoint, task, None if args.no_resume_opt else optimizer, lr_scheduler, loss_scaler)
    start_schedule(args, lr_scheduler, start_epoch, num_updates, (checkpoint or {}).get('metric'))
    compile_task(args, task)
    if process.is_distributed:
        task.prepare_distributed(
            device_ids=None if process.device.type == 'cpu' else [process.device],
            **({'broadcast_buffers': False} if args.no_ddp_bb else {}))
    step = OptimizerStep(
        task, optimizer, autocast=autocast, loss_scale=build_loss_scale(args, data.train, process),
        lr_scheduler=lr_scheduler, loss_scaler=loss_scaler, clip_grad=args.clip_grad, clip_mode=args.clip_mode)
    return Training(step, num_updates, start_epoch, num_epochs)


def begin_run(
        args: argparse.Namespace,
        checkpoint: dict[str, Any] | None,
        folder: RunFolder,
        model: nn.Module,
        data: Data,
        training: Training,
        process: Process,
) -> Run:
    """Begin or continue the folder of the run, and restore the random state of a resumed run."""
    run_args = args_of_run(args, checkpoint)
    config = model_config(model, data.config, names_of_classes(data.datasets.train))
    workers = remember_workers(data.train) if args.a2aug_branches == 1 else None
    if process.is_primary:
        run_args.update(num_classes=model.num_classes, in_chans=data.config['input_size'][0])
        folder.begin(run_args, checkpoint, args.resume, training.start_epoch, origin=command_and_versions())
    progress = RunProgress(
        training.num_epochs, training.num_updates, training.start_epoch, enabled=process.is_primary)
    run = Run(args, folder, training.step, progress, process, run_args, config, data.config, workers)
    if args.log_wandb and process.is_primary:
        run.log = start_wandb(args, run_args, folder.path.name)
    if checkpoint is not None:
        # Last, since a folder that continues rebuilds its best model, which draws initial weights.
        resume_random_state(args, checkpoint, data, process)
    return run


def resume_random_state(
        args: argparse.Namespace,
        checkpoint: dict[str, Any],
        data: Data,
        process: Process,
) -> None:
    """Restore the random generators of this rank and of its workers."""
    states = checkpoint.get('rng', [])
    is_own = len(states) == process.world_size
    workers = states[process.rank].get('workers') if is_own else None
    if args.a2aug_branches == 1 and len(workers or ()) != args.workers:
        # The workers of plain training must not repeat the streams of the first epoch.
        utils.random_seed(args.seed + 1000 * (checkpoint.get('epoch', 0) + 1), process.rank)
    start_workers(data.train, workers)
    if data.eval is not None:
        start_workers(data.eval)
    if is_own:
        set_rng_state(states[process.rank])
    else:
        _logger.warning('The random state of %d ranks cannot continue on %d.', len(states), process.world_size)
    _logger.info("Resumed from '%s'", args.resume)


def train(args: argparse.Namespace, data: Data, training: Training, run: Run) -> None:
    """Train, evaluate and save every epoch."""
    step, draw = training.step, build_draw(args)
    with run.progress, exit_on_bad_loss(run.folder):
        for epoch in range(training.start_epoch, training.num_epochs):
            set_epoch(data.train, epoch)
            if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and data.mixing is not None:
                data.mixing.mixup_enabled = False
            run.progress.start_epoch(epoch)
            hooks = Hooks(
                run.on_update, args.log_interval, partial(run.recover, epoch), args.recovery_interval,
                on_batch=partial(draw_branches, draw, step.task, epoch, len(data.train)))
            trained = train_one_epoch(
                step, data.train, epoch=epoch, device=run.process.device, mix=data.mix,
                grad_accum_steps=args.grad_accum_steps, channels_last=args.channels_last,
                dtype=dtype_of(args.model_dtype), hooks=hooks)
            synchronize_bn(args, step.task, run.process)
            if isinstance(step.task, A2AugTask) and not run.has_started(epoch):
                step.task.synchronize_branches(step.optimizer)
            metric = run.end_epoch(epoch, trained, data.eval, data.datasets)
            if step.lr_scheduler is not None:
                step.lr_scheduler.step(epoch + 1, metric)


def draw_branches(draw: BranchDraw | None, task: TrainingTask, epoch: int, num_batches: int, batch: int) -> None:
    """Tell the task which branches the views of a batch belong to."""
    if draw is not None:
        assert isinstance(task, A2AugTask)
        task.draw_branches(draw.branches(epoch, batch, num_batches))


def synchronize_bn(args: argparse.Namespace, task: TrainingTask, process: Process) -> None:
    """Make the running statistics of all ranks equal, as ``--dist-bn`` says."""
    if not process.is_distributed or args.sync_bn or not args.dist_bn:
        return
    for ema in (False, True):
        module = task.get_trainable_module(ema=ema)
        if module is not None and not (ema and args.model_ema_force_cpu):
            utils.distribute_bn(module, process.world_size, args.dist_bn == 'reduce')


@contextmanager
def exit_on_bad_loss(folder: RunFolder) -> Iterator[None]:
    """End the program with code 1 and one sentence if the loss is not finite."""
    try:
        yield
    except FloatingPointError as error:
        good = f'the last good checkpoint is {folder.last_path}' if folder.last_path.exists() else 'no checkpoint yet'
        _logger.error('%s; %s', error, good)
        sys.exit(1)


def command() -> None:
    """Entry point of ``a2aug-train``: set up logging as timm's scripts do and run ``main``."""
    utils.setup_default_logging()
    main()


if __name__ == '__main__':
    command()

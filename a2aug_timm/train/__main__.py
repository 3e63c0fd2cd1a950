"""Train a timm model on one policy, or jointly on N of them with A²-Aug, and export the best branch.

    python train.py -c hparams/quickstart.yaml
    ./distributed_train.sh 8 --a2aug-branches 3 --model resnet50 --data-dir /data/imagenet -b 128 --amp --channels-last

A run's folder holds args.yaml, summary.csv, checkpoints and export/, a plain timm model of the best branch.
"""
import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm import utils
from timm.data import resolve_input_data_config
from timm.task import TrainingTask
from torch import distributed as dist

from ..branches import networks_of
from ..cli.config import StrictParser
from ..cli.console import RunProgress
from ..data.datasets import names_of_classes
from ..data.views import set_epoch
from ..engine.checkpoint import load_training_state, read_checkpoint
from ..engine.epoch import Hooks, OptimizerStep, train_one_epoch
from ..engine.random_state import remember_workers, set_rng_state, start_workers
from ..export import model_config
from .arguments import train_parser
from .checks import check_train
from .data import build_datasets, build_loaders, build_mixup
from .model import build_model, init_device, model_dtype
from .resume import adopt_run, args_of_run
from .run import Run
from .run_folder import RunFolder, choose_folder
from .task import build_amp, build_loss_scale, build_optimizer, build_task, compile_task, start_schedule
from .tracking import command_and_versions, start_wandb

_logger = logging.getLogger('train')


def main(argv: list[str] | None = None) -> None:
    parser = train_parser()
    with parser.user_errors():
        args, checkpoint, path = parse(parser, argv)
    folder = RunFolder(path, args.checkpoint_hist, decreasing=args.eval_metric == 'loss')
    run_args = args_of_run(args, checkpoint)
    # What timm raises for settings that do not go together comes before any epoch, and is the user's to mend.
    with parser.user_errors(
            RuntimeError, TypeError, KeyError, AssertionError, IndexError, AttributeError, OSError, ImportError):
        device = init_device(args)
        model = build_model(args, checkpoint, device)
        data_config = resolve_input_data_config(networks_of(model)[0], vars(args), verbose=utils.is_primary(args))
        datasets = build_datasets(args, data_config, model.num_classes)
        collate, mix = build_mixup(args, data_config, model.num_classes)
        loader, eval_loader, test_loader = build_loaders(args, data_config, model, device, datasets, collate)
        config = model_config(model, data_config, names_of_classes(datasets.train))
        workers = remember_workers(loader) if args.a2aug_branches == 1 else None
        task = build_task(args, model, data_config, device)
        optimizer, lr_scheduler, num_epochs = build_optimizer(args, task, loader)
        autocast, loss_scaler = build_amp(args, device)
        num_updates = -(-len(loader) // args.grad_accum_steps)
        start_epoch = (checkpoint or {}).get('epoch', -1) + 1 if args.start_epoch is None else args.start_epoch
        if checkpoint is not None:
            load_training_state(checkpoint, task, None if args.no_resume_opt else optimizer, lr_scheduler, loss_scaler)
        start_schedule(args, lr_scheduler, start_epoch, num_updates, (checkpoint or {}).get('metric'))
        compile_task(args, task)
        if args.distributed:
            task.prepare_distributed(
                device_ids=None if device.type == 'cpu' else [device],
                **({'broadcast_buffers': False} if args.no_ddp_bb else {}))
        if utils.is_primary(args):
            run_args.update(lr=args.lr, lr_base_scale=args.lr_base_scale, num_classes=model.num_classes,
                            in_chans=data_config['input_size'][0])
            folder.begin(run_args, checkpoint, args.resume, start_epoch, origin=command_and_versions())
        if checkpoint is not None:
            # At the end, since a folder that goes on builds its best model anew, which draws weights.
            resume_random_state(args, checkpoint, loader, eval_loader)

    step = OptimizerStep(
        task, optimizer, autocast=autocast, loss_scale=build_loss_scale(args, loader, device),
        lr_scheduler=lr_scheduler, loss_scaler=loss_scaler, clip_grad=args.clip_grad, clip_mode=args.clip_mode)
    progress = RunProgress(num_epochs, num_updates, start_epoch, enabled=utils.is_primary(args))
    run = Run(args, folder, step, progress, device, run_args, config, data_config, workers)
    if args.log_wandb and utils.is_primary(args):
        run.log = start_wandb(args, run_args, folder.path.name)
    with progress, exit_on_bad_loss(folder):
        for epoch in range(start_epoch, num_epochs):
            set_epoch(loader, epoch)
            stop_mixup(args, epoch, mix or collate)
            progress.start_epoch(epoch)
            hooks = Hooks(run.on_update, args.log_interval, partial(run.recover, epoch), args.recovery_interval)
            trained = train_one_epoch(
                step, loader, epoch=epoch, device=device, mix=mix, grad_accum_steps=args.grad_accum_steps,
                channels_last=args.channels_last, dtype=model_dtype(args), hooks=hooks)
            synchronize_bn(args, task)
            metric = run.end_epoch(epoch, trained, eval_loader, datasets)
            if lr_scheduler is not None:
                lr_scheduler.step(epoch + 1, metric)
    run.finish(test_loader)
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
    if not args.val_split and args.holdout is None:
        args.eval_metric = 'loss'
    check_train(args, explicit, {action.dest: action.default for action in parser._actions})
    name = timm.models.safe_model_name(args.model)
    if args.a2aug_branches > 1:
        name += f'-a2aug{args.a2aug_branches}'
    output = args.output or 'output/train'
    resumed = folder_of_run(args, explicit, checkpoint, Path(output) / args.experiment)
    return args, checkpoint, choose_folder(output, args.experiment, name, resumed)


def folder_of_run(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any] | None,
        named: Path,
) -> Path | None:
    """The folder that a resumed run goes on in: its own, unless it goes on from before its end or is named anew."""
    if checkpoint is None or 'a2aug' not in checkpoint or args.start_epoch is not None:
        return None
    path = Path(args.resume)
    is_named_anew = explicit & {'output', 'experiment'} and named.resolve() != path.parent.resolve()
    is_end = path.name == 'last.pth.tar' or path.name.startswith('recovery-')
    return path.parent if is_end and not is_named_anew else None


def resume_random_state(args: argparse.Namespace, checkpoint: dict[str, Any], loader: Any, eval_loader: Any) -> None:
    """Put the random generators of all ranks where the checkpoint left them."""
    states = checkpoint.get('rng', [])
    is_own = len(states) == args.world_size
    workers = states[args.rank].get('workers') if is_own else None
    if args.a2aug_branches == 1 and len(workers or ()) != args.workers:
        # The streams of plain training's workers must not be the first epoch's again.
        utils.random_seed(args.seed + 1000 * (checkpoint.get('epoch', 0) + 1), args.rank)
    start_workers(loader, workers)
    if eval_loader is not None:
        start_workers(eval_loader)
    if is_own:
        set_rng_state(states[args.rank])
    else:
        _logger.warning('The random state of %d ranks cannot continue on %d.', len(states), args.world_size)
    _logger.info("Resumed from '%s'", args.resume)


def stop_mixup(args: argparse.Namespace, epoch: int, mixing: Any) -> None:
    """Mix no more from ``--mixup-off-epoch`` on."""
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        mixing.mixup_enabled = False


def synchronize_bn(args: argparse.Namespace, task: TrainingTask) -> None:
    """Make the running statistics of all ranks equal, as ``--dist-bn`` says."""
    if not args.distributed or args.sync_bn or not args.dist_bn:
        return
    for ema in (False, True):
        module = task.get_trainable_module(ema=ema)
        if module is not None and not (ema and args.model_ema_force_cpu):
            utils.distribute_bn(module, args.world_size, args.dist_bn == 'reduce')


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

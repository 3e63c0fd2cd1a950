"""timm's flags by timm's names, defaults and meaning."""
import argparse

from timm.utils import ParseKwargs

from ...cli.flag_types import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, part_size
from ...cli.shared_arguments import INTERPOLATIONS, add_input, add_source

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none')


def add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Dataset parameters')
    add_source(group)
    group.add_argument('--train-split', metavar='NAME', default='train', help='train split')
    group.add_argument('--val-split', metavar='NAME', default='validation', help='validation split')
    group.add_argument('--holdout', type=part_size, default=None, metavar='N',
        help='choose branch and epoch on this many training images (or this share), held out and class-balanced; '
             'the validation split is then reported once, at the end')
    group.add_argument('--train-subset', type=part_size, default=None, metavar='N',
        help='train on this many of the training images (or this share), class-balanced and the same for every seed')
    group.add_argument('--train-num-samples', type=COUNT, default=None, metavar='N', help='length of a training stream')
    group.add_argument('--val-num-samples', type=COUNT, default=None, metavar='N', help='length of a validation stream')


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model parameters')
    add = group.add_argument
    add('--model', default='resnet50', metavar='MODEL', help='timm architecture')
    add('--pretrained', action='store_true', help="start from timm's pretrained weights")
    add('--pretrained-path', default=None, metavar='PATH',
        help='load this file as pretrained weights, adapting the head')
    add('--initial-checkpoint', default='', metavar='PATH', help='start from these weights')
    add('--resume', default='', metavar='PATH', help='resume a run from its checkpoint')
    add('--no-resume-opt', action='store_true', help='do not restore the optimizer')
    add_input(group)
    add('-b', '--batch-size', type=COUNT, default=128, metavar='N', help='images (not views) per step and device')
    add('-vb', '--validation-batch-size', type=COUNT, default=None, metavar='N',
        help='images per validation batch (default: --batch-size)')
    add('--channels-last', action='store_true', help='channels-last memory layout')
    add('--fuser', default='', choices=('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'), help='TorchScript fuser')
    add('--fast-norm', action='store_true', help='norm layers in low precision under --amp')
    add('--grad-checkpointing', action='store_true', help='recompute activations in backward to save memory')
    add('--head-init-scale', type=float, default=None, metavar='S', help="scale the classifier's initial weights")
    add('--head-init-bias', type=float, default=None, metavar='B', help="the classifier's initial bias")
    add('--torchscript', action='store_true', help='torch.jit.script the model')
    add('--torchcompile', nargs='?', const='inductor', default=None, metavar='BACKEND', help='torch.compile the model')
    add('--torchcompile-mode', default=None, metavar='MODE', help='mode of torch.compile')
    add('--grad-accum-steps', type=COUNT, default=1, metavar='N', help='batches per optimizer step')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='key=value arguments of the model')


def add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Device parameters').add_argument
    add('--device', default='cuda', help='device; without a GPU the default becomes cpu')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='dtype of mixed precision')
    add('--model-dtype', default=None, choices=('float32', 'float16', 'bfloat16'),
        help='dtype of weights and images, without --amp')
    add('--no-ddp-bb', action='store_true', help='do not broadcast buffers at every DDP forward')
    add('--synchronize-step', action='store_true', help='synchronise the device after every update')
    add('--device-modules', nargs='+', default=None, metavar='MODULE', help='import these first, for other devices')
    add('--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Optimizer parameters').add_argument
    add('--opt', default='sgd', metavar='OPTIMIZER', help='timm optimizer')
    add('--opt-eps', type=POSITIVE, default=None, metavar='EPSILON', help='optimizer epsilon')
    add('--opt-betas', nargs='+', type=float, default=None, metavar='BETA', help='optimizer betas')
    add('--momentum', type=SHARE, default=0.9, metavar='M', help='optimizer momentum')
    add('--weight-decay', type=NOT_NEGATIVE, default=2e-05, help='weight decay; biases, norms and μ have none')
    add('--clip-grad', type=NOT_NEGATIVE, default=None, metavar='NORM', help='clip gradients')
    add('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='how gradients are clipped')
    add('--layer-decay', type=POSITIVE, default=None, metavar='RATE', help='learning rate decay from layer to layer')
    add('--layer-decay-min-scale', type=NOT_NEGATIVE, default=0, metavar='S', help='lower bound of the layer decay')
    add('--layer-decay-no-opt-scale', type=float, default=None, metavar='S',
        help='do not train layers below this scale')
    add('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, help='key=value arguments of the optimizer')


def add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Learning rate schedule parameters').add_argument
    add('--sched', default='cosine', choices=SCHEDULES, help='timm scheduler')
    add('--sched-on-updates', action='store_true', help='step the schedule at every update')
    add('--lr', type=NOT_NEGATIVE, default=None, metavar='LR',
        help='learning rate, overrides --lr-base; 0 means not given')
    add('--lr-base', type=NOT_NEGATIVE, default=0.1, metavar='LR',
        help='lr = lr_base * global_batch_size / lr_base_size')
    add('--lr-base-size', type=COUNT, default=256, metavar='DIV', help='base batch size in images, not views')
    add('--lr-base-scale', default='', choices=('', 'linear', 'sqrt'),
        help='scaling rule of the learning rate (default: by optimizer)')
    add('--lr-noise', nargs='+', type=SHARE, default=None, metavar='PCT', help='noise on/off epoch percentages')
    add('--lr-noise-pct', type=float, default=0.67, metavar='PCT', help='noise limit')
    add('--lr-noise-std', type=float, default=1.0, metavar='STD', help='noise standard deviation')
    add('--lr-cycle-mul', type=POSITIVE, default=1.0, metavar='MULT', help='cycle length multiplier')
    add('--lr-cycle-decay', type=float, default=0.5, metavar='MULT', help='decay of each cycle')
    add('--lr-cycle-limit', type=COUNT, default=1, metavar='N', help='number of cycles')
    add('--lr-k-decay', type=float, default=1.0, help='k-decay of cosine and poly')
    add('--warmup-lr', type=NOT_NEGATIVE, default=1e-05, metavar='LR', help='learning rate at the start of warm-up')
    add('--min-lr', type=NOT_NEGATIVE, default=0, metavar='LR', help='lower bound')
    add('--epochs', type=COUNT, default=300, metavar='N', help='epochs to train')
    add('--epoch-repeats', type=NOT_NEGATIVE, default=0.0, metavar='N', help='passes over a stream per epoch')
    add('--start-epoch', type=COUNT_OR_ZERO, default=None, metavar='N', help='first epoch, overrides the resumed one')
    add('--decay-milestones', nargs='+', type=int, default=[90, 180, 270], metavar='EPOCH', help='for multistep')
    add('--decay-epochs', type=POSITIVE, default=90, metavar='N', help='epochs between decays')
    add('--warmup-epochs', type=COUNT_OR_ZERO, default=5, metavar='N', help='epochs of warm-up')
    add('--warmup-prefix', action='store_true', help='warm-up comes before the schedule')
    add('--cooldown-epochs', type=COUNT_OR_ZERO, default=0, metavar='N', help='epochs at the end at min_lr')
    add('--patience-epochs', type=COUNT_OR_ZERO, default=10, metavar='N', help='for plateau')
    add('--decay-rate', '--dr', type=NOT_NEGATIVE, default=0.1, metavar='RATE', help='decay factor')


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Augmentation and regularization parameters').add_argument
    add('--no-aug', action='store_true', help='no training augmentation')
    add('--train-crop-mode', default=None, choices=('rrc', 'rkrc', 'rkrr', 'pad'),
        help='crop of training images; pad: pad and crop, as for CIFAR')
    add('--crop-padding', type=COUNT_OR_ZERO, default=4, metavar='N', help='pixels per side for --train-crop-mode pad')
    add('--scale', nargs=2, type=SHARE, default=[0.08, 1.0], metavar='PCT', help='random crop area')
    add('--ratio', nargs=2, type=POSITIVE, default=[3.0 / 4.0, 4.0 / 3.0], metavar='RATIO', help='random crop aspect')
    add('--hflip', type=SHARE, default=0.5, help='horizontal flip probability')
    add('--vflip', type=SHARE, default=0.0, help='vertical flip probability')
    add('--color-jitter', type=NOT_NEGATIVE, default=0.4, metavar='PCT', help='color jitter, off where a policy is on')
    add('--color-jitter-prob', type=SHARE, default=None, metavar='PCT', help='probability of color jitter')
    add('--grayscale-prob', type=SHARE, default=None, metavar='PCT', help='probability of grayscale')
    add('--gaussian-blur-prob', type=SHARE, default=None, metavar='PCT', help='probability of blur')
    add('--aa', default=None, metavar='NAME', help='one auto-augment policy for plain training')
    add('--aug-repeats', type=NOT_NEGATIVE, default=0, metavar='N',
        help='draws of each image per epoch, over all ranks')
    add('--aug-splits', type=COUNT_OR_ZERO, default=0, metavar='N',
        help='one clean and N-1 augmented copies of a batch')
    add('--jsd-loss', action='store_true', help='Jensen-Shannon divergence between the --aug-splits')
    add('--bce-loss', action='store_true', help='binary cross-entropy')
    add('--bce-sum', action='store_true', help='sum the loss over the classes')
    add('--bce-target-thresh', type=SHARE, default=None, metavar='T', help='soft targets above it are 1, others 0')
    add('--bce-pos-weight', type=NOT_NEGATIVE, default=None, metavar='W', help='weight of positive targets')
    add('--reprob', type=SHARE, default=0.0, metavar='PCT', help='random erasing probability, drawn per view')
    add('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='random erasing mode')
    add('--recount', type=COUNT, default=1, help='random erasing count')
    add('--resplit', action='store_true', help='erase nothing in the first view, or half of a plain batch')
    add('--cutout', type=COUNT_OR_ZERO, default=0, metavar='LENGTH', help='hide a square of this side in each view')
    add('--mixup', type=NOT_NEGATIVE, default=0.0, metavar='ALPHA',
        help='mixup alpha; all views of an image share one draw')
    add('--cutmix', type=NOT_NEGATIVE, default=0.0, metavar='ALPHA', help='cutmix alpha')
    add('--cutmix-minmax', nargs=2, type=SHARE, default=None, metavar='RATIO', help='cutmix box, overrides alpha')
    add('--mixup-prob', type=SHARE, default=1.0, help='probability of mixing')
    add('--mixup-switch-prob', type=SHARE, default=0.5, help='probability of cutmix where both are on')
    add('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem', 'half'),
        help='one draw per batch, pair, element or half a batch')
    add('--mixup-off-epoch', type=COUNT_OR_ZERO, default=0, metavar='N', help='stop mixing at this epoch (0: never)')
    add('--smoothing', type=SHARE, default=0.1, help='label smoothing')
    add('--train-interpolation', default='random', choices=('random', *INTERPOLATIONS),
        help='resize interpolation in training')
    add('--drop', type=SHARE, default=0.0, metavar='PCT', help='dropout rate')
    add('--drop-connect', type=SHARE, default=None, metavar='PCT', help='old name of --drop-path')
    add('--drop-path', type=SHARE, default=None, metavar='PCT', help='drop path rate')
    add('--drop-block', type=SHARE, default=None, metavar='PCT', help='drop block rate')


def add_batch_norm(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Batch norm parameters').add_argument
    add('--bn-momentum', type=SHARE, default=None, help='batch norm momentum, where the model takes it')
    add('--bn-eps', type=POSITIVE, default=None, help='batch norm epsilon, where the model takes it')
    add('--sync-bn', action='store_true', help='statistics over all ranks, a branch at a time')
    add('--dist-bn', default='reduce', choices=('broadcast', 'reduce', ''),
        help='how ranks share running statistics after each epoch')
    add('--split-bn', action='store_true', help="timm's separate batch norm for each split of the batch")


def add_ema(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Model exponential moving average parameters').add_argument
    add('--model-ema', action='store_true', help='track an average of the weights, and evaluate it')
    add('--model-ema-force-cpu', action='store_true', help='keep it on the CPU, not evaluated')
    add('--model-ema-decay', type=SHARE, default=0.9998, help='decay')
    add('--model-ema-warmup', action='store_true', help='warm up the decay')


def add_miscellaneous(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Miscellaneous parameters').add_argument
    add('--seed', type=int, default=42, metavar='S', help='random seed')
    add('--worker-seeding', default='all', choices=('all', 'part'), help="seeding of plain training's workers")
    add('--log-interval', type=COUNT, default=50, metavar='N', help='updates between log lines')
    add('--val-interval', type=COUNT, default=1, metavar='N', help='epochs between validations and checkpoints')
    add('--recovery-interval', type=COUNT_OR_ZERO, default=0, metavar='N', help='updates between recovery checkpoints')
    add('--checkpoint-hist', type=COUNT, default=10, metavar='N', help='number of best checkpoints to keep')
    add('-j', '--workers', type=COUNT_OR_ZERO, default=4, metavar='N', help='data loading processes')
    add('--save-images', action='store_true', help='save a picture of the batch at every log step')
    add('--pin-mem', action='store_true', help='pin CPU memory')
    add('--no-prefetcher', action='store_true', help="normalise in the workers, without timm's prefetcher")
    add('--output', default='', metavar='PATH', help='folder of runs (default: output/train)')
    add('--experiment', default='', metavar='NAME', help='name of the run (default: date, model, size)')
    add('--eval-metric', default='top1', choices=('top1', 'top5', 'loss'),
        help='metric that chooses the best branch and epoch')
    add('--tta', type=COUNT_OR_ZERO, default=0, metavar='N', help='test-time augmentation factor')
    add('--use-multi-epochs-loader', action='store_true', help='keep the loader running between epochs')
    add('--log-wandb', action='store_true', help='log the summary to wandb')
    add('--wandb-project', default=None, metavar='NAME', help='wandb project')
    add('--wandb-tags', nargs='+', default=[], metavar='TAG', help='wandb tags')
    add('--wandb-resume-id', default='', metavar='ID', help='wandb run to resume')


def add_scheduled_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Scheduled image size parameters').add_argument
    add('--train-img-sizes', nargs='+', type=COUNT, default=None, metavar='N', help='image sizes, one per batch')
    add('--train-batch-sizes', nargs='+', type=COUNT, default=None, metavar='N', help='batch size of each image size')
    add('--train-size-probs', nargs='+', type=NOT_NEGATIVE, default=None, metavar='P',
        help='probability weight of each size')
    add('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
        help='progressive goes from the first size to the last')
    add('--train-size-schedule-spread', type=NOT_NEGATIVE, default=0.65, metavar='S',
        help='spread of progressive, in sizes')
    add('--train-size-random-mix', type=SHARE, default=0.1, metavar='P', help='share of random sizes in progressive')
    add('--train-batches-per-epoch', '--train-steps-per-epoch', type=COUNT, default=None, metavar='N',
        help='batches per epoch')
    add('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
        help='scale gradients with the batch size')


def add_naflex(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('NaFlex parameters').add_argument
    add('--naflex-loader', action='store_true', help='native aspect and resolution, for models that take patches')
    add('--naflex-train-seq-lens', nargs='+', type=int, default=[128, 256, 576, 784, 1024], metavar='N',
        help='sequence lengths of training')
    add('--naflex-max-seq-len', type=COUNT, default=576, metavar='N', help='sequence length of validation')
    add('--naflex-patch-sizes', nargs='+', type=int, default=None, metavar='N', help='patch sizes of training')
    add('--naflex-patch-size-probs', nargs='+', type=float, default=None, metavar='P',
        help='probability of each patch size')
    add('--naflex-loss-scale', default='linear', choices=('none', 'sqrt', 'linear'),
        help='scale gradients with the batch size')
    add('--naflex-patchify-channels-first', action='store_true', help='patches as channels, height, width')


def add_distillation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Distillation from an external teacher').add_argument
    add('--kd-model-name', default=None, metavar='MODEL',
        help='pretrained timm model that teaches; every branch learns from it')
    add('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'), help='what the teacher teaches')
    add('--kd-loss-type', default='kl', choices=('kl',), help='loss on its logits')
    add('--distill-loss-weight', type=float, default=None, metavar='W', help="weight of the teacher's loss")
    add('--task-loss-weight', type=float, default=None, metavar='W', help='weight of the loss on targets')
    add('--kd-temperature', type=POSITIVE, default=4.0, metavar='T', help='temperature of both softmaxes')
    add('--kd-student-feature-dim', type=COUNT, default=None, metavar='N', help='features of the student')
    add('--kd-teacher-feature-dim', type=COUNT, default=None, metavar='N', help='features of the teacher')
    add('--kd-token-distill-type', default='soft', choices=('soft', 'hard'), help='targets of the distillation token')

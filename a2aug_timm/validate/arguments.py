"""Command line of validate.py: timm's flags by timm's names, defaults and meaning, and ``--branch``."""
import argparse

from timm.utils import ParseKwargs

from ..cli.config import StrictParser
from ..cli.flag_types import COUNT, COUNT_OR_ZERO
from ..cli.shared_arguments import add_input, add_source
from ..cli.training_images import NUM_IMAGES


def validate_parser() -> StrictParser:
    """Parser of validate.py."""
    parser = StrictParser(prog='validate.py', description='Evaluate plain checkpoints, export folders or branches.')
    parser.add_argument('-c', '--config', metavar='RECIPE', help='recipe by name or YAML file; the command line wins')
    _add_data(parser)
    _add_model(parser)
    _add_device(parser)
    _add_inference(parser)
    _add_results(parser)
    parser.replaces['data'] = {'data_dir'}
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Data')
    add_source(group)
    add = group.add_argument
    add('--split', metavar='NAME', default='validation', help='dataset split')
    add('--num-samples', type=COUNT, default=None, metavar='N',
        help='images in a wds/ or hfids/ split that does not tell')
    add('--crop-mode', default=None, choices=('center', 'squash', 'border'), help='crop of images')
    add('--crop-border-pixels', type=COUNT_OR_ZERO, default=None, metavar='N',
        help='cut this border off each image first')
    add('--use-train-size', action='store_true', help='use the training size, even where a test size is known')
    add('--tf-preprocessing', action='store_true', help="TensorFlow's preprocessing; needs tensorflow")
    add('--real-labels', default='', metavar='FILE', help='JSON file of ImageNet labels for top-1 and top-5')
    add('--valid-labels', default='', metavar='FILE',
        help="file of class indices, one per line: the data's classes are these classes of the model, in this order")
    add('-j', '--workers', type=COUNT_OR_ZERO, default=4, metavar='N', help='data loading processes')
    add('-b', '--batch-size', type=COUNT, default=256, metavar='N', help='images per batch')
    add('--no-prefetcher', action='store_true', help="normalise in the workers, without timm's prefetcher")
    add('--pin-mem', action='store_true', help='pin CPU memory')
    add('--naflex-loader', action='store_true', help='images as patches at their own aspect ratio, for NaFlex models')
    add('--naflex-max-seq-len', type=COUNT, default=576, metavar='N', help='patches per image, at most')


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    add = group.add_argument
    add('--model', '-m', metavar='NAME', default='dpn92',
        help='architecture (a checkpoint of ours knows its own); or several pretrained ones: a wildcard, all, or '
             'a file of names')
    add('--checkpoint', default='', metavar='PATH',
        help='checkpoint file, folder that was exported, or folder of checkpoints, each evaluated')
    add('--branch', default='best', metavar='I|best|all|merged',
        help='branch of a multi-branch checkpoint; all adds the ensemble, merged is the mean of all branches')
    add('--merge-images', type=COUNT, default=NUM_IMAGES, metavar='N',
        help="training images that the statistics of --branch merged are estimated on, at most "
             f'(default: {NUM_IMAGES})')
    add('--merge-data-dir', default=None, metavar='DIR', help="folder of these images (default: the run's)")
    add('--pretrained', action='store_true', help="use timm's pretrained weights, as without --checkpoint")
    add('--use-ema', action='store_true', help='use the EMA weights of the checkpoint')
    add_input(group)
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='key=value arguments of the model')
    add('--test-pool', action='store_true', help='pool at test time, where images are larger than those of training')
    add('--reparam', action='store_true', help='fuse what can be fused for inference')


def _add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Device').add_argument
    add('--device', default='cuda', help='device; without a GPU the default becomes cpu')
    add('--num-gpu', type=COUNT, default=1, metavar='N',
        help='GPUs that share a batch; with --retry, and for several models, the batch size is of one GPU')
    add('--channels-last', action='store_true', help='channels-last memory layout')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', choices=('float16', 'bfloat16'), help='dtype of mixed precision')
    add('--model-dtype', default=None, choices=('float32', 'float16', 'bfloat16'),
        help='dtype of weights and images, without --amp')
    add('--seed', type=int, default=42, metavar='S', help='random seed')


def _add_inference(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Compilation')
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument('--torchscript', action='store_true', help='script the model')
    exclusive.add_argument('--torchcompile', nargs='?', default=None, const='inductor', metavar='BACKEND',
        help='compile the model, with inductor if no backend is given')
    exclusive.add_argument('--aot-autograd', action='store_true', help="fuse the model with functorch's AOT autograd")
    add = group.add_argument
    add('--torchcompile-mode', default=None, metavar='MODE', help='mode of the inductor backend')
    add('--fuser', default='', choices=('', 'te', 'old', 'legacy'), help='fuser of TorchScript: te or old')
    add('--fast-norm', action='store_true', help='norm layers in the low precision of --amp')


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Results').add_argument
    add('--metrics-avg', default=None, choices=('micro', 'macro', 'weighted'),
        help='also precision, recall and F1 score, averaged over the classes like this; needs scikit-learn')
    add('--log-freq', type=COUNT, default=10, metavar='N', help='batches between log lines')
    add('--results-file', default='', metavar='FILE', help='write the results to this file')
    add('--results-format', default='csv', choices=('csv', 'json'), help='format of the results file')
    add('--retry', action='store_true', help='retry with smaller batches where memory is short')

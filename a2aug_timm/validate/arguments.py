"""The command line of validate.py: timm's flags by timm's names, defaults and meaning, and ``--branch``."""
import argparse

from timm.utils import ParseKwargs

from ..cli.config import StrictParser
from ..cli.shared_arguments import add_input, add_source


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
    add('--num-samples', type=int, default=None, metavar='N', help='images in a wds/ or hfids/ split that tells none')
    add('--crop-mode', default=None, help='squash, border or center')
    add('--crop-border-pixels', type=int, default=None, metavar='N', help='cut this border off each image first')
    add('--use-train-size', action='store_true', help='use the train input size, also where a test size is known')
    add('--tf-preprocessing', action='store_true', help="TensorFlow's preprocessing; needs tensorflow")
    add('--real-labels', default='', metavar='FILE', help='JSON file of ImageNet labels for top-1 and top-5')
    add('--valid-labels', default='', metavar='FILE',
        help="file of class indices, one a line; the data's classes are these of the model's, in this order")
    add('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    add('-b', '--batch-size', type=int, default=256, metavar='N', help='images a batch')
    add('--no-prefetcher', action='store_true', help="normalise in the workers, without timm's prefetcher")
    add('--pin-mem', action='store_true', help='pin CPU memory')
    add('--naflex-loader', action='store_true', help='images as patches at their own aspect ratio, for NaFlex models')
    add('--naflex-max-seq-len', type=int, default=576, metavar='N', help='patches an image, at most')


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    add = group.add_argument
    add('--model', '-m', metavar='NAME', default='dpn92',
        help='architecture (a checkpoint of ours knows its own); or several pretrained ones: a wildcard, all, or a '
             'file of names')
    add('--checkpoint', default='', metavar='PATH',
        help='checkpoint file, folder that was exported, or folder of checkpoints, each evaluated')
    add('--branch', default='best', metavar='I|best|all',
        help='branch of a multi-branch checkpoint; all adds the ensemble')
    add('--pretrained', action='store_true', help="use timm's pretrained weights, as without --checkpoint")
    add('--use-ema', action='store_true', help='use the EMA weights of the checkpoint')
    add_input(group)
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='key=value arguments of the model')
    add('--test-pool', action='store_true', help='pool at test time, where images are larger than those of training')
    add('--reparam', action='store_true', help='fuse what can be fused for inference')


def _add_device(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Device').add_argument
    add('--device', default='cuda', help='device; without a GPU the default becomes cpu')
    add('--num-gpu', type=int, default=1, metavar='N',
        help='GPUs that share a batch; with --retry, and for several models, the batch size is of one GPU')
    add('--channels-last', action='store_true', help='channels-last memory layout')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', help='float16 or bfloat16')
    add('--model-dtype', default=None, help='weights and images in float16, bfloat16 or float32, without --amp')
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
    add('--fuser', default='', help="fuser of TorchScript: te or old")
    add('--fast-norm', action='store_true', help='norm layers in the low precision of --amp')


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('Results').add_argument
    add('--metrics-avg', default=None, choices=('micro', 'macro', 'weighted'),
        help='also precision, recall and F1 score, averaged over the classes like this; needs scikit-learn')
    add('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    add('--results-file', default='', metavar='FILE', help='write the results here')
    add('--results-format', default='csv', help='csv or json')
    add('--retry', action='store_true', help='where memory is short, try again with smaller batches')

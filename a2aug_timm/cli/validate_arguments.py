"""The command line of validate.py: timm's flags by timm's names, defaults and meaning, and ``--branch``."""
from timm.utils import ParseKwargs

from .arguments import add_input, add_source
from .config import StrictParser


def validate_parser() -> StrictParser:
    """Parser of validate.py."""
    parser = StrictParser(prog='validate.py', description='Evaluate a plain checkpoint, an export folder or branches.')
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file of arguments; the command line overrides it')
    add = parser.add_argument
    add_source(parser)
    add('--split', metavar='NAME', default='validation', help='dataset split')
    add('--model', '-m', metavar='NAME', default='dpn92', help='architecture; a checkpoint of ours knows its own')
    add('--checkpoint', default='', metavar='PATH', help='checkpoint file, or a folder that was exported')
    add('--branch', default='best', metavar='I|best|all',
        help='branch of a multi-branch checkpoint; all adds the ensemble')
    add('--pretrained', action='store_true', help="use timm's pretrained weights")
    add('--use-ema', action='store_true', help='use the EMA weights of the checkpoint')
    add('-j', '--workers', type=int, default=4, metavar='N', help='data loading processes')
    add('-b', '--batch-size', type=int, default=256, metavar='N', help='images a batch')
    add_input(parser)
    add('--use-train-size', action='store_true', help='use the train input size, also where a test size is known')
    add('--crop-mode', default=None, help='squash, border or center')
    add('--channels-last', action='store_true', help='channels-last memory layout')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='key=value arguments of the model')
    add('--no-prefetcher', action='store_true', help="normalise in the workers, without timm's prefetcher")
    add('--pin-mem', action='store_true', help='pin CPU memory')
    add('--device', default='cuda', help='device; without a GPU the default becomes cpu')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', help='float16 or bfloat16')
    add('--log-freq', type=int, default=10, metavar='N', help='batches between log lines')
    add('--seed', type=int, default=42, metavar='S', help='random seed')
    add('--results-file', default='', metavar='FILE', help='write the results here')
    add('--results-format', default='csv', help='csv or json')
    return parser

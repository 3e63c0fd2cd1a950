"""The command line of train.py: timm's flags, then A²-Aug's."""
from ...cli.config import StrictParser
from . import timm_flags
from .a2aug_flags import add_a2aug


def train_parser() -> StrictParser:
    """Parser of train.py."""
    parser = StrictParser(prog='train.py', description='Train a timm model, with A²-Aug branches or plainly.')
    parser.add_argument('-c', '--config', metavar='RECIPE', help='recipe by name or YAML file; the command line wins')
    timm_flags.add_data(parser)
    timm_flags.add_model(parser)
    timm_flags.add_device(parser)
    timm_flags.add_optimizer(parser)
    timm_flags.add_schedule(parser)
    timm_flags.add_augmentation(parser)
    timm_flags.add_batch_norm(parser)
    timm_flags.add_ema(parser)
    timm_flags.add_miscellaneous(parser)
    timm_flags.add_scheduled_sizes(parser)
    timm_flags.add_naflex(parser)
    timm_flags.add_distillation(parser)
    add_a2aug(parser)
    parser.replaces['data'] = {'data_dir'}
    return parser

"""The flags of A²-Aug."""
import argparse
import math

from ...cli.config import StrictParser
from ...cli.flag_types import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, Number
from ...data.policies import MAGNITUDES, NUM_LAYERS, OP_BACKENDS, SPACES
from ...loss import ENSEMBLES, LOGIT_SCALES, REDUCTIONS


def add_a2aug(parser: StrictParser) -> None:
    """Add the flags of A²-Aug."""
    add = parser.add_argument_group('A²-Aug').add_argument
    add('--a2aug-branches', type=COUNT, default=1, metavar='N',
        help='augmentation branches trained jointly; 1 is plain timm training')
    add('--a2aug-policies', nargs='+', default=None, metavar='P',
        help="one auto-augment string per branch, like timm's --aa, or none (default: sampled); with --aa, those of "
             'branches 1 to N-1')
    add('--a2aug-views', type=COUNT, default=None, metavar='V',
        help='branches that each step trains, drawn anew per step (default: all, as in the paper)')
    add('--a2aug-anchor-share', type=Number(float, 0, 1, is_open=True), default=None, metavar='S',
        help='share of the steps that draw branch 0 (default: the same as every branch)')
    add('--a2aug-start-epoch', type=COUNT_OR_ZERO, default=0, metavar='E',
        help='train branch 0 alone before this epoch; then all branches start from its state')
    add('--a2aug-batch', default='images', choices=('images', 'views'),
        help='whether --batch-size counts images, as in timm, or views')
    add('--a2aug-seed', type=int, default=None, metavar='S', help='seed of the sampled policies (default: --seed)')
    add('--a2aug-space', default=None, choices=list(SPACES), help="RandAugment's published search space of a data set")
    add('--a2aug-num-layers', nargs='+', type=int, default=list(NUM_LAYERS), metavar='N',
        help='search space: numbers of ops applied one after the other')
    add('--a2aug-magnitudes', nargs='+', type=int, default=list(MAGNITUDES), metavar='M',
        help='search space: magnitudes on the published scale, 0 to 30')
    add('--a2aug-op-backend', default='pillow', choices=OP_BACKENDS,
        help="library of the ops: Pillow, equal to timm bit for bit, or OpenCV, faster and close to it")
    add('--a2aug-ensemble', default='adaptive', choices=ENSEMBLES, help='weights of the ensemble: learned μ, or 1/N')
    add('--a2aug-ensemble-weight', type=NOT_NEGATIVE, default=1., metavar='W',
        help="weight of the ensemble's cross-entropy")
    add('--a2aug-mu-lr-scale', type=NOT_NEGATIVE, default=1., metavar='S',
        help='learning rate of μ, as a multiple of --lr')
    add('--a2aug-kl-weight', type=NOT_NEGATIVE, default=1., metavar='W', help='weight of the distillation')
    add('--a2aug-no-logit-norm', action='store_true', help='distil plain logits (ablation, Table 8)')
    add('--a2aug-logit-scale', type=logit_scale, default='capped', metavar='S',
        help=f"length of the normalised logits: {', '.join(LOGIT_SCALES)} or a number")
    add('--a2aug-loss-reduction', default='sum', choices=REDUCTIONS, help='sum or mean over the branches')
    add('--a2aug-norm', default='bn', choices=('bn', 'all'),
        help='norms that each branch has of its own: batch norm as in the paper, or every norm layer')
    add('--a2aug-shared-bn', action='store_true', help='one batch norm for all branches (ablation, Table 5)')
    add('--a2aug-independent', action='store_true',
        help='N separate networks, trained jointly by the ensemble (ablation, Table 5)')
    add('--a2aug-branch-sizes', nargs='+', type=COUNT, default=None, metavar='S',
        help='image size of each branch (Table 9)')
    add('--a2aug-sequential', action='store_true',
        help='keep the activations of one branch at a time: memory of plain training, at the price of a second forward '
             'pass for all branches but one')
    add('--a2aug-independent-crops', action='store_true', help='draw crop and flip for each view separately')
    # Policies are either named, or sampled by a seed from a space.
    named, space = {'a2aug_policies'}, {'a2aug_num_layers', 'a2aug_magnitudes'}
    parser.replaces.update({
        'a2aug_policies': {'a2aug_seed', 'a2aug_space', *space}, 'a2aug_space': named | space,
        **dict.fromkeys(['a2aug_seed', *space], named)})
    # One branch on the command line is the plain baseline of a recipe of A²-Aug.
    parser.switches_off['a2aug_branches', 1] = {name for name in parser.defaults if name.startswith('a2aug_')}


def logit_scale(value: str) -> str | float:
    """Type of ``--a2aug-logit-scale``."""
    if value in LOGIT_SCALES:
        return value
    try:
        scale = float(value)
        if not 0 < scale < math.inf:
            raise ValueError
        return scale
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a positive number or one of {', '.join(LOGIT_SCALES)}, got '{value}'") from None

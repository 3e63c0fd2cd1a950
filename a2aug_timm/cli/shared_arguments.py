"""Flags that train.py and validate.py share: where images come from, and what the network takes and gives."""
from PIL import Image

from .config import FlagGroup
from .flag_types import COUNT, POSITIVE, Number

INTERPOLATIONS = ('', 'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos')


def add_source(group: FlagGroup) -> None:
    """Add the flags that say where images come from."""
    add = group.add_argument
    add('data', nargs='?', metavar='DIR', help='path to dataset (deprecated, use --data-dir)')
    add('--data-dir', metavar='DIR', help='path to dataset (root dir)')
    add('--dataset', metavar='NAME', default='',
        help='type/name as in timm (torch/cifar10), or sklearn/digits; empty for a folder of class folders')
    add('--dataset-download', action='store_true', help='let torch/ datasets download')
    add('--class-map', default='', metavar='FILE', help='class to index file')
    add('--input-img-mode', default=None, choices=Image.MODES,
        help="image mode (default: RGB or L, as the model's channels need)")
    add('--input-key', default=None, metavar='KEY',
        help='field of the images; in a folder, their file endings: .png;.jpg')
    add('--target-key', default=None, metavar='KEY', help='field of the labels')
    add('--dataset-trust-remote-code', action='store_true',
        help='let hfds/ and hfids/ data sets run code from their hub')


def add_input(group: FlagGroup) -> None:
    """Add the flags that say what the network takes and gives."""
    add = group.add_argument
    add('--num-classes', type=COUNT, default=None, metavar='N', help="number of classes (default: the model's)")
    add('--gp', default=None, metavar='POOL', help='global pool: fast, avg, max, avgmax, catavgmax')
    add('--img-size', type=COUNT, default=None, metavar='N', help="image size (default: the model's)")
    add('--in-chans', type=COUNT, default=None, metavar='N', help='input channels (default: 3)')
    add('--input-size', nargs=3, type=COUNT, default=None, metavar='N', help='channels height width')
    add('--crop-pct', type=Number(float, 0, 1, is_open=True), default=None, metavar='PCT',
        help='center crop of validation images')
    add('--mean', nargs='+', type=float, default=None, metavar='MEAN', help='per-channel mean in 0..1')
    add('--std', nargs='+', type=POSITIVE, default=None, metavar='STD', help='per-channel standard deviation in 0..1')
    add('--interpolation', default='', choices=INTERPOLATIONS, help='resize interpolation')

"""Draw runs and write a page of them."""
import argparse
import importlib.util
import logging
from pathlib import Path

from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from ..cli.config import StrictParser
from ..data.datasets import create_dataset, is_stream
from ..data.policies import MultiPolicyRandAugment, identity
from ..data.skipping import SkippingDataset
from ..data.views import BranchTransform, SeededImage, ViewTransform
from ..engine.checkpoint import atomic_write
from ..train.arguments import train_parser
from . import RunRecord, read_run
from .page import write_page

_logger = logging.getLogger('report')

NUM_IMAGES = 8


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.report', description='Draw runs and write a page of them.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help="a run's folder")
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder to write')
    args = parser.parse_args(argv)
    folder = Path(args.output)
    with parser.user_errors():
        if importlib.util.find_spec('matplotlib') is None:
            raise ValueError('a report needs matplotlib: pip install -e ".[report]"')
        runs = [read_run(folder) for folder in args.runs]
        if len({run.name for run in runs}) < len(runs):
            raise ValueError('two of the runs have the same name; give folders of different names')
        folder.mkdir(parents=True, exist_ok=True)
    figures = [draw(run, folder) for run in runs]
    with atomic_write(folder / 'report.html') as path:
        path.write_text(write_page(runs, figures), encoding='utf-8')
    print(f"{folder / 'report.html'}, and its figures beside it as PNG and SVG")


def draw(run: RunRecord, folder: Path) -> dict[str, str]:
    """Title of each figure -> its SVG; all are written to the folder."""
    from . import plots  # matplotlib is an extra
    figures = {'Curves': plots.save(plots.draw_curves(run), folder / f'{run.name}-curves')}
    if run.num_branches > 1:
        figures['Weights'] = plots.save(plots.draw_mu(run), folder / f'{run.name}-mu')
    try:
        views, labels = sample_views(run)
    except (ValueError, OSError, KeyError, IndexError) as error:
        _logger.warning('%s: no sample views, since its training images cannot be read: %s', run.name, error)
        return figures
    figures['What the branches see'] = plots.save(plots.draw_views(views, labels), folder / f'{run.name}-views')
    return figures


def sample_views(run: RunRecord) -> tuple[list[list[Image.Image]], list[str]]:
    """Eight training images, cropped to their middle, and what each policy makes of them, drawn by the run's seed.

    Raises:
        ValueError: The data is not there, or comes as a stream.
    """
    args = argparse.Namespace(**{**vars(train_parser().parse_args([])), **run.args})
    mode = args.input_img_mode or ('L' if (args.in_chans or (args.input_size or [3])[0]) == 1 else 'RGB')
    images = create_dataset(args.dataset, args.data_dir, args.train_split, input_img_mode=mode)
    if is_stream(images):
        raise ValueError('they come as a stream')
    images = SkippingDataset(images, mode)
    size = args.img_size or (args.input_size or [3, 224, 224])[-1]
    middle = Compose([Resize(size), CenterCrop(size)])
    chosen = [middle(images[i * len(images) // NUM_IMAGES][0]) for i in range(min(NUM_IMAGES, len(images)))]
    mean = args.mean or [0.5] * (3 if mode == 'RGB' else 1)
    policies = MultiPolicyRandAugment(
        run.policies, size, mean, args.train_interpolation, args.color_jitter, allow_equal=True)
    transform = ViewTransform(identity, [BranchTransform(policy) for policy in policies.transforms], identity)
    views = [transform(SeededImage(image, f'{args.seed}/{i}')) for i, image in enumerate(chosen)]
    return [chosen, *map(list, zip(*views, strict=True))], ['image', *run.policies]


if __name__ == '__main__':
    main()

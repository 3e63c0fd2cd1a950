"""Example images of a run, and the views that its policies make of them."""
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from ..data.datasets import create_dataset, is_stream
from ..data.policies import MultiPolicyRandAugment
from ..data.policies.published_ops import identity
from ..data.skipping import SkippingDataset
from ..data.views import BranchTransform, SeededImage, ViewTransform
from ..train.arguments import train_parser
from .run_record import RunRecord

NUM_IMAGES = 8


def sample_views(run: RunRecord) -> tuple[list[list[Image.Image]], list[str]]:
    """Training images of a run, cropped to the center, and one view per policy; the run's seed draws the views.

    Returns:
        One row of ``NUM_IMAGES`` images (fewer if the data set is smaller) for the originals and for each policy, and
        the labels of the rows.

    Raises:
        ValueError: The data set is missing, or is a stream.
    """
    settings = {**vars(train_parser().parse_args([])), **run.args}
    input_size = settings['input_size'] or [3, 224, 224]
    mode = settings['input_img_mode'] or ('L' if (settings['in_chans'] or input_size[0]) == 1 else 'RGB')
    images = create_dataset(settings['dataset'], settings['data_dir'], settings['train_split'], input_img_mode=mode)
    if is_stream(images):
        raise ValueError('the data set is a stream')
    images = SkippingDataset(images, mode)
    size = settings['img_size'] or input_size[-1]
    center = Compose([Resize(size), CenterCrop(size)])
    originals = [center(images[i * len(images) // NUM_IMAGES][0]) for i in range(min(NUM_IMAGES, len(images)))]
    mean = settings['mean'] or [0.5] * (3 if mode == 'RGB' else 1)
    policies = MultiPolicyRandAugment(
        run.policies, size, mean, settings['train_interpolation'], settings['color_jitter'], allow_equal=True)
    transform = ViewTransform(identity, [BranchTransform(policy) for policy in policies.transforms], identity)
    views = [transform(SeededImage(image, f"{settings['seed']}/{i}")) for i, image in enumerate(originals)]
    return [originals, *map(list, zip(*views, strict=True))], ['image', *run.policies]

"""Training images of a finished run, on which the statistics of its merged branches are estimated."""
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader

from ..data.datasets import create_dataset, is_stream
from ..data.holdout import split_training_images
from ..data.loader import Prefetch
from ..data.skipping import SkippingDataset

# Default of the flags that say how many images are read.
NUM_IMAGES = 2000
# Fixed, so that all commands estimate the same statistics.
_BATCH_SIZE = 128
_SOURCE = dict(
    dataset='', data_dir=None, train_split='train', class_map='', input_img_mode=None, input_key=None, target_key=None,
    dataset_trust_remote_code=False, holdout=None, train_subset=None)


def training_batches(
        run_args: dict[str, Any],
        data_config: dict[str, Any],
        num_images: int,
        *,
        data_dir: str | None = None,
        data_dir_flag: str = '--data-dir',
        device: torch.device | str = 'cpu',
        num_workers: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield images that a run was trained on, preprocessed as it evaluates them.

    The images are drawn at random, the same in every call, and come in random order. Nothing is read before the first
    batch is asked for.

    Args:
        run_args: Arguments of the run, from its checkpoint.
        data_config: ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``.
        num_images: Number of images; all images of the run if it has fewer.
        data_dir: Folder of the data (default: the run's).
        data_dir_flag: Flag for that folder, for error messages.
        device: Device of the images.
        num_workers: Processes that load them.

    Yields:
        Normalised float32 images ``[B, C, H, W]``; two batches differ by one image at most.

    Raises:
        ValueError: The images cannot be read, or come as a stream.
    """
    source = {name: run_args.get(name, default) for name, default in _SOURCE.items()}
    source['data_dir'] = data_dir or source['data_dir']
    try:
        dataset = _open(source, num_channels=data_config['input_size'][0], num_images=num_images)
    except ValueError as error:
        raise ValueError(f'cannot read the training images of the run ({data_dir_flag} names their folder): '
                         f'{error}') from error
    dataset.transform = create_transform(
        data_config['input_size'], use_prefetcher=True,
        **{name: data_config[name] for name in ('interpolation', 'crop_pct', 'crop_mode') if name in data_config})
    batches = np.array_split(np.arange(len(dataset)), -(-len(dataset) // _BATCH_SIZE))
    loader = DataLoader(
        dataset, batch_sampler=[batch.tolist() for batch in batches], collate_fn=fast_collate, num_workers=num_workers)
    prefetch = Prefetch(
        data_config['mean'], data_config['std'], data_config['input_size'][0], torch.device(device))
    for images, _ in prefetch.wrap(loader):
        yield images


def _open(source: dict[str, Any], num_channels: int, num_images: int) -> SkippingDataset:
    """Open the data set and draw images of it."""
    mode = source['input_img_mode'] or ('RGB' if num_channels == 3 else 'L')
    images: Any = create_dataset(
        source['dataset'], source['data_dir'], source['train_split'], is_training=True, class_map=source['class_map'],
        input_img_mode=mode, input_key=source['input_key'], target_key=source['target_key'],
        trust_remote_code=source['dataset_trust_remote_code'])
    if is_stream(images):
        raise ValueError(f"'{source['dataset']}' is a stream, from which no random images can be drawn")
    indices, _ = split_training_images(images, source['holdout'], source['train_subset'])
    drawn = np.random.default_rng(0).permutation(len(images) if indices is None else indices)[:num_images]
    return SkippingDataset(images, mode, drawn.tolist())

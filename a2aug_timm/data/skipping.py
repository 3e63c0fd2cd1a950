"""A data set that skips images that cannot be decoded."""
import logging
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset

_logger = logging.getLogger(__name__)

_MAX_CONSECUTIVE_FAILURES = 10
# What Pillow raises for damaged files and for images of too many pixels.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class SkippingDataset(Dataset[tuple[Any, Any]]):
    """A map-style timm or torchvision data set that skips images that cannot be decoded.

    The path of a broken image is logged, the image is counted, and the next image takes its place. ``transform``,
    which timm's ``create_loader`` sets, is applied to the decoded Pillow image.

    Args:
        dataset: Map-style data set of ``(Pillow image, target)``; its own transform is removed.
        image_mode: Pillow mode that every image is converted to, ``RGB`` or ``L``; None leaves the mode unchanged.
        indices: Subset of indices to use (default: all).

    Raises:
        RuntimeError: 10 images in a row cannot be decoded.
    """

    def __init__(self, dataset: Any, image_mode: str | None = None, indices: Sequence[int] | None = None):
        self.dataset = dataset
        self.image_mode = image_mode
        self.indices: Sequence[int] = range(len(dataset)) if indices is None else indices
        self.transform = dataset.transform
        dataset.transform = None
        # Workers can inherit a spawn lock under either start method.
        self._num_skipped = get_context('spawn').Value('q', 0)

    def take_num_skipped(self) -> int:
        """Number of images skipped by all workers since the last call."""
        with self._num_skipped.get_lock():
            num_skipped, self._num_skipped.value = self._num_skipped.value, 0
        return num_skipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self._load(index)
        return image if self.transform is None else self.transform(image), target

    def _load(self, index: int) -> tuple[Image.Image, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which also ends an iteration over the data set
        for candidate in range(index, index + _MAX_CONSECUTIVE_FAILURES):
            candidate = self.indices[candidate % len(self)]
            try:
                return self._decode(candidate)
            except _UNREADABLE as error:
                _logger.warning('Skipped %s: %s', self._path(candidate), error)
                with self._num_skipped.get_lock():
                    self._num_skipped.value += 1
        raise RuntimeError(f'{_MAX_CONSECUTIVE_FAILURES} images in a row cannot be decoded, beginning with '
                           f'{self._path(self.indices[index])}')

    def _decode(self, index: int) -> tuple[Image.Image, Any]:
        if not isinstance(self.dataset, ImageDataset):
            image, target = self.dataset[index]
            return _converted(image, self.image_mode), target
        # ImageDataset skips broken images itself but logs their index only, so this uses its reader directly.
        file, target = self.dataset.reader[index][:2]
        with file:
            image = Image.open(file)
            image = _converted(image, self.image_mode or self.dataset.input_img_mode)
            return image, -1 if target is None else target

    def _path(self, index: int) -> str:
        if isinstance(self.dataset, ImageDataset):
            return self.dataset.filename(index, absolute=True)
        samples = getattr(self.dataset, 'samples', None)
        return samples[index][0] if samples else f'image {index}'


def _converted(image: Image.Image, mode: str | None) -> Image.Image:
    """The decoded image in a mode, without the copy that ``convert`` makes of an image that already has it."""
    if mode in (None, image.mode):
        image.load()
        return image
    return image.convert(mode)

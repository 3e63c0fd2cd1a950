"""Cutout: hide one square of each image."""
import torch


class Cutout:
    """Set one square of each normalised image to 0, the mean of the data; the square is clipped at the border.

    The centre is uniform over the image and is drawn separately for each image, and so for each view.

    Args:
        length: Side of the square in pixels.

    Shape:
        ``[B, C, H, W]`` or ``[C, H, W]``, the same out.

    Source: DeVries & Taylor 2017 (arXiv 1708.04552); AutoAugment's code applies it last, after normalisation.
    """

    def __init__(self, length: int):
        if length < 1:
            raise ValueError(f'the side of the square must be at least 1 pixel, got {length}')
        self.length = length

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        batch = images if images.ndim == 4 else images.unsqueeze(0)
        rows, columns = (self._hidden(len(batch), size, images.device) for size in batch.shape[-2:])
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        return batch.masked_fill(hidden, 0.).view_as(images)

    def _hidden(self, num_images: int, size: int, device: torch.device) -> torch.Tensor:
        """Mask of the ``size`` positions that the square covers in each image, ``[B, size]``."""
        start = torch.randint(size, (num_images, 1), device=device) - self.length // 2
        position = torch.arange(size, device=device)
        return (position >= start) & (position < start + self.length)

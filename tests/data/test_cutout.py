"""Cutout: size and position of the hidden square, drawn for each image."""
import pytest
import torch

from a2aug_timm.data.cutout import Cutout


@pytest.mark.parametrize('length', [1, 4, 7, 16])
def test_the_hidden_square_has_its_centre_in_the_image_and_is_clipped_at_the_border(length):
    images = torch.ones(4000, 3, 12, 10)
    hidden = Cutout(length)(images) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 2]) and (images == 1).all()
    for dim, size in ((2, 12), (1, 10)):
        covered = hidden[:, 0].any(dim)
        lengths = covered.sum(1)
        # A centre c covers [c - L//2, c - L//2 + L) within the image.
        expected = torch.stack([torch.tensor(
            max(0, min(size, c - length // 2 + length) - max(0, c - length // 2))) for c in range(size)])
        assert sorted(set(lengths.tolist())) == sorted(set(expected.tolist()))
        assert lengths.float().mean().item() == pytest.approx(expected.float().mean().item(), rel=0.05)
        rectangle = hidden[:, 0].any(2)[:, :, None] & hidden[:, 0].any(1)[:, None]
        assert torch.equal(rectangle, hidden[:, 0])
    assert len({tuple(row) for row in hidden[:50, 0].flatten(1).tolist()}) > 10


def test_one_image_is_treated_like_a_batch_of_one():
    torch.manual_seed(3)
    one = Cutout(4)(torch.ones(1, 8, 8))
    torch.manual_seed(3)
    assert torch.equal(one, Cutout(4)(torch.ones(1, 1, 8, 8))[0])
    with pytest.raises(ValueError, match='at least 1 pixel'):
        Cutout(0)

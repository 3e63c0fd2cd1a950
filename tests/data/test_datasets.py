"""Data sets by timm's names, including those of torchvision that timm lacks."""
import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import STL10, SVHN

from a2aug_timm.data.datasets import create_dataset, names_of_classes


def test_eurosat_keeps_every_fifth_image_of_a_class_for_validation(tmp_path):
    names = ['Forest', 'River']
    for name, count in zip(names, (12, 7), strict=True):
        folder = tmp_path / 'eurosat' / '2750' / name
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (64, 64), (i, 0, 0)).save(folder / f'{name}_{i:02d}.png')
    train, validation = (create_dataset('torch/eurosat', str(tmp_path), split) for split in ('train', 'validation'))
    assert names_of_classes(train) == names_of_classes(validation) == names
    paths = {path for path, _ in train.samples}
    assert len(train) == 16 and [target for _, target in validation] == [0, 0, 1]
    assert not paths & {path for path, _ in validation.samples}
    assert [image.getpixel((0, 0))[0] for image, _ in validation] == [4, 9, 4]


def test_svhn_and_stl10_use_their_test_images_for_validation(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    (tmp_path / 'stl10_binary').mkdir()
    (tmp_path / 'stl10_binary' / 'class_names.txt').write_text('bird\ncat\n')
    for kind in (SVHN, STL10):
        monkeypatch.setattr(kind, '_check_integrity', lambda self: True)
    for split, count in (('train', 5), ('test', 3)):
        scipy.io.savemat(tmp_path / f'{split}_32x32.mat', {
            'X': generator.integers(0, 255, (32, 32, 3, count), dtype=np.uint8), 'y': np.full((count, 1), 10)})
        generator.integers(0, 255, (count, 3, 96, 96), dtype=np.uint8).tofile(
            tmp_path / 'stl10_binary' / f'{split}_X.bin')
        np.full(count, 2, dtype=np.uint8).tofile(tmp_path / 'stl10_binary' / f'{split}_y.bin')
    for name, target, size in (('svhn', 0, 32), ('stl10', 1, 96)):
        for split, count in (('train', 5), ('validation', 3)):
            dataset = create_dataset(f'torch/{name}', str(tmp_path), split, download=False)
            image, label = dataset[0]
            assert len(dataset) == count and label == target and image.size == (size, size)


@pytest.mark.parametrize('name', ['svhn', 'stl10', 'flowers102', 'eurosat'])
def test_a_missing_data_set_or_split_is_refused_with_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match=f"cannot read data set 'torch/{name}', split 'train'"):
        create_dataset(f'torch/{name}', str(tmp_path), 'train')
    with pytest.raises(ValueError, match="has the splits train.*, not 'trian'"):
        create_dataset(f'torch/{name}', str(tmp_path), 'trian')

"""Data that validation reads: borders, streams, fields of data sets."""
import pytest
import timm
from PIL import Image

from a2aug_timm.data.datasets import DigitsDataset
from tests.validate.reference import check, images_of, logits_of


def test_border_pixels_are_cut_off_first(run, results, partial):
    argv, folder, _ = partial
    argv += ['--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--crop-border-pixels', '1']
    for file in folder.rglob('*.png'):
        with Image.open(file) as image:
            framed = Image.new('L', (10, 10), 255)
            framed.paste(image, (1, 1))
        framed.save(file)
    measured = results(*argv)
    for file in folder.rglob('*.png'):
        with Image.open(file) as image:
            bare = image.crop((1, 1, 9, 9))
        bare.save(file)
    assert measured == results(*argv[:-2])


class Stream:
    """A reader of digits that have no index, as timm's of wds/ is."""

    def __init__(self, num_samples=None):
        self.num_samples = num_samples

    def __iter__(self):
        digits = DigitsDataset('validation')
        return ((Image.fromarray(image), target) for image, target in zip(digits.images, digits.targets, strict=True))

    def __len__(self):
        return self.num_samples or 0


@pytest.mark.parametrize('num_samples', [None, 360])
def test_streams_are_evaluated_and_their_flags_reach_the_reader(run, branches, results, monkeypatch, num_samples,
                                                                tmp_path):
    seen = {}

    def create_reader(name, **kwargs):
        seen.update(kwargs, name=name)
        return Stream(kwargs['num_samples'])

    monkeypatch.setattr(timm.data.dataset, 'create_reader', create_reader)
    argv = ['--dataset', 'wds/digits', '--data-dir', tmp_path, '--device', 'cpu', '-j', '0', '--checkpoint',
            run / 'last.pth.tar', '--branch', 'all', '--input-key', 'png', '--target-key', 'digit', '-b', '100']
    if num_samples:
        argv += ['--num-samples', str(num_samples)]
    images, target = images_of(DigitsDataset('validation'))
    check(results(*argv), logits_of(*branches, images), target)
    assert (seen['name'], seen['input_key'], seen['target_key'], seen['num_samples'], seen['input_img_mode']) == (
        'wds/digits', 'png', 'digit', num_samples, 'L')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # webdataset leaves files open
def test_a_webdataset_is_evaluated(run, branches, results, tmp_path):
    wds = pytest.importorskip('webdataset')
    digits = DigitsDataset('validation')
    with wds.TarWriter(str(tmp_path / 'digits-0.tar')) as tar:
        for i, (image, target) in enumerate(zip(digits.images, digits.targets, strict=True)):
            tar.write({'__key__': f'{i:04d}', 'png': Image.fromarray(image), 'json': {'digit': target}})
    images, target = images_of(DigitsDataset('validation'))
    measured = results(
        '--dataset', 'wds/digits', '--data-dir', tmp_path, '--split', 'digits-0.tar', '--device', 'cpu', '-j', '0',
        '--num-samples', '360', '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--target-key', 'digit')
    check(measured, logits_of(*branches, images), target)


def test_remote_code_and_keys_reach_a_data_set_of_the_hub(run, refused, monkeypatch):
    seen = {}

    def create(name, **kwargs):
        seen.update(kwargs, name=name)
        raise RuntimeError('not here')

    monkeypatch.setattr(timm.data, 'create_dataset', create)
    argv = ['--dataset', 'hfds/mnist', '--device', 'cpu', '--checkpoint', run / 'export', '--input-key', 'picture',
            '--target-key', 'digit', '--dataset-trust-remote-code']
    assert 'not here' in refused(*argv)
    assert (seen['input_key'], seen['target_key'], seen['trust_remote_code']) == ('picture', 'digit', True)


def test_a_field_that_a_data_set_of_the_hub_lacks_is_named(run, refused, monkeypatch):
    class Reader:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {'image': b'', 'label': 0}['picture'], 0

    monkeypatch.setattr(timm.data.dataset, 'create_reader', lambda *args, **kwargs: Reader())
    argv = ['--dataset', 'hfds/mnist', '--device', 'cpu', '--checkpoint', run / 'export', '--input-key', 'picture']
    assert "with --input-key picture and --target-key None: 'picture'" in refused(*argv)


def test_in_a_folder_the_input_key_chooses_files_by_their_ending(run, results, partial):
    argv, folder, _ = partial
    argv += ['--checkpoint', run / 'export']
    measured = results(*argv)
    for file in folder.rglob('*.png'):
        Image.new('L', (8, 8)).save(file.with_suffix('.jpg'))
    assert results(*argv, '--input-key', '.png') == measured != results(*argv)

"""validate.py as a user runs it: each flag against a reference computed by hand, branches like plain models."""
import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score
from timm.data import create_loader
from timm.data.naflex_loader import create_naflex_loader
from timm.layers import set_fast_norm
from torch.utils.data import Dataset

import a2aug_timm.validate.__main__ as validate
from a2aug_timm import convert_multi_branch_bn, extract_branch, select_branch
from a2aug_timm.branches import MultiBranchBN
from a2aug_timm.cli import checks as dataset_checks
from a2aug_timm.data.datasets import DigitsDataset, create_dataset
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.export import export_branch, load_branches, model_config
from a2aug_timm.validate import checks as validate_checks
from a2aug_timm.validate import inference

CPU = torch.device('cpu')
DIGITS = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0']
INPUT = dict(input_size=(1, 32, 32), mean=(0.3,), std=(0.35,), interpolation='bilinear', crop_pct=0.95)
# The same for checkpoints that do not tell it.
PLAIN = ['--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32', '32', '--mean', '0.3', '--std',
         '0.35', '--interpolation', 'bilinear', '--crop-pct', '0.95']


def write_digits(folder, classes, count):
    """A folder of the first handwritten digits of each class."""
    digits = DigitsDataset('validation')
    for label in classes:
        (folder / str(label)).mkdir(parents=True)
        for index in [i for i, target in enumerate(digits.targets) if target == label][:count]:
            Image.fromarray(digits.images[index]).save(folder / str(label) / f'{index}.png')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of 80 handwritten digits."""
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder / 'validation', range(10), 8)
    return folder


@pytest.fixture(scope='module')
def data(folder):
    """The command line for them."""
    return ['--data-dir', folder, '--device', 'cpu', '-j', '0']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder like a run's: branches with statistics of their own, and one classifier, fitted to the first."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('run')
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    config = model_config(model, INPUT, [str(label) for label in range(10)])
    convert_multi_branch_bn(model, 3)
    images, target = (part[:500] for part in images_of(DigitsDataset('train')))
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        for branch in range(3):
            select_branch(model.train(), branch)
            model(images + branch * torch.rand_like(images))
        select_branch(model.eval(), 0)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        fitted = torch.linalg.lstsq(features, 10 * F.one_hot(target, 10).float()).solution
        for epoch, noise in ((0, 0.1), (1, 0.)):
            model.fc.weight.copy_((fitted + noise * torch.randn_like(fitted)).T)
            model.fc.bias.zero_()
            record = dict(
                config=config, num_branches=3, own='bn', branch_sizes=None, judged_ema=False,
                policies=['v0', '3a', 'augmix-m3'], mu=[0.5, 0.2, 0.3], best_branch=0, metrics=None, epoch=epoch)
            torch.save({'state_dict': model.state_dict(), 'a2aug': record}, folder / f'checkpoint-{epoch}.pth.tar')
    shutil.copy(folder / 'checkpoint-1.pth.tar', folder / 'last.pth.tar')
    export_branch(model, 0, folder / 'export', data_config=INPUT, label_names=config['label_names'],
                  metadata={'policy': 'v0'})
    return folder


@pytest.fixture(scope='module')
def branches(run):
    """Its branches as plain models, and their weights in the ensemble."""
    checkpoint = read_checkpoint(run / 'last.pth.tar')
    model = load_branches(checkpoint, 'last')
    return [extract_branch(model, i).eval() for i in range(3)], torch.tensor(checkpoint['a2aug']['mu'])


@pytest.fixture(scope='module')
def plain(run, tmp_path_factory):
    """A state dict of the run's first branch, which says nothing of how it was trained."""
    path = tmp_path_factory.mktemp('plain') / 'plain.pth'
    torch.save(torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict'], path)
    return path


@pytest.fixture
def results(capsys):
    """What a command line prints as its results."""
    def call(*argv):
        capsys.readouterr()
        validate.main(list(map(str, argv)))
        return json.loads(capsys.readouterr().out.split('--result\n')[1])
    return call


@pytest.fixture
def refused(capsys):
    """The sentence that a command line is refused with."""
    def call(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            validate.main(list(map(str, argv)))
        error = capsys.readouterr().err
        assert exit_info.value.code == 2 and error.count('error:') == 1 and error.endswith('\n'), error
        return error.splitlines()[-1]
    return call


def images_of(source, size=32, **kwargs):
    """All images and targets of a data set or folder, normalised as the run does."""
    dataset = source
    if not isinstance(source, Dataset):
        dataset = SkippingDataset(create_dataset('', str(source), 'validation', allow_no_split=True), 'L')
    kwargs = {**INPUT, 'input_size': (1, size, size), 'use_prefetcher': True, **kwargs}
    (images, target), = create_loader(dataset, batch_size=2000, num_workers=0, device=CPU, **kwargs)
    return images, target


@torch.inference_mode()
def logits_of(models, mu, images):
    """Logits of each branch and of the ensemble."""
    logits = torch.stack([model(images).float() for model in models])
    return torch.cat([logits, (mu.view(-1, 1, 1) * logits).sum(0, keepdim=True)])


def check(results, logits, target):
    """Hold results against logits; in batches of another size one image may fall to the other side."""
    assert len(results) == len(logits)
    abs = 100 / len(target) + 1e-3
    for result, one in zip(results, logits, strict=True):
        hits = one.topk(5).indices == target[:, None]
        assert result['top1'] == pytest.approx(100 * hits[:, :1].any(1).float().mean().item(), abs=abs)
        assert result['top5'] == pytest.approx(100 * hits.any(1).float().mean().item(), abs=abs)
        assert result['top1_err'] == pytest.approx(100 - result['top1'])
        assert result['loss'] == pytest.approx(F.cross_entropy(one, target).item(), abs=1e-3)


@pytest.fixture
def partial(tmp_path):
    """Command line, folder and classes of a data set that holds some digits alone."""
    classes = [0, 1, 4, 5, 7, 9]
    write_digits(tmp_path / 'partial' / 'validation', classes, 10)
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, classes)) + '\n')
    argv = ['--data-dir', tmp_path / 'partial', '--device', 'cpu', '-j', '0', '--valid-labels', tmp_path / 'valid.txt']
    return argv, tmp_path / 'partial', classes


@pytest.mark.parametrize('average', ['micro', 'macro', 'weighted'])
def test_precision_recall_and_f1_are_scikit_learns_for_every_branch_and_the_ensemble(
        run, branches, folder, data, results, average):
    images, target = images_of(folder)
    logits = logits_of(*branches, images)
    measured = results(*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--metrics-avg', average, '-b',
                       '30')
    check(measured, logits, target)
    for result, one in zip(measured, logits, strict=True):
        for name, score in (('precision', precision_score), ('recall', recall_score), ('f1_score', f1_score)):
            reference = score(target.numpy(), one.argmax(1).numpy(), average=average, zero_division=0)
            assert result[f'{average}_{name}'] == pytest.approx(100 * reference, abs=1e-4)


def test_valid_labels_leave_the_logits_of_the_datas_classes(run, branches, plain, results, refused, partial, tmp_path):
    argv, folder, classes = partial
    images, target = images_of(folder)
    logits = logits_of(*branches, images)[..., classes]
    every = ['--checkpoint', run / 'last.pth.tar', '--branch', 'all']
    check(results(*argv, *every, '-b', '17'), logits, target)
    check([results(*argv, '--checkpoint', plain, *PLAIN)], logits[:1], target)

    # A checkpoint that knows its classes by name finds them in any order, since a result does not depend on it.
    argv[-1] = tmp_path / 'other.txt'
    argv[-1].write_text('\n'.join(map(str, classes[::-1])))
    check(results(*argv, *every), logits, target)
    for text, words in (('0\n1', 'the data has 6 classes, but --valid-labels names 2'), ('0\n0', 'a class index twice'),
                        ('0\n1\n4\n5\n7\n10', 'holds class 10, the model has 10'), ('', 'no class index'),
                        ('0\nx', "a class index a line, not 'x'")):
        argv[-1].write_text(text)
        assert words in refused(*argv, '--checkpoint', plain, *PLAIN)
    argv[-1].write_text('0\n1\n2\n3\n4\n5')
    assert 'classes that are not known: 7, 9' in refused(*argv, *every)


def test_real_labels_replace_the_accuracies(run, branches, results, refused, tmp_path):
    digits, generator = DigitsDataset('validation'), np.random.default_rng(0)
    labels = [generator.choice(10, generator.integers(0, 4), replace=False).tolist() for _ in range(40)]
    for i in range(40):
        folder = tmp_path / 'data' / str(digits.targets[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i]).save(folder / f'ILSVRC2012_val_{i + 1:08d}.JPEG', quality=100)
    path = tmp_path / 'real.json'
    path.write_text(json.dumps(labels))
    argv = ['--data-dir', tmp_path / 'data', '--device', 'cpu', '-j', '0', '--checkpoint', run / 'last.pth.tar',
            '--branch', 'all', '--real-labels', path, '-b', '16']
    measured = results(*argv)
    names = create_dataset('', str(tmp_path / 'data'), 'validation', allow_no_split=True).filenames(basename=True)
    order = [int(name[15:23]) - 1 for name in names]
    top5 = logits_of(*branches, images_of(tmp_path / 'data')[0]).topk(5).indices
    for result, one in zip(measured, top5, strict=True):
        for k in (1, 5):
            hits = [bool(set(one[row, :k].tolist()) & set(labels[index]))
                    for row, index in enumerate(order) if labels[index]]
            assert result[f'top{k}'] == pytest.approx(100 * np.mean(hits), abs=1e-4)
    for text, words in (('[[0]]', 'the labels of 1 images'), ('{', 'no JSON list'),
                        (json.dumps([[10]] * 40), 'holds class 10')):
        path.write_text(text)
        assert words in refused(*argv)
    assert 'needs a folder' in refused(*argv, *DIGITS)


def test_test_pool_classifies_each_place_of_a_larger_image_in_every_branch(
        run, branches, folder, data, results, caplog):
    images, target = images_of(folder, 64, crop_pct=1.)
    pooled = []
    for model in branches[0]:
        with torch.inference_mode():  # 32 pixels were one place, 64 are four
            places = model.fc(model.forward_features(images).permute(0, 2, 3, 1)).flatten(1, 2)
            assert places.shape == (80, 4, 10)
            pooled.append(0.5 * (places.mean(1) + places.amax(1)))
    pooled.append(sum(mu * one for mu, one in zip(branches[1], pooled, strict=True)))
    argv = [*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--test-pool']
    measured = results(*argv, '--img-size', '64')
    check(measured, torch.stack(pooled), target)
    assert {(result['crop_pct'], result['img_size']) for result in measured} == {(1., 64)}
    check(results(*argv), logits_of(*branches, images_of(folder)[0]), target)
    assert '--test-pool changes nothing' in caplog.text


@pytest.mark.parametrize('argv', [
    ['--torchscript', '--fuser', 'te'], ['--torchcompile', 'aot_eager'], ['--aot-autograd'],
    ['--channels-last', '--no-prefetcher'], ['--model-dtype', 'float32']], ids=lambda argv: argv[0])
def test_what_only_changes_how_is_computed_changes_no_branchs_result(
        run, branches, folder, data, results, argv, monkeypatch):
    placed = []
    monkeypatch.setattr(validate, 'place', lambda *args: placed.append(inference.place(*args)) or placed[-1])
    images, target = images_of(folder)
    check(results(*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '-b', '50', *argv),
          logits_of(*branches, images), target)
    kinds = {'--torchscript': torch.jit.ScriptModule, '--torchcompile': torch._dynamo.eval_frame.OptimizedModule,
             '--aot-autograd': inference.FusedByShape}
    assert len(placed) == 3 and all(isinstance(model, kinds.get(argv[0], type(branches[0][0]))) for model in placed)
    if argv[0] == '--channels-last':
        assert all(model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) for model in placed)


@pytest.mark.parametrize('argv', [['--model-dtype', 'bfloat16'], ['--model-dtype', 'bfloat16', '--no-prefetcher'],
                                  ['--amp', '--amp-dtype', 'bfloat16']], ids=' '.join)
def test_low_precision_is_that_of_the_model_run_by_hand(run, branches, folder, data, results, argv):
    models, mu = branches
    if argv[0] == '--amp':
        images, target = images_of(folder)
        with torch.autocast('cpu', torch.bfloat16):
            logits = logits_of(models, mu, images)
    else:
        images, target = images_of(
            folder, use_prefetcher='--no-prefetcher' not in argv, img_dtype=torch.bfloat16)
        low = [extract_branch(load_branches(read_checkpoint(run / 'last.pth.tar'), ''), i).bfloat16().eval()
               for i in range(3)]
        logits = logits_of(low, mu, images.bfloat16())
    command = [*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all']
    measured = results(*command, *argv)
    check(measured, logits, target)
    for result, whole in zip(measured, results(*command), strict=True):
        assert result['loss'] != whole['loss'] and result['loss'] == pytest.approx(whole['loss'], rel=0.1)


def hand_made_run(path, name):
    """A checkpoint of two branches of any architecture, whose norms differ."""
    model = timm.create_model(name, num_classes=10, in_chans=1)
    config = model_config(model, INPUT)
    convert_multi_branch_bn(model, 2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MultiBranchBN):
                module.branches[1].weight.mul_(1.3)
                module.branches[1].running_mean.add_(0.1)
        model.get_classifier().weight.mul_(20)
    torch.save({'state_dict': model.state_dict(), 'a2aug': dict(
        config=config, num_branches=2, own='bn', branch_sizes=None, judged_ema=False, policies=['v0', '3a'],
        mu=[0.7, 0.3], best_branch=1, metrics=None, epoch=0)}, path)
    return path


def test_reparam_fuses_each_branch_with_its_own_norms(data, results, tmp_path, run, caplog):
    path = hand_made_run(tmp_path / 'ghost.pth.tar', 'repghostnet_050')
    argv = [*data, '--branch', 'all', '--checkpoint']
    measured, fused = results(*argv, path), results(*argv, path, '--reparam')
    assert measured[0]['loss'] != pytest.approx(measured[1]['loss'], rel=1e-2)
    for one, other in zip(measured, fused, strict=True):
        assert other['param_count'] < one['param_count']
        assert other['loss'] == pytest.approx(one['loss'], rel=1e-3)
    results(*argv, run / 'last.pth.tar', '--reparam')
    assert '--reparam changes nothing: ResNet' in caplog.text


def test_fast_norm_computes_layer_norm_in_the_low_precision_of_amp(image_folder, results, tmp_path, caplog):
    path = tmp_path / 'vit.pth'
    torch.save(timm.create_model('test_vit', num_classes=2).state_dict(), path)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '--model', 'test_vit', '--num-classes', '2',
            '--checkpoint', path, '--amp', '--amp-dtype', 'bfloat16']
    slow = results(*argv)
    try:
        fast = results(*argv, '--fast-norm')
        model = timm.create_model('test_vit', num_classes=2, checkpoint_path=path).eval()
        assert all(module._fast_norm for module in model.modules() if hasattr(module, '_fast_norm'))
    finally:
        set_fast_norm(False)
    dataset = SkippingDataset(create_dataset('', str(image_folder), 'validation'))
    (images, target), = create_loader(
        dataset, (3, 160, 160), 8, interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95,
        num_workers=0, device=CPU)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        logits = model(images).float()
    assert fast['loss'] == pytest.approx(F.cross_entropy(logits, target).item(), abs=1e-4) and fast != slow
    assert 'changes nothing' not in caplog.text


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


def test_naflex_models_are_evaluated_with_patches(image_folder, results, refused, run, tmp_path):
    model = timm.create_model('test_vit', num_classes=2, use_naflex=True).eval()
    path = tmp_path / 'naflex.pth'
    torch.save(model.state_dict(), path)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '-b', '3', '--naflex-loader',
            '--naflex-max-seq-len', '16', '--model', 'test_vit', '--num-classes', '2', '--checkpoint', path]
    kwargs = ['--model-kwargs', 'use_naflex=True']
    dataset = SkippingDataset(create_dataset('', str(image_folder), 'validation'))
    (patches, target), = create_naflex_loader(
        dataset, patch_size=16, max_seq_len=16, batch_size=8, interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3,
        num_workers=0, device=CPU, pin_memory=False)
    with torch.inference_mode():
        reference = F.cross_entropy(model(patches), target).item()
    for more in ([], ['--no-prefetcher'], ['--torchcompile', 'eager']):
        assert results(*argv, *kwargs, *more)['loss'] == pytest.approx(reference, abs=1e-4)
    assert 'needs a NaFlex model, not ResNet' in refused(
        *DIGITS, '--naflex-loader', '--checkpoint', run / 'export')
    assert 'is for plain models' in refused(*DIGITS, '--naflex-loader', '--checkpoint', run / 'last.pth.tar')


@pytest.fixture
def folder_of_checkpoints(run, tmp_path):
    """A run's folder as training leaves it, with a broken checkpoint, a foreign one and a plain one."""
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    shutil.copy(run / 'checkpoint-0.pth.tar', folder / 'checkpoint-2.pth.tar')
    shutil.copy(run / 'checkpoint-1.pth.tar', folder / 'checkpoint-10.pth.tar')
    shutil.copy(run / 'export' / 'model.safetensors', folder / 'best.safetensors')
    (folder / 'broken.pth').write_bytes((run / 'last.pth.tar').read_bytes()[:1000])
    torch.save({'weight': torch.zeros(1)}, folder / 'foreign.pth')
    (folder / 'notes.txt').write_text('no checkpoint')
    return folder


def test_a_folder_of_checkpoints_is_validated_file_by_file_and_one_that_fails_loses_no_other(
        data, folder_of_checkpoints, results, tmp_path, caplog, refused):
    folder, path = folder_of_checkpoints, tmp_path / 'all.csv'
    argv = [*data, '--model', 'test_resnet', '--branch', 'all']
    measured = results(*argv, '--checkpoint', folder, '--results-file', path)
    order = [result['top1'] for result in measured]
    assert order == sorted(order, reverse=True) and len(measured) == 9
    for name in ('checkpoint-2.pth.tar', 'checkpoint-10.pth.tar', 'best.safetensors'):
        own = [result for result in measured if result['checkpoint'] == str(folder / name)]
        alone = results(*data, '--checkpoint', folder / name, *([] if name.startswith('best') else argv[-2:]))
        alone = alone if isinstance(alone, list) else [alone]
        assert sorted(own, key=str) == sorted([{**one, 'checkpoint': str(folder / name)} for one in alone], key=str)
    with open(path, encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['checkpoint'] for row in rows] == [result['checkpoint'] for result in measured]
    assert {row['branch'] for row in rows} == {'0', '1', '2', 'ensemble', ''}
    assert "broken.pth' is not a checkpoint or is damaged" in caplog.text
    assert f'2 of 5 failed: {folder}/broken.pth, {folder}/foreign.pth' in caplog.text

    caplog.clear()
    alone = results(*data, '--checkpoint', folder, '--branch', '2')
    assert {result['branch'] for result in alone} == {2} and "there is no branch '2'" in caplog.text
    (tmp_path / 'empty').mkdir()
    assert 'no checkpoint in the folder' in refused(*argv, '--checkpoint', tmp_path / 'empty')


def test_an_interrupted_bulk_run_keeps_what_it_has(data, folder_of_checkpoints, results, tmp_path, monkeypatch):
    real = validate.measure

    def measure(args, candidate, batch_size):
        if args.checkpoint.endswith('checkpoint-10.pth.tar'):  # pytest's own folder may have a -10 too
            assert len((tmp_path / 'part.csv').read_text().splitlines()) == 3  # written before the next one begins
            raise KeyboardInterrupt
        return real(args, candidate, batch_size)

    monkeypatch.setattr(validate, 'measure', measure)
    measured = results(*data, '--checkpoint', folder_of_checkpoints, '--results-file', tmp_path / 'part.csv')
    assert {result['checkpoint'].rsplit('/')[-1] for result in measured} == {'best.safetensors', 'checkpoint-2.pth.tar'}


def test_a_bulk_run_without_any_result_ends_with_code_1(tmp_path, capsys):
    (tmp_path / 'broken.pth').write_text('')
    with pytest.raises(SystemExit) as exit_info:
        validate.main([*DIGITS, '--model', 'test_resnet', '--checkpoint', str(tmp_path), '--results-file',
                       str(tmp_path / 'r.csv')])
    assert exit_info.value.code == 1 and capsys.readouterr().out.endswith('--result\n[]\n')
    assert (tmp_path / 'r.csv').exists()


def test_models_by_wildcard_all_or_a_file_of_names_are_validated_with_pretrained_weights(
        image_folder, results, refused, monkeypatch, tmp_path, caplog):
    names = ['test_resnet.r160_in1k', 'test_vit.r160_in1k', 'test_efficientnet.r160_in1k']
    for name in names[:2]:  # the third has to be fetched, which fails here
        path = tmp_path / f'{name}.pth'
        torch.save(timm.create_model(name).state_dict(), path)
        monkeypatch.setattr(timm.models.get_pretrained_cfg(name, allow_unregistered=False), 'file', str(path))
        monkeypatch.setattr(
            timm.models._registry._model_pretrained_cfgs[name], 'file', str(path))
    data = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '--img-size', '64']
    alone = [results(*data, '--model', name) for name in names[:2]]
    ranked = sorted(alone, key=lambda result: result['top1'], reverse=True)
    listed = tmp_path / 'names.txt'
    listed.write_text('\n'.join(names) + '\n\n')
    assert sorted(results(*data, '--model', listed), key=str) == sorted(ranked, key=str)
    assert '1 of 3 failed: test_efficientnet.r160_in1k' in caplog.text
    assert results(*data, '--model', 'test_resne*') == [alone[0]]
    asked = {}

    def list_models(**kwargs):
        asked.update(kwargs)
        return names[:1]

    monkeypatch.setattr(timm, 'list_models', list_models)
    assert results(*data, '--model', 'all') == [alone[0]]
    assert asked['pretrained'] and '*_in21k' in asked['exclude_filters']
    monkeypatch.undo()
    listed.write_text('test_resnet\nresnet51\n')
    assert "no model 'resnet51'" in refused(*data, '--model', listed)
    assert 'names 2' in refused(*data, '--model', listed, '--checkpoint', 'x.pth')
    assert "no pretrained model like 'nonesuch*'" in refused(*data, '--model', 'nonesuch*')
    listed.write_text('\n')
    assert 'names no model' in refused(*data, '--model', listed)


def test_retry_takes_smaller_batches_until_one_fits_into_memory(run, data, results, monkeypatch, capsys):
    sizes, real = [], validate.branch_logits

    def branch_logits(model, images):
        sizes.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return real(model, images)

    monkeypatch.setattr(validate, 'branch_logits', branch_logits)
    argv = [*map(str, data), '--checkpoint', str(run / 'export'), '-b', '64']
    limit = 1000
    whole = results(*argv)
    limit, sizes = 30, []
    assert results(*argv, '--retry') == whole
    assert sizes == [64, 48, 32, 24, 24, 24, 8]
    with pytest.raises(torch.OutOfMemoryError):
        validate.main(argv)
    limit, sizes = 0, []
    with pytest.raises(SystemExit) as exit_info:
        validate.main([*argv, '--retry'])
    assert exit_info.value.code == 1 and sizes[-1] == 1
    assert json.loads(capsys.readouterr().out.split('--result\n')[-1])['error'] == 'CUDA out of memory'


def test_ema_weights_are_those_that_are_evaluated(run, data, results, tmp_path):
    checkpoint = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)
    worse = {key: torch.zeros_like(value) if 'fc' in key else value for key, value in checkpoint['state_dict'].items()}
    torch.save({'state_dict': checkpoint['state_dict'], 'state_dict_ema': worse}, tmp_path / 'ema.pth.tar')
    argv = [*data, '--checkpoint', tmp_path / 'ema.pth.tar', *PLAIN]
    assert results(*argv)['top1'] > 50 > results(*argv, '--use-ema')['top1']


@pytest.mark.parametrize('argv, words', [
    (['--branch', '3'], "no branch '3'; this checkpoint has branches 0 to 2"), (['--branch', 'first'], 'no branch'),
    (['--model', 'resnet18'], '--model resnet18 contradicts'), (['--num-classes', '4'], '--num-classes 4 contradicts'),
    (['--use-ema'], 'no EMA'), (['--results-format', 'xml'], '--results-format must be one of'),
    (['--checkpoint', 'nowhere.pth'], "no checkpoint 'nowhere.pth'"), (['--crop-pct', '0'], 'above 0'),
    (['--num-gpu', '0'], '--num-gpu must be at least 1'), (['--num-gpu', '2'], 'needs as many GPUs'),
    (['--num-samples', '5'], '--num-samples has no effect on sklearn/digits; it is for hfids/, wds/'),
    (['--input-key', 'x'], 'no effect'), (['--target-key', 'x'], 'it is for hfds/, hfids/, tfds/, wds/'),
    (['--dataset-trust-remote-code'], 'no effect'), (['--dataset-download'], 'no effect'),
    (['--class-map', 'x'], 'no effect'), (['--pretrained'], '--pretrained does not go with --checkpoint'),
    (['--model-dtype', 'float8'], '--model-dtype must be one of'),
    (['--amp-dtype', 'float16'], '--amp-dtype has no effect without --amp'),
    (['--amp', '--model-dtype', 'bfloat16'], '--amp needs a model in float32'),
    (['--torchscript', '--torchcompile'], 'not allowed with argument'),
    (['--torchcompile', '--aot-autograd'], 'not allowed with argument'),
    (['--torchcompile', 'indicator'], "no backend 'indicator'; this torch has"),
    (['--torchcompile-mode', 'default'], 'no effect without --torchcompile'),
    (['--torchcompile', '--torchcompile-mode', 'fast'], '--torchcompile-mode must be one of default'),
    (['--torchcompile', 'eager', '--torchcompile-mode', 'default'], 'no effect on the backend eager'),
    (['--fuser', 'te'], '--fuser has no effect without --torchscript or --aot-autograd'),
    (['--torchscript', '--fuser', 'nvfuser'], '--fuser must be one of te, old'),
    (['--fast-norm'], '--fast-norm has no effect without --amp'),
    (['--real-labels', 'x.json'], "no file 'x.json' (--real-labels)"),
    (['--valid-labels', 'x.txt'], "no file 'x.txt' (--valid-labels)"),
    (['--valid-labels', 'README.md', '--real-labels', 'README.md'], '--real-labels does not go with --valid-labels'),
    (['--metrics-avg', 'median'], 'invalid choice'), (['--naflex-max-seq-len', '64'], 'without --naflex-loader'),
    (['--naflex-loader', '--crop-pct', '1'], '--crop-pct does not go with --naflex-loader'),
    (['--naflex-loader', '--test-pool'], '--test-pool does not go with'),
    (['--tf-preprocessing', '--no-prefetcher'], '--no-prefetcher does not go with --tf-preprocessing'),
    (['--tf-preprocessing'], 'not sklearn/digits'), (['--results-format', 'json'], 'without --results-file'),
    (['--results-file', '/nowhere/r.csv'], 'no folder for --results-file')], ids=lambda value: ' '.join(value)[:50])
def test_bad_input_is_one_sentence_and_exit_code_2(run, refused, argv, words, monkeypatch):
    monkeypatch.chdir(inference.__file__.rsplit('/', 3)[0])
    assert words in refused(*DIGITS, '--checkpoint', run / 'last.pth.tar', *argv)


def test_packages_that_are_missing_are_named(run, refused, monkeypatch, image_folder):
    monkeypatch.setattr(validate_checks, 'find_spec', lambda name: None)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '--checkpoint', run / 'export']
    for flag, package in (('--tf-preprocessing', 'tensorflow'), ('--aot-autograd', 'functorch')):
        assert f'{flag} needs {package}, which is not there' in refused(*argv, flag)
    assert 'install scikit-learn' in refused(*argv, '--metrics-avg', 'macro')


def test_a_config_file_cannot_ask_for_two_compilers(run, refused, tmp_path):
    (tmp_path / 'c.yaml').write_text('torchscript: true\ntorchcompile: eager\n')
    assert 'exclude each other' in refused('-c', tmp_path / 'c.yaml', *DIGITS, '--checkpoint', run / 'export')


def test_a_model_that_a_flag_does_not_fit_is_named(refused, tmp_path, image_folder):
    path = tmp_path / 'vit.pth'
    torch.save(timm.create_model('test_vit', num_classes=2).state_dict(), path)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '--model', 'test_vit', '--num-classes', '2',
            '--checkpoint', path]
    sentence = refused(*argv, '--test-pool', '--img-size', '192', '--model-kwargs', 'dynamic_img_size=True')
    assert 'VisionTransformer does not' in sentence
    assert '--torchcompile tvm failed' in refused(*argv, '--torchcompile', 'tvm')


def test_several_gpus_share_a_batch(monkeypatch):
    made = {}
    monkeypatch.setattr(torch.nn, 'DataParallel', lambda model, device_ids: made.update(ids=device_ids) or model)
    args, _ = validate.validate_parser().parse(['--device', 'cpu', '--num-gpu', '3'])
    inference.place(args, torch.nn.Linear(2, 2))
    assert made['ids'] == [0, 1, 2]
    seen = []
    monkeypatch.setattr(validate, 'measure', lambda args, candidate, batch_size: seen.append(batch_size))
    validate.measure_with_retry(args, None)
    assert seen == [3 * 256]


@pytest.mark.parametrize('argv, words', [
    (['--torchcompile', 'aot_eager'], '--num-gpu 2 and --torchcompile do not'),
    (['--aot-autograd'], '--aot-autograd do not go'), (['--amp', '--amp-dtype', 'bfloat16'], '--model-dtype bfloat16'),
    (['--num-gpu', '3'], 'needs as many GPUs')])
def test_what_several_gpus_cannot_share_is_refused(refused, run, monkeypatch, argv, words):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert words in refused(*DIGITS, '--checkpoint', run / 'export', '--device', 'cuda', '--num-gpu', '2', *argv)


@pytest.mark.parametrize('name, root, kind', [
    ('', 'images', 'a folder'), ('', 'images.tar', 'a tar file'), ('torch/mnist', 'x', 'torch/'),
    ('WDS/x', 'x', 'wds/'), ('sklearn/digits', None, 'sklearn/digits')])
def test_data_sets_are_of_timms_kinds(name, root, kind):
    assert dataset_checks.dataset_kind(name, root) == kind


def test_an_export_in_a_folder_is_one_model(data, results, tmp_path):
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    export_branch(model, 0, tmp_path / 'export', data_config={'input_size': (1, 32, 32)})
    assert isinstance(results(*data, '--checkpoint', tmp_path / 'export'), dict)

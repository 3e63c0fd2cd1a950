"""Flags of train.py: their effects on short runs and on the objects that are built."""
import csv
import json
import math
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.models import save_for_hf
from torchvision.transforms import AutoAugment

import a2aug_timm.train.__main__ as train
import a2aug_timm.validate.__main__ as validate
from a2aug_timm import MultiBranchNorm
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.keeper import CheckpointKeeper
from a2aug_timm.engine.record import require_record
from a2aug_timm.export import load_branches
from tests.commands import SMALL, THREE, built, refused


@pytest.fixture
def run(tmp_path):
    """Train, and return the folder, the rows of the summary, and the last checkpoint."""
    def go(*argv, name='run'):
        train.main([*SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', name, *map(str, argv)])
        with open(tmp_path / name / 'summary.csv', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
        assert all(math.isfinite(float(row['train_loss'])) for row in rows)
        assert all(float(row.pop('train_seconds')) > 0 for row in rows)  # they differ between equal runs
        assert (tmp_path / name / 'export' / 'model.safetensors').exists()
        return tmp_path / name, rows, read_checkpoint(tmp_path / name / 'last.pth.tar')
    return go


def built_small(tmp_path, *argv):
    """Objects of a short run, see ``built``."""
    return built([*SMALL, '--epochs', '1', '--output', tmp_path, *argv])


@pytest.fixture
def teacher(tmp_path):
    """A pretrained model of digits in a folder."""
    save_for_hf(timm.create_model('test_byobnet', num_classes=10, in_chans=1), tmp_path / 'teacher')
    return f'local-dir:{tmp_path}/teacher'


def test_all_norms_can_have_branches_and_load_from_the_checkpoint(run):
    folder, _, checkpoint = run(
        *THREE, '--model', 'test_vit', '--img-size', '32', '--a2aug-norm', 'all', '--opt', 'adamw')
    model = load_branches(checkpoint, 'last')
    assert any(isinstance(module, MultiBranchNorm) for module in model.modules())
    assert any('.branches.2.' in key for key in checkpoint['state_dict'])
    plain = timm.create_model(f'local-dir:{folder}/export', pretrained=True)
    assert type(plain.norm) is not MultiBranchNorm


def test_branches_of_different_sizes_are_evaluated_and_exported_at_their_sizes(run, tmp_path):
    folder, rows, checkpoint = run(
        *THREE, '--a2aug-branch-sizes', '32', '24', '16', '--a2aug-policies', 'none', 'none', 'v0')
    best = require_record(checkpoint, 'last').best_branch
    size = (32, 24, 16)[best]
    assert timm.create_model(f'local-dir:{folder}/export', pretrained=True).pretrained_cfg['input_size'] == (
        1, size, size)
    policy = ('none', 'none', 'v0')[best]
    assert json.loads((folder / 'result.json').read_text())['policy'] == f'{policy} at {size}'
    source = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0', '--checkpoint', str(folder / 'last.pth.tar')]
    validate.main([*source, '--branch', 'all', '--results-file', str(tmp_path / 'all.csv')])
    with open(tmp_path / 'all.csv', encoding='utf-8') as file:
        results = list(csv.DictReader(file))
    assert [result['img_size'] for result in results] == ['32', '24', '16', '32']
    for branch, result in enumerate(results[:3]):
        assert float(result['top1']) == pytest.approx(float(rows[-1][f'eval_branch_{branch}_top1']), abs=1e-3)
    with pytest.raises(SystemExit):
        validate.main([*source, '--img-size', '64'])


def test_separate_networks_are_built_with_the_arguments_of_the_model(run):
    *_, checkpoint = run(*THREE, '--model', 'test_vit', '--img-size', '64', '--model-kwargs', 'img_size=64',
                              '--a2aug-independent', '--input-size', '1', '64', '64')
    record = require_record(checkpoint, 'last')
    assert record.own == 'network' and record.data_config['input_size'] == (1, 64, 64)


def test_plain_training_accepts_policies_that_timm_lacks(tmp_path):
    for policy, kind in (('rand-m9-n2-tpublished', RandAugment), ('autoaugment_svhn', AutoAugment)):
        data = built_small(tmp_path, '--aa', policy, '--cutout', '4', '--train-crop-mode', 'pad').data
        assert len(next(iter(data.train))[0]) == 256
        _, transform, *_ = data.train.dataset.transform.transforms
        assert type(transform) is kind


def test_binary_cross_entropy_is_the_loss_of_every_branch(tmp_path):
    training = built_small(tmp_path, *THREE, '--bce-loss', '--bce-sum', '--bce-target-thresh', '0.3',
                           '--bce-pos-weight', '2').training
    criterion = training.step.task.trainable_module.loss.criterion
    logits, target = torch.randn(4, 10), torch.tensor([1, 2, 3, 0])
    smoothed = torch.nn.functional.one_hot(target, 10) * 0.9 + 0.01
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, (smoothed > 0.3).float(), pos_weight=torch.tensor(2.), reduction='none').sum(1).mean()
    torch.testing.assert_close(criterion(logits, target), expected)


def test_the_loss_and_mu_stay_in_float32_with_half_precision_weights(run):
    *_, checkpoint = run(
        *THREE, '--model-dtype', 'bfloat16', '--grad-checkpointing', '--no-prefetcher', '--channels-last')
    weights = checkpoint['state_dict']
    assert weights['fc.weight'].dtype == torch.bfloat16 and checkpoint['task_state']['mu_logits'].dtype == torch.float32
    # 1,437 images in batches of 256: five updates, each counted once although activations were computed twice.
    assert weights['layer1.0.bn1.branches.1.num_batches_tracked'] == 5


@pytest.mark.parametrize('argv', [THREE, [], ['--kd-distill-type', 'feature']], ids=' '.join)
def test_the_loss_of_an_external_teacher_is_added(run, teacher, tmp_path, argv):
    argv = ['--kd-model-name', teacher, '--task-loss-weight', '0.3', '--kd-temperature', '2', *argv]
    _, rows, _ = run(*argv)
    names = ['train_kd_0', 'train_kd_2'] if '--a2aug-branches' in argv else ['train_kd_loss', 'train_task_loss']
    assert all(float(rows[0][name]) > 0 for name in names)
    task = built_small(tmp_path / 'again', *argv).training.step.task
    assert task.distill_loss_weight == pytest.approx(0.7) and not task.teacher.model.training
    # Images are normalised for the student by what the command line says, for the teacher by its own settings.
    images = torch.full((1, 1, 2, 2), 0.5)
    student = (images - 0.3) / 0.35
    config = task.teacher.model.pretrained_cfg
    expected = (images - sum(config['mean']) / len(config['mean'])) / (sum(config['std']) / len(config['std']))
    torch.testing.assert_close(
        task.teacher.normalize_input(student, task.student_mean, task.student_std), expected)


def test_batches_of_several_image_sizes_are_weighted_by_their_number_of_images(run, tmp_path):
    argv = [
        *THREE, '--train-img-sizes', '32', '48', '--train-batch-sizes', '256', '128', '--reprob', '0.5', '--resplit',
        '--variable-batch-loss-scale', 'sqrt', '--lr', '0', '--lr-base', '0.1']
    run(*argv)
    again = built_small(tmp_path / 'again', *argv)
    loader, step = again.data.train, again.training.step
    shapes = {(images.shape, len(target)) for images, target in loader}
    assert shapes == {((768, 1, 32, 32), 256), ((384, 1, 48, 48), 128)}
    assert loader.random_erasing.num_splits == 3
    assert step.optimizer.param_groups[0]['initial_lr'] == pytest.approx(0.1 * 192 / 256)
    assert step.loss_scale(256) / step.loss_scale(128) == pytest.approx(2 ** 0.5)
    assert all(len(transform.branches) == 3 for transform in loader.dataset.transforms)


@pytest.mark.parametrize('prefetcher', [[], ['--no-prefetcher']], ids=['prefetcher', 'none'])
@pytest.mark.parametrize('branches', [THREE, []], ids=['three', 'one'])
def test_images_are_padded_and_cropped_before_the_policy_and_cut_out_after_it(tmp_path, branches, prefetcher):
    loader = built_small(tmp_path, *branches, *prefetcher, '--train-crop-mode', 'pad', '--crop-padding', '3',
                         '--cutout', '8').data.train
    transform = loader.dataset.transform
    crop = (transform.base if branches else transform).transforms[0].transforms[1]
    assert (crop.padding, tuple(crop.size)) == (3, (32, 32))
    images, _ = next(iter(loader))
    hidden = (images == 0).flatten(1).sum(1)  # no gray value equals the mean
    assert hidden.max() == 64 and (hidden >= 16).all() and len(hidden.unique()) > 4


def test_a_compiled_run_gives_the_weights_of_an_eager_run(run):
    argv = [*THREE, '--train-subset', '600', '--model-ema', '--model-ema-decay', '0.5', '--mixup', '0.2']
    _, eager, checkpoint = run(*argv)
    _, compiled, other = run(*argv, '--torchcompile', 'eager', name='compiled')
    assert eager == compiled
    assert all(torch.equal(value, other['state_dict'][key]) for key, value in checkpoint['state_dict'].items())


@pytest.mark.filterwarnings('ignore:.torch.jit.:FutureWarning', 'ignore:.torch.jit.:DeprecationWarning')
@pytest.mark.parametrize('argv', [
    ['--torchscript', '--model-ema'],
    ['--aug-splits', '2', '--split-bn', '--jsd-loss', '--aa', 'rand-m9', '--reprob', '0.5', '--resplit']], ids=' '.join)
def test_a_scripted_or_split_model_is_exported_as_the_plain_model(run, argv):
    folder, rows, checkpoint = run(*argv)
    model = timm.create_model(f'local-dir:{folder}/export', pretrained=True)
    weights = checkpoint['state_dict_ema' if '--model-ema' in argv else 'state_dict']
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert any('aux_bn' in key for key in weights) == ('--split-bn' in argv)


def test_a_recovery_checkpoint_restarts_its_epoch_and_is_removed_after_it(run, tmp_path, monkeypatch):
    kept = []
    save = CheckpointKeeper.save_recovery

    def save_and_keep(self, state, epoch, update):
        save(self, state, epoch, update)
        path, = self.folder.glob('recovery-*.pth.tar')
        kept.append((path.name, path.read_bytes()))
    monkeypatch.setattr(CheckpointKeeper, 'save_recovery', save_and_keep)
    folder, *_ = run(
        *THREE, '-b', '64', '--train-subset', '320', '--recovery-interval', '2', '--epochs', '2')
    assert [name for name, _ in kept] == [f'recovery-{epoch}-{update}.pth.tar' for epoch in (0, 1) for update in (1, 3)]
    assert not list(folder.glob('recovery-*'))

    recovery = folder / kept[2][0]
    recovery.write_bytes(kept[2][1])
    train.main(['--resume', str(recovery), '--device', 'cpu', '--output', str(tmp_path), '--experiment', 'again'])
    with open(tmp_path / 'again' / 'summary.csv', encoding='utf-8') as file:
        assert [row['epoch'] for row in csv.DictReader(file)] == ['0', '1']


def test_pictures_of_batches_show_one_row_per_view(run):
    folder, *_ = run(*THREE, '--save-images', '--log-interval', '3', '--synchronize-step')
    pictures = sorted(folder.glob('train-batch-*.jpg'))
    assert [path.name for path in pictures] == [f'train-batch-{i}.jpg' for i in (0, 3, 4)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (32 * 32, 3 * 32)


def test_flags_set_the_initial_weights_of_the_head(run):
    *_, checkpoint = run(*THREE, '--head-init-scale', '0', '--head-init-bias', '-3', '--lr', '1e-12')
    assert checkpoint['state_dict']['fc.weight'].abs().max() < 1e-6
    torch.testing.assert_close(checkpoint['state_dict']['fc.bias'], torch.full((10,), -3.))


def test_rows_of_the_summary_are_sent_to_wandb(run, monkeypatch):
    sent = []

    class Wandb:
        @staticmethod
        def init(**kwargs):
            sent.append(kwargs)
            return type('Run', (), {'log': staticmethod(sent.append)})
    monkeypatch.setitem(sys.modules, 'wandb', Wandb)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    folder, rows, _ = run(*THREE, '--log-wandb', '--wandb-project', 'p', '--wandb-tags', 'a', 'b')
    assert sent[0]['project'] == 'p' and sent[0]['tags'] == ['a', 'b'] and sent[0]['name'] == folder.name
    assert sent[0]['config']['a2aug_policies'] == yaml.safe_load((folder / 'args.yaml').read_text())['a2aug_policies']
    assert {name: str(value) for name, value in sent[1].items() if name != 'train_seconds'} == rows[0]


def test_a_naflex_model_trains_on_patches(image_folder, tmp_path):
    train.main(['--data-dir', str(image_folder), '--model', 'naflexvit_base_patch16_gap', '--model-kwargs',
                'embed_dim=32', 'depth=1', 'num_heads=2', '--num-classes', '2', '--naflex-loader',
                '--naflex-train-seq-lens', '4', '9', '--naflex-max-seq-len', '9', '-b', '8', '-j', '0', '--device',
                'cpu', '--epochs', '1', '--lr', '0.01', '--mixup', '0.2', '--output', str(tmp_path),
                '--experiment', 'naflex'])
    assert (tmp_path / 'naflex' / 'export' / 'model.safetensors').exists()


@pytest.mark.parametrize('flags', [[], ['--no-prefetcher'], ['--grayscale-prob', '0.5', '--a2aug-independent-crops'],
                                   ['--train-img-sizes', '32', '24', '-j', '1']], ids=lambda flags: ' '.join(flags[:1]))
def test_training_with_opencv_ops_is_close_to_training_with_pillow_ops(tmp_path, image_folder, flags):
    losses = {}
    for backend in ('pillow', 'opencv'):
        argv = ['--data-dir', str(image_folder), '--model', 'test_resnet', '--num-classes', '2', '--img-size', '32',
                '-b', '8', '-j', '0', '--device', 'cpu', '--epochs', '1', '--lr', '0.001', '--a2aug-branches', '2',
                '--output', str(tmp_path), '--experiment', backend, '--train-interpolation', 'bilinear']
        train.main([*argv, *flags, '--a2aug-op-backend', backend])
        losses[backend] = float((tmp_path / backend / 'summary.csv').read_text().splitlines()[1].split(',')[1])
    assert losses['opencv'] == pytest.approx(losses['pillow'], rel=0.02) and losses['opencv'] != losses['pillow']


def test_the_opencv_backend_names_the_package_to_install_when_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    argv = ['--dataset', 'sklearn/digits', '--a2aug-branches', '2', '--a2aug-op-backend', 'opencv']
    assert 'pip install opencv-python-headless' in refused(capsys, train.main, argv)


@pytest.mark.slow
def test_two_ranks_train_with_repeated_augmentation(run_script, tmp_path):
    run_script('./distributed_train.sh', '2', *SMALL, *THREE, '--epochs', '1', '-b', '128', '--aug-repeats', '2',
               '--output', tmp_path, '--experiment', 'repeats')
    checkpoint = read_checkpoint(tmp_path / 'repeats' / 'last.pth.tar')
    # 1,437 images, rounded down to a multiple of 256 and shared by two ranks: five batches of 128 each.
    assert checkpoint['state_dict']['bn1.branches.0.num_batches_tracked'] == 5

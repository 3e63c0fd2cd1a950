"""train.py and validate.py as a user runs them: what they write, refuse, survive and resume."""
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from conftest import ROOT

import a2aug_timm.train.__main__ as train
import a2aug_timm.validate.__main__ as validate
from a2aug_timm import sample_policies
from a2aug_timm.data.datasets import create_dataset, names_of_classes
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.export.__main__ import main as export_main
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.run_folder import choose_folder

SMALL = ['--dataset', 'sklearn/digits', '--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32',
         '32', '--mean', '0.3', '--std', '0.35', '--hflip', '0', '--warmup-epochs', '0', '--lr', '0.05', '-b', '256',
         '-vb', '360', '-j', '0', '--device', 'cpu']
THREE = ['--a2aug-branches', '3']


def run_train(tmp_path, *argv, epochs=1):
    train.main([*SMALL, '--epochs', str(epochs), '--output', str(tmp_path), '--experiment', 'run', *argv])
    return tmp_path / 'run'


def rows_of(run):
    """Rows of the summary, but for the seconds, which no two runs share."""
    with open(run / 'summary.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert all(float(row.pop('train_seconds')) > 0 for row in rows)
    return rows


def refused(capsys, main, argv):
    """The sentence that a command line is refused with."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, argv)))
    error = capsys.readouterr().err
    assert exit_info.value.code == 2, error
    assert error.count('error:') == 1 and error.endswith('\n'), error
    return error.splitlines()[-1]


def test_the_quickstart_trains_and_what_it_prints_works(run_script, tmp_path):
    done = run_script('python', 'train.py', '-c', 'hparams/quickstart.yaml', '--output', tmp_path)
    run, = tmp_path.iterdir()
    assert done.stdout.count('ensemble') == len(rows_of(run)) >= 10
    for word in ('policy', 'μ', 'top-1', 'top-5', 'loss', sample_policies(3, 0)[2], 'Best: branch', f'{run}/export'):
        assert word in done.stdout
    assert max(float(row['eval_top1']) for row in rows_of(run)) > 95
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in (line for line in lines if line.startswith('timm.create_model')):
        assert eval(line, {'timm': timm}).num_classes == 10
    command, = (line.split() for line in lines if line.startswith('python validate.py'))
    assert 'ensemble' in run_script(*command).stdout


def test_a_run_leaves_arguments_summary_checkpoints_and_an_export(tmp_path, capsys):
    run = run_train(tmp_path, *THREE, '--checkpoint-hist', '1', epochs=2)
    policies = sample_policies(3, 42)
    args = yaml.safe_load((run / 'args.yaml').read_text())
    assert args['a2aug_policies'] == policies and args['lr'] == 0.05 and args['a2aug_seed'] == 42
    rows = rows_of(run)
    assert [row['epoch'] for row in rows] == ['0', '1']
    for name in ('train_loss', 'train_ce_2', 'train_kl_0', 'train_ensemble_ce', 'eval_top1', 'mu_1', 'best_branch',
                 'eval_branch_2_top5', 'eval_ensemble_loss', 'lr'):
        float(rows[1][name])
    assert sum(float(rows[1][f'mu_{i}']) for i in range(3)) == pytest.approx(1)

    checkpoint = read_checkpoint(run / 'last.pth.tar')
    best = max(rows, key=lambda row: float(row['eval_top1']))
    assert checkpoint['a2aug']['policies'] == policies and checkpoint['a2aug']['best_branch'] == int(
        rows[1]['best_branch'])
    assert len(list(run.glob('checkpoint-*.pth.tar'))) == 1
    exported = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['metadata']
    assert exported['branch'] == int(best['best_branch'])
    assert exported['policy'] == policies[exported['branch']]
    assert exported['metrics']['top1'] == pytest.approx(float(best['eval_top1']))

    # args.yaml is a config file again, and gives the same run.
    train.main(['-c', str(run / 'args.yaml'), '--experiment', 'again'])
    assert rows_of(tmp_path / 'again') == rows
    assert 'holds a run already' in refused(capsys, train.main, ['-c', run / 'args.yaml'])


@pytest.mark.parametrize('argv', [
    ['--a2aug-shared-bn'], ['--a2aug-independent'], ['--a2aug-ensemble', 'average', '--a2aug-loss-reduction', 'mean'],
    ['--a2aug-independent-crops', '--no-prefetcher', '--channels-last', '--reprob', '0.5'],
    ['--a2aug-no-logit-norm', '--a2aug-kl-weight', '0.5', '--smoothing', '0', '--clip-grad', '1', '--clip-mode', 'agc'],
    ['--a2aug-logit-scale', '4', '--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2'],
    ['--a2aug-policies', 'rand-m9-n2-mstd0.5-inc1', 'original', 'augmix-m3', '--opt', 'adamw', '--sched', 'step'],
    ['--model-ema', '--model-ema-decay', '0.5', '--val-interval', '2', '--eval-metric', 'loss', '-j', '1'],
    ['--mixup', '0.2', '--cutmix', '1', '--mixup-mode', 'elem', '--mixup-off-epoch', '1', '-j', '1'],
    ['--cutmix', '1', '--no-prefetcher', '--mixup-off-epoch', '1'],
    ['--val-split', '', '--sched-on-updates']], ids=lambda argv: argv[0])
def test_flags_work_with_branches(tmp_path, argv):
    run = run_train(tmp_path, *THREE, *argv, epochs=2)
    assert (run / 'export' / 'model.safetensors').exists()
    rows = rows_of(run)
    assert len(rows) == (1 if '--val-interval' in argv else 2)
    assert sum(float(row['train_views']) for row in rows) == 2 * 3 * 1280  # the last of 1,437 images fill no batch
    mu = [float(rows[-1][f'mu_{i}']) for i in range(3)]
    assert (mu == pytest.approx([1 / 3] * 3)) == ('average' in argv)
    assert ('eval_top1' in rows[0]) == ('--val-split' not in argv)
    assert ('eval_ensemble_top1' in rows[0]) == ('--val-split' not in argv and '--a2aug-shared-bn' not in argv)


def test_flags_reach_what_they_name(tmp_path, monkeypatch):
    built = {}

    def spy(module, name, key):
        original = getattr(module, name)

        def call(*args, **kwargs):
            built[key] = original(*args, **kwargs)
            built[f'{key} kwargs'] = kwargs
            return built[key]
        monkeypatch.setattr(module, name, call)

    spy(train, 'build_task', 'task')
    spy(train, 'build_loaders', 'loaders')
    spy(train, 'OptimizerStep', 'step')
    spy(train, 'train_one_epoch', 'terms')
    run_train(
        tmp_path, *THREE, '--a2aug-ensemble-weight', '0.5', '--a2aug-kl-weight', '0.25', '--a2aug-logit-scale', '3',
        '--a2aug-mu-lr-scale', '5',
        '--a2aug-loss-reduction', 'mean', '--a2aug-independent-crops', '--smoothing', '0.2', '--reprob', '0.5',
        '--remode', 'const', '--recount', '2', '--clip-grad', '0.7', '--clip-mode', 'value', '--amp', '--amp-dtype',
        'bfloat16', '--channels-last', '--grad-accum-steps', '2', '--log-interval', '3', '--hflip', '0.25', '--drop',
        '0.4')
    loss, loader = built['task'].trainable_module.loss, built['loaders'][0]
    assert (loss.ensemble_weight, loss.kl_weight, loss.logit_scale, loss.reduction) == (0.5, 0.25, 3., 'mean')
    assert loss.logit_norm and loss.criterion.smoothing == 0.2 and built['task'].get_eval_model().drop_rate == 0.4
    assert loader.dataset.transform.independent_crops and loader.random_erasing.probability == 0.5
    assert (loader.random_erasing.mode, loader.random_erasing.max_count) == ('const', 2)
    assert any(getattr(part, 'p', None) == 0.25 for part in loader.dataset.transform.stages[0].transforms)
    assert loader.dataset.transform.stages[1].transforms == []  # no color jitter after the policies
    assert (built['step'].clip_grad, built['step'].clip_mode) == (0.7, 'value')
    of_mu, others = ([group['initial_lr'] * group.get('lr_scale', 1) for group in built['step'].optimizer.param_groups
                      if is_of_mu == any(one is built['task'].mu_logits for one in group['params'])]
                     for is_of_mu in (True, False))
    assert of_mu == [5 * others[0]] and len(set(others)) == 1
    settings = built['terms kwargs']
    assert settings['channels_last'] and settings['grad_accum_steps'] == 2 and settings['hooks'].log_interval == 3
    assert built['step'].autocast.keywords == dict(device_type='cpu', dtype=torch.bfloat16)


def test_ema_weights_are_what_is_judged_and_exported(tmp_path):
    run = run_train(tmp_path, *THREE, '--model-ema', '--model-ema-decay', '0.5')
    checkpoint = read_checkpoint(run / 'last.pth.tar')
    exported = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict']
    for weights, equal in (('state_dict', False), ('state_dict_ema', True)):
        assert torch.equal(exported['fc.weight'], checkpoint[weights]['fc.weight']) == equal
    assert checkpoint['task_state_ema']['mu_logits'].tolist() != checkpoint['task_state']['mu_logits'].tolist()


def test_one_branch_is_plain_timm_training_of_a_folder_with_a_broken_image(image_folder, tmp_path, capsys):
    broken = image_folder / 'train' / 'cat' / '3.jpg'
    broken.write_bytes(broken.read_bytes()[:300])
    train.main(['--data-dir', str(image_folder), '--model', 'test_resnet', '--num-classes', '2', '--img-size', '32',
                '-b', '8', '-j', '0', '--device', 'cpu', '--epochs', '1', '--lr', '0.01', '--warmup-epochs', '0',
                '--aa', 'rand-m9', '--output', str(tmp_path), '--experiment', 'plain'])
    assert list(rows_of(tmp_path / 'plain')[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr',
                                                    'train_views']
    printed = capsys.readouterr()
    assert 'skipped 1 broken image' in printed.out
    model = timm.create_model(f'local-dir:{tmp_path}/plain/export', pretrained=True)
    assert model.pretrained_cfg['label_names'] == ['cat', 'dog']
    assert not any('branches' in key for key in read_checkpoint(tmp_path / 'plain' / 'last.pth.tar')['state_dict'])


def test_three_branches_train_a_color_folder(image_folder, tmp_path):
    train.main(['--data-dir', str(image_folder), '--model', 'test_efficientnet', '--num-classes', '2', '--img-size',
                '32', '-b', '6', '-j', '2', '--device', 'cpu', '--epochs', '1', '--lr', '0.01', '--warmup-epochs', '0',
                *THREE, '--output', str(tmp_path), '--experiment', 'color'])
    assert len(rows_of(tmp_path / 'color')) == 1


@pytest.mark.parametrize('argv', [THREE, ['--aa', 'rand-m9-mstd0.5']], ids=['three branches', 'plain'])
def test_a_run_killed_in_mid_epoch_resumes_to_the_same_weights_bit_for_bit(run_script, tmp_path, argv):
    command = ['python', 'train.py', *SMALL, *argv, '-b', '64', '-j', '2', '--epochs', '3', '--model-ema', '--mixup',
               '0.2', '--cutmix', '1', '--grad-accum-steps', '2', '--drop', '0.2', '--reprob', '0.3', '--output',
               tmp_path]
    run_script(*command, '--experiment', 'whole')

    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(
        [sys.executable, *map(str, command[1:]), '--experiment', 'killed', '--log-interval', '1'], env=environment,
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    for line in process.stderr:
        if line.startswith('Train: 1 [   3/'):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    last = tmp_path / 'killed' / 'last.pth.tar'
    assert read_checkpoint(last)['epoch'] == 0

    run_script('python', 'train.py', '--device', 'cpu', '--resume', last)
    whole, resumed = (read_checkpoint(tmp_path / name / 'last.pth.tar') for name in ('whole', 'killed'))
    names = {name for name in whole if name.startswith(('state_dict', 'task_state'))}
    assert len(names) == (4 if argv is THREE else 2)
    for name in names:
        assert whole[name].keys() == resumed[name].keys()
        assert all(torch.equal(value, resumed[name][key]) for key, value in whole[name].items()), name
    assert rows_of(tmp_path / 'whole') == rows_of(tmp_path / 'killed')
    for key in ('best_metric', 'best_epoch', 'kept'):
        assert whole['keeper'][key] == resumed['keeper'][key]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run with three branches."""
    return run_train(tmp_path_factory.mktemp('finished'), *THREE)


@pytest.mark.parametrize('argv, words', [
    (['--a2aug-branches', '0'], 'at least 1'), (['--a2aug-branches', '19'], 'holds 18'),
    ([*THREE, '--a2aug-policies', 'v0', '3a'], 'needs as many policies, got 2'),
    (['--a2aug-branches', '2', '--a2aug-policies', 'v0', 'v9'], "'v9' must begin with one of"),
    (['--a2aug-branches', '2', '--a2aug-policies', 'rand-m9-n2', 'rand-n2-m9'], 'are the same'),
    (['--a2aug-branches', '2', '--a2aug-policies', 'v0', '3a', '--a2aug-magnitudes', '5'], 'samples policies'),
    (['--a2aug-policies', 'v0', '3a'], '2 policies need --a2aug-branches 2'),
    (['--a2aug-kl-weight', '2'], '--a2aug-kl-weight needs --a2aug-branches 2 or more'),
    ([*THREE, '--aa', 'v0'], '--aa contradicts'), ([*THREE, '--no-aug'], '--no-aug contradicts'),
    ([*THREE, '--a2aug-independent', '--a2aug-shared-bn'], 'separate networks share no'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24'], 'a size for each of 3'), (['--holdout', '0'], 'a number of images'),
    ([*THREE, '--a2aug-branch-sizes', '48', '32', '32'], 'up to 48 pixels, of images of 32x32'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24', '24', '--a2aug-policies', 'v0', 'none', 'none'], 'are the same'),
    (['--holdout', '1437'], 'cannot be held out'),
    (['--aa', 'autoaugment_svhn', '--aug-splits', '2'], 'not one of timm'),
    ([*THREE, '--model', 'test_vit', '--a2aug-norm', 'all', '--a2aug-branch-sizes', '32', '24', '8'],
     'takes no images'),
    ([*THREE, '--a2aug-space', 'cifar10', '--a2aug-num-layers', '1', '2', '3'], 'contradicts --a2aug-space'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24', '16', '--a2aug-shared-bn'], 'over all views together'),
    ([*THREE, '--a2aug-sequential', '--torchcompile', 'eager'], 'take aot_eager'),
    ([*THREE, '--a2aug-no-logit-norm', '--a2aug-logit-scale', '2'], 'have no scale'),
    ([*THREE, '--a2aug-ensemble', 'average', '--a2aug-ensemble-weight', '2'], 'nothing to learn'),
    ([*THREE, '--a2aug-ensemble', 'average', '--a2aug-mu-lr-scale', '2'], 'nothing to learn'),
    (['--train-subset', '1438'], 'cannot be taken'),
    ([*THREE, '--model', 'test_vit'], 'norms are: LayerNorm; --a2aug-norm all gives'),
    (['--model', 'resnet51'], "did you mean 'resnet5"), (['--model-kwargs', 'flavour=3'], 'flavour'),
    (['--dataset', '', '--data-dir', '/nowhere'], "no data folder '/nowhere'"), (['--dataset', ''], 'no data'),
    (['--dataset', 'torch/fashion_mnist', '--data-dir', '.'], "cannot read data set 'torch/fashion_mnist'"),
    (['--val-split', 'test'], 'the splits train and validation'), (['--num-classes', '3'], '10 classes, the model 3'),
    (['--resume', 'nowhere.pth.tar'], "no checkpoint 'nowhere.pth.tar'"),
    (['--initial-checkpoint', 'nowhere.pth'], "no checkpoint 'nowhere.pth'"),
    (['--a2aug-branches', '2', '--a2aug-policies', 'rand-m9', 'rand-m9-n2-p0.5-mstd0'], 'are the same'),
    (['--aa', 'rand-m9-z3'], "section 'z3'"), (['--aa', 'foo'], 'must begin with one of'),
    ([*THREE, '--a2aug-logit-scale', 'nan'], 'positive number'), ([*THREE, '--color-jitter', '0.2'], 'replace it'),
    (['--val-split', 'trian'], 'train and validation, not'), (['--lr', '-1'], '--lr must be at least 0'),
    (['--crop-pct', '0'], '--crop-pct must be above 0 and at most 1'), (['--input-img-mode', 'BGR'], "got 'BGR'"),
    (['--ratio', '0', '0'], '--ratio must be above 0'),
    (['--smoothing', '1.5'], 'between 0 and 1'), (['--scale', '0.5'], '--scale takes 2 values'),
    (['--opt', 'adamw', '--opt-betas', '0.9'], 'takes 2 or 3 values'), (['--opt-kwargs', 'foo=1'], 'foo'),
    (['--sched', 'plateau', '--sched-on-updates'], 'steps on epochs'), (['--device', 'foo'], "no device 'foo'"),
    (['--model', 'local-dir:/nowhere'], 'no exported model'), (['--gp', 'foo'], 'foo'), (['--conf', 'x'], '--conf'),
    (['--interpolation', 'foo'], '--interpolation must be one of'), (['--pretrained-path', 'x'], "no checkpoint 'x'"),
    (['--start-epoch', '-1'], 'at least 0'), (['--mixup', '0.2', '-b', '3'], 'must be even'),
    (['--cutmix-minmax', '0.8', '0.2'], 'no box to draw in images of 32'),
    (['--mixup-mode', 'elem'], 'no effect without --mixup'), (['--cutmix-minmax', '0.2'], 'takes 2 values'),
    (['--mixup', '1', '--mixup-mode', 'half', '--no-prefetcher'], 'leave --no-prefetcher out'),
    (['-b', '0'], '--batch-size must be at least 1'), (['-b', '5000'], 'more than the 1437 training images'),
    (['--opt', 'sdg'], "no optimizer 'sdg'"), (['--decay-milestones', '30', '10'], 'must ascend'),
    (['--sched', 'cosinus'], '--sched must be one of'),
    (['--sync-bn'], 'needs a GPU'), (['--eval-metric', 'f1'], '--eval-metric must be one of'),
    (['--mean', '0.1', '0.2'], 'mean must have one value or 1')], ids=lambda value: ' '.join(value)[:60])
def test_bad_input_is_one_sentence_exit_code_2_and_no_folder(tmp_path, capsys, argv, words):
    sentence = refused(capsys, train.main, [*SMALL, '--epochs', '1', '--output', tmp_path / 'out', *argv])
    assert words in sentence and not (tmp_path / 'out').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_a_gpu_that_is_asked_for_and_missing_is_refused(capsys):
    assert 'no GPU' in refused(capsys, train.main, [*SMALL, '--device', 'cuda'])


@pytest.mark.parametrize('argv, words', [
    (['--model', 'test_efficientnet'], '--model test_efficientnet contradicts the checkpoint, which has test_resnet'),
    (['--num-classes', '12'], '--num-classes 12 contradicts'), (['--a2aug-branches', '2'], '--a2aug-branches 2'),
    (['--a2aug-policies', 'v0', '3a', 'v0r'], '--a2aug-policies v0 3a v0r contradicts'),
    (['--a2aug-seed', '7'], 'contradicts'), (['--a2aug-shared-bn'], 'contradicts'),
    (['--opt', 'adamw'], 'add --no-resume-opt'), (['--eval-metric', 'loss'], 'contradicts'),
    (['--val-split', ''], 'contradicts the checkpoint, which has validation'),
    (['--weight-decay', '0'], 'leave it behind with --no-resume-opt')], ids=lambda value: value[0])
def test_a_resume_that_contradicts_its_checkpoint_is_refused(finished, capsys, argv, words):
    before = {path: path.read_bytes() for path in finished.glob('*.*')}
    assert words in refused(capsys, train.main, ['--resume', finished / 'last.pth.tar', '--device', 'cpu', *argv])
    assert before == {path: path.read_bytes() for path in finished.glob('*.*')}


def test_a_resume_reads_a_folder_that_is_named_without_its_flag(finished, tmp_path):
    checkpoint = read_checkpoint(finished / 'last.pth.tar')
    checkpoint['args']['data_dir'] = 'old'
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    for argv, data_dir in (([], 'old'), (['new'], 'new'), (['--data-dir', 'new'], 'new')):
        args, *_ = train.parse(train_parser(), [
            *argv, '--resume', str(tmp_path / 'last.pth.tar'), '--device', 'cpu', '--output', str(tmp_path)])
        assert args.data_dir == data_dir


def test_a_folder_that_holds_a_run_says_how_to_go_on(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'args.yaml').touch()
    for name, words in ((None, 'no checkpoint yet, remove it'), ('recovery-0-5.pth.tar', '--resume .*recovery-0-5'),
                        ('last.pth.tar', '--resume .*last')):
        if name:
            (tmp_path / 'run' / name).touch()
        with pytest.raises(ValueError, match=words):
            choose_folder(tmp_path, 'run', '')


def test_a_run_killed_between_its_last_checkpoint_and_the_summary_comes_to_its_end(finished, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(finished, run)
    (run / 'summary.csv').unlink()
    (run / 'result.json').unlink()
    # The epoch after it was the best one, and the kill came before that was kept.
    (run / 'model_best.pth.tar').unlink()
    (run / 'export' / 'model.safetensors').write_bytes(b'of the next epoch')
    train.main(['--resume', str(run / 'last.pth.tar'), '--device', 'cpu'])
    for name in ('model_best.pth.tar', 'export/model.safetensors'):
        ours, others = (read_checkpoint(folder / name) for folder in (run, finished))
        torch.testing.assert_close(ours['state_dict'], others['state_dict'], rtol=0, atol=0)
    assert rows_of(run) == rows_of(finished)
    assert (run / 'result.json').read_text() == (finished / 'result.json').read_text()


def test_a_resume_in_another_folder_takes_the_history_along_and_trains_longer(finished, tmp_path):
    train.main(['--resume', str(finished / 'last.pth.tar'), '--epochs', '2', '--output', str(tmp_path), '--device',
                'cpu', '--experiment', 'longer', '--a2aug-branches', '3', '--a2aug-seed', '42'])
    rows = rows_of(tmp_path / 'longer')
    assert rows[:1] == rows_of(finished) and [row['epoch'] for row in rows] == ['0', '1']
    assert len(rows_of(finished)) == 1


def test_settings_given_on_resume_replace_those_of_the_optimizer(finished, tmp_path):
    train.main(['--resume', str(finished / 'last.pth.tar'), '--epochs', '2', '--device', 'cpu', '--sched', 'none',
                '--lr', '1e-9', '--momentum', '0.5', '--weight-decay', '0.1', '--output', str(tmp_path),
                '--experiment', 'new'])
    groups = read_checkpoint(tmp_path / 'new' / 'last.pth.tar')['optimizer']['param_groups']
    assert [(group['lr'], group['momentum'], group['weight_decay']) for group in groups] == [
        (1e-9, 0.5, 0.), (1e-9, 0.5, 0.1)]
    # Nothing learned: the best of the first run stays the best, with its files.
    run = tmp_path / 'new'
    args = yaml.safe_load((run / 'args.yaml').read_text())
    assert 'resume' not in args and args['a2aug_policies'] == sample_policies(3, 42)
    for name in ('export/model.safetensors', 'model_best.pth.tar'):
        assert (run / name).exists()


def test_a_resume_that_goes_back_goes_on_in_a_folder_of_its_own_and_tells_the_truth(tmp_path, capsys):
    run = run_train(tmp_path, *THREE, '--checkpoint-hist', '3', epochs=3)
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    resumes = [['--resume', run / 'checkpoint-0.pth.tar', '--epochs', '2'],
               ['--resume', run / 'last.pth.tar', '--start-epoch', '0', '--epochs', '1', '--lr', '1e-9']]
    for argv, epochs in zip(resumes, (['0', '1'], ['0']), strict=True):
        capsys.readouterr()
        train.main([*map(str, argv), '--device', 'cpu', '--output', str(tmp_path / 'back')])
        folder, = (tmp_path / 'back').iterdir()
        rows = rows_of(folder)
        assert [row['epoch'] for row in rows] == epochs
        best = max(rows, key=lambda row: (float(row['eval_top1']), -int(row['epoch'])))
        exported = torch.load(folder / 'export' / 'checkpoint.pth.tar', weights_only=True)['metadata']
        assert exported['metrics']['top1'] == pytest.approx(float(best['eval_top1']))
        assert f"at epoch {int(best['epoch']) + 1}" in capsys.readouterr().out
        kept = {path.name for path in folder.glob('checkpoint-*')}
        assert kept == {f'checkpoint-{epoch}.pth.tar' for epoch in epochs}
        assert read_checkpoint(folder / 'model_best.pth.tar')['epoch'] == int(best['epoch'])
        folder.rename(tmp_path / f'back-{len(epochs)}')
    # The rate of the first epoch is that of the command line, not the checkpoint's.
    assert float(rows[0]['lr']) == 1e-9
    assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}


def test_a_resume_keeps_a_rate_that_was_given_and_computes_one_that_was_computed(tmp_path):
    def rates(name, *argv):
        train.main([*map(str, argv), '--device', 'cpu', '--output', str(tmp_path), '--experiment', name])
        return [float(row['lr']) for row in rows_of(tmp_path / name)]

    small = [part for part in SMALL if part not in ('--lr', '0.05')]
    constant = ['--sched', 'none', '--epochs', '1', *THREE]
    assert rates('computed', *small, '--lr-base', '0.1', *constant) == [pytest.approx(0.1)]
    assert rates('given', '-c', tmp_path / 'computed' / 'args.yaml', '--lr', '0.003') == [0.003]
    assert rates('given2', '--resume', tmp_path / 'given' / 'last.pth.tar', '--epochs', '2') == [0.003, 0.003]
    assert rates('computed2', '--resume', tmp_path / 'computed' / 'last.pth.tar', '--epochs', '2', '-b', '512') == [
        pytest.approx(0.1), pytest.approx(0.2)]


def test_a_plain_run_of_timm_is_resumed_beside_its_folder(tmp_path):
    theirs = tmp_path / 'theirs'
    theirs.mkdir()
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save({'epoch': 0, 'arch': 'test_resnet', 'state_dict': model.state_dict(), 'version': 2,
                'optimizer': optimizer.state_dict()}, theirs / 'last.pth.tar')
    (theirs / 'args.yaml').write_text('model: test_resnet\n')
    (theirs / 'summary.csv').write_text('epoch,train_loss\n0,2.3\n')
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    train.main([*SMALL, '--resume', str(theirs / 'last.pth.tar'), '--epochs', '2', '--no-resume-opt', '--output',
                str(tmp_path / 'ours')])
    assert before == {path: path.read_bytes() for path in theirs.iterdir()}
    run, = (tmp_path / 'ours').iterdir()
    assert [row['epoch'] for row in rows_of(run)] == ['1']


def test_the_arguments_of_a_fine_tuning_run_are_that_run_again(finished, tmp_path):
    train.main([*SMALL, '--initial-checkpoint', str(finished / 'export'), '--epochs', '1', '--output', str(tmp_path),
                '--experiment', 'a'])
    train.main(['-c', str(tmp_path / 'a' / 'args.yaml'), '--device', 'cpu', '--experiment', 'b'])
    assert rows_of(tmp_path / 'a') == rows_of(tmp_path / 'b')
    # It is behind the run when that is resumed.
    last = tmp_path / 'b' / 'last.pth.tar'
    train.main(['-c', str(tmp_path / 'b' / 'args.yaml'), '--device', 'cpu', '--resume', str(last), '--epochs', '2'])
    assert len(rows_of(tmp_path / 'b')) == 2
    train.main(['--device', 'cpu', '--resume', str(last), '--epochs', '3'])
    args = yaml.safe_load((tmp_path / 'b' / 'args.yaml').read_text())
    assert args['initial_checkpoint'] == str(finished / 'export') and args['epochs'] == 3


def test_a_later_start_has_the_schedule_of_its_epoch(tmp_path):
    run = run_train(tmp_path, '--start-epoch', '2', '--lr', '1', '-b', '512', epochs=4)
    assert [float(row['lr']) for row in rows_of(run)] == pytest.approx([0.5, 0.5 * (1 - 2 ** -0.5)])
    assert [row['epoch'] for row in rows_of(run)] == ['2', '3']


def test_splits_and_classes_that_do_not_match_are_refused(image_folder, tmp_path, capsys):
    def argv(*more):
        return ['--data-dir', image_folder, '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b',
                '8', '-j', '0', '--device', 'cpu', '--epochs', '1', '--output', tmp_path / 'out', *more]

    for split in ('--train-split', '--val-split'):
        assert "no split 'trian'" in refused(capsys, train.main, argv(split, 'trian'))
    (image_folder / 'validation' / 'dog').rename(image_folder / 'validation' / 'wolf')
    assert 'classes that are not known: wolf' in refused(capsys, train.main, argv())
    (image_folder / 'validation' / 'wolf').rename(image_folder / 'wolf')
    (image_folder / 'train' / 'ant').mkdir()
    (image_folder / 'train' / 'cat' / '0.jpg').rename(image_folder / 'train' / 'ant' / '0.jpg')
    names = names_of_classes(create_dataset('', str(image_folder), 'train'))
    assert names == ['ant', 'cat', 'dog']
    cats = create_dataset('', str(image_folder), 'validation', class_names=names)
    assert {target for _, target in SkippingDataset(cats)} == {1}
    (image_folder / 'validation').rename(tmp_path / 'elsewhere')
    assert "no split 'validation'" in refused(capsys, train.main, argv())
    assert "no split 'validation'" in refused(capsys, validate.main, [
        '--data-dir', image_folder, '--model', 'test_resnet', '--device', 'cpu'])
    assert "no split 'validation'" in refused(capsys, train.main, argv('--dataset', 'ImageFolder'))
    assert "no data set 'tourch/cifar10'" in refused(capsys, train.main, argv('--dataset', 'tourch/cifar10'))
    assert len(create_dataset('', str(tmp_path / 'elsewhere'), 'validation', allow_no_split=True)) == 4


def test_starting_weights_are_taken_as_timm_takes_them(finished, tmp_path, capsys):
    def first_conv(*argv):
        run_train(tmp_path, '--experiment', argv[-1], '--lr', '1e-12', *argv[:-1])
        state_dict = read_checkpoint(tmp_path / argv[-1] / 'last.pth.tar')['state_dict']
        return state_dict['conv1.0.weight'], state_dict

    exported = torch.load(finished / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict']
    export = finished / 'export'
    for name, argv in (('a', ['--initial-checkpoint', export]),
                       ('b', ['--pretrained-path', export / 'model.safetensors']),
                       ('c', ['--initial-checkpoint', finished / 'last.pth.tar', *THREE, '--head-init-bias', '-3'])):
        conv, state_dict = first_conv(*map(str, argv), name)
        torch.testing.assert_close(conv, exported['conv1.0.weight'], rtol=0, atol=1e-6)
    theirs = read_checkpoint(finished / 'last.pth.tar')['state_dict']
    torch.testing.assert_close(state_dict['bn1.branches.2.weight'], theirs['bn1.branches.2.weight'], rtol=0, atol=1e-6)
    torch.testing.assert_close(state_dict['fc.bias'], torch.full((10,), -3.))
    foreign = tmp_path / 'foreign.pth'
    torch.save({'w': torch.zeros(1)}, foreign)
    for argv, words in ((['--pretrained-path', foreign], 'holds no weights of ResNet'),
                        (['--pretrained-path', finished / 'last.pth.tar'], 'holds 3 branches; export one'),
                        (['--initial-checkpoint', foreign], "lacks 'bn1.bias'")):
        assert words in refused(capsys, train.main, [*SMALL, '--epochs', '1', '--output', tmp_path / 'no', *argv])


def test_a_loss_that_is_not_finite_ends_with_code_1_and_keeps_the_last_good_checkpoint(finished, tmp_path, caplog):
    argv = ['--resume', str(finished / 'last.pth.tar'), '--epochs', '3', '--lr', '1e20', '--sched', 'none',
            '--no-resume-opt', '--output', str(tmp_path), '--experiment', 'nan', '--device', 'cpu']
    with pytest.raises(SystemExit) as exit_info:
        train.main(argv)
    assert exit_info.value.code == 1 and 'the loss is not finite at epoch 1, step' in caplog.text
    assert str(tmp_path / 'nan' / 'last.pth.tar') in caplog.text
    assert read_checkpoint(tmp_path / 'nan' / 'last.pth.tar')['epoch'] == 0


def test_validation_of_branches_export_and_plain_files_agrees_with_training(finished, tmp_path, capsys):
    row, = rows_of(finished)
    data = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0']

    def results(*argv):
        capsys.readouterr()
        validate.main([*data, *map(str, argv)])
        return json.loads(capsys.readouterr().out.split('--result\n')[1])

    last = finished / 'last.pth.tar'
    everything = results('--checkpoint', last, '--branch', 'all', '--results-file', tmp_path / 'r.csv')
    for i, result in enumerate(everything):
        name = f'branch_{i}' if i < 3 else 'ensemble'
        for metric in ('top1', 'top5', 'loss'):
            assert result[metric] == pytest.approx(float(row[f'eval_{name}_{metric}']), abs=1e-4)
    with open(tmp_path / 'r.csv', encoding='utf-8') as file:
        assert [line['branch'] for line in csv.DictReader(file)] == ['0', '1', '2', 'ensemble']
    results('--checkpoint', last, '--branch', 'all', '--results-file', tmp_path / 'r.json', '--results-format', 'json')
    assert json.loads((tmp_path / 'r.json').read_text()) == everything

    best = everything[int(row['best_branch'])]
    assert results('--checkpoint', last) == best
    assert results('--checkpoint', last, '--branch', '1', '--model', 'test_resnet') == everything[1]
    plain = finished.parent / 'plain.pth'
    torch.save(torch.load(finished / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict'], plain)
    given = ['--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32', '32', '--mean', '0.3', '--std',
             '0.35', '--crop-pct', '0.95']
    for argv in (['--checkpoint', finished / 'export'], ['--checkpoint', finished / 'export' / 'model.safetensors'],
                 ['--checkpoint', finished / 'export' / 'checkpoint.pth.tar'], ['--checkpoint', plain, *given]):
        assert results(*argv)['top1'] == best['top1']


def test_any_branch_is_exported_from_any_checkpoint(finished, tmp_path, capsys):
    export_main([str(finished / 'last.pth.tar'), '--branch', 'all', '-o', str(tmp_path / 'all')])
    for i in range(3):
        metadata = torch.load(tmp_path / 'all' / f'branch-{i}' / 'checkpoint.pth.tar', weights_only=True)['metadata']
        assert metadata['branch'] == i and metadata['policy'] == sample_policies(3, 42)[i]
    export_main([str(finished / 'last.pth.tar'), '-o', str(tmp_path / 'best')])
    exported, original = (torch.load(folder / 'checkpoint.pth.tar', weights_only=True)
                          for folder in (tmp_path / 'best', finished / 'export'))
    assert exported['metadata'] == original['metadata'] and exported['config'] == original['config']
    assert all(torch.equal(value, original['state_dict'][key]) for key, value in exported['state_dict'].items())
    for argv, words in (([finished / 'last.pth.tar', '--branch', '5'], "no branch '5'"), (['nowhere'], 'no checkpoint'),
                        ([finished / 'export' / 'checkpoint.pth.tar'], 'not a checkpoint of')):
        assert words in refused(capsys, export_main, [*argv, '-o', tmp_path / 'no'])
    (tmp_path / 'file').touch()
    assert 'File exists' in refused(capsys, export_main, [finished / 'last.pth.tar', '-o', tmp_path / 'file'])
    assert not (tmp_path / 'no').exists()


def test_two_processes_and_two_nodes_train_together(run_script, tmp_path, capsys):
    # 1,437 validation images: two ranks cannot share them evenly.
    argv = [*SMALL, *THREE, '-b', '128', '--epochs', '2', '--val-split', 'train', '--output', tmp_path]
    done = run_script('./distributed_train.sh', '2', *argv, '--experiment', 'processes')
    assert done.stderr.count(f'Policies: {" ".join(sample_policies(3, 42))}') == 2
    assert run_script('./distributed_train.sh', check=False).returncode == 2

    # What two ranks measured together is what one process measures with the weights and statistics that were saved.
    validate.main(['--dataset', 'sklearn/digits', '--split', 'train', '--device', 'cpu', '-j', '0', '--branch', 'all',
                   '--checkpoint', str(tmp_path / 'processes' / 'last.pth.tar')])
    alone = json.loads(capsys.readouterr().out.split('--result\n')[1])
    together = rows_of(tmp_path / 'processes')[-1]
    for i, result in enumerate(alone):
        name = f'branch_{i}' if i < 3 else 'ensemble'
        assert result['top1'] == pytest.approx(float(together[f'eval_{name}_top1']), abs=1e-3)
        assert result['loss'] == pytest.approx(float(together[f'eval_{name}_loss']), rel=1e-3)

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'NNODES': '2', 'RDZV_ENDPOINT': f'127.0.0.1:{port}', 'OMP_NUM_THREADS': '1',
                   'PATH': f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}'}
    agents = [subprocess.Popen(
        ['./distributed_train.sh', '1', *map(str, argv), '--experiment', 'nodes'], env=environment,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum('Best: branch' in output for output in outputs) == 1

    # The same two ranks with the same seeds, launched either way, are the same run.
    one, other = (read_checkpoint(tmp_path / name / 'last.pth.tar') for name in ('processes', 'nodes'))
    assert len(one['rng']) == 2
    for key, value in one['state_dict'].items():
        torch.testing.assert_close(other['state_dict'][key], value)
    assert one['a2aug']['policies'] == other['a2aug']['policies'] == sample_policies(3, 42)

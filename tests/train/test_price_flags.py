"""Runs that train fewer views per step, with an anchor, or with branches that start late."""
import csv
import json

import pytest
import torch

import a2aug_timm.train.__main__ as train
from a2aug_timm import sample_policies
from a2aug_timm.engine.checkpoint import read_checkpoint
from tests.commands import SMALL, THREE, built, checked, rows_of, run_train

CONSTANT = ['--sched', 'none', '-b', '128', '--train-subset', '700']
NUM_BATCHES = 5  # of 128 images, of 700


def weights_of(run):
    return read_checkpoint(run / 'last.pth.tar')['state_dict']


def counts_of(run, layer='bn1'):
    """Number of batches that each branch has seen."""
    weights = weights_of(run)
    return [int(weights[f'{layer}.branches.{i}.num_batches_tracked']) for i in range(3)]


def assert_equal_weights(run, other):
    ours, others = weights_of(run), weights_of(other)
    assert ours.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in ours.items())


def test_all_views_are_the_same_run_as_without_the_flag(tmp_path):
    run = run_train(tmp_path / 'all', *THREE, *CONSTANT, '--a2aug-views', '3')
    other = run_train(tmp_path / 'default', *THREE, *CONSTANT)
    assert_equal_weights(run, other)
    assert rows_of(run) == rows_of(other)


@pytest.mark.parametrize('argv', [
    ['--a2aug-views', '1'], ['--a2aug-views', '2', '--a2aug-sequential', '--mixup', '0.2', '--model-ema'],
    ['--a2aug-views', '2', '--a2aug-branch-sizes', '32', '24', '16', '--grad-accum-steps', '2'],
    ['--a2aug-views', '1', '--cutmix', '1', '--no-prefetcher', '--amp', '--amp-dtype', 'bfloat16'],
    ['--a2aug-views', '2', '--a2aug-independent', '-j', '2'], ['--a2aug-views', '1', '--a2aug-shared-bn'],
    ['--a2aug-views', '2', '--train-img-sizes', '32', '24', '--torchcompile', 'eager']], ids=' '.join)
def test_a_run_of_fewer_views_counts_them_and_keeps_the_draw_balanced(tmp_path, argv):
    run = run_train(tmp_path, *THREE, *CONSTANT, *argv, epochs=2)
    num_views = int(argv[1])
    rows = rows_of(run)
    assert [float(row['train_views']) for row in rows] == [NUM_BATCHES * 128 * num_views] * 2
    if not {'--a2aug-shared-bn', '--a2aug-independent'} & set(argv):
        counts = counts_of(run)
        assert sum(counts) == 2 * NUM_BATCHES * num_views and max(counts) - min(counts) <= 2
    names = {f'train_ce_{i}' for i in range(3)}
    assert names <= rows[0].keys()
    assert (run / 'export' / 'model.safetensors').exists()


def test_an_anchor_is_drawn_in_its_share_of_the_steps(tmp_path):
    run = run_train(tmp_path, *THREE, *CONSTANT, '--a2aug-views', '1', '--a2aug-anchor-share', '0.6', '--aa', 'v0')
    assert counts_of(run) == [3, 1, 1]


def test_mu_stays_what_it_was_where_branches_are_never_compared(tmp_path):
    run = run_train(tmp_path, *THREE, *CONSTANT, '--a2aug-views', '1', epochs=2)
    assert read_checkpoint(run / 'last.pth.tar')['task_state']['mu_logits'].tolist() == [0., 0., 0.]


@pytest.mark.parametrize('argv', [
    ['--a2aug-views', '1'], ['--a2aug-views', '2', '--a2aug-anchor-share', '1', '--mixup', '0.3'],
    ['--a2aug-start-epoch', '2', '--model-ema', '--opt', 'adamw']], ids=' '.join)
def test_a_resumed_run_draws_what_the_whole_run_draws(tmp_path, argv):
    argv = [*THREE, *CONSTANT, *argv, '--aa', 'rand-m9-mstd0.5']
    whole = run_train(tmp_path / 'whole', *argv, epochs=3)
    part = tmp_path / 'part' / 'run'
    train.main([*SMALL, *argv, '--epochs', '3', '--output', str(tmp_path / 'part'), '--experiment', 'run',
                '--checkpoint-hist', '3'])
    train.main(['--resume', str(part / 'checkpoint-0.pth.tar'), '--device', 'cpu', '--output', str(tmp_path),
                '--experiment', 'resumed'])
    assert_equal_weights(whole, tmp_path / 'resumed')
    assert rows_of(whole) == rows_of(tmp_path / 'resumed')


def test_branches_are_copies_of_the_first_until_they_start(tmp_path, capsys):
    run = run_train(tmp_path, *THREE, *CONSTANT, '--a2aug-start-epoch', '2', '--checkpoint-hist', '3', '--model-ema',
                    '--aa', 'none', epochs=3)
    for epoch in (0, 1, 2):
        path, = (path for path in run.glob('*.pth.tar') if path.name == f'checkpoint-{epoch}.pth.tar')
        checkpoint = read_checkpoint(path)
        for weights in (checkpoint['state_dict'], checkpoint['state_dict_ema']):
            first, third = weights['bn1.branches.0.weight'], weights['bn1.branches.2.weight']
            assert torch.equal(first, third) == (epoch < 2)
    rows = rows_of(run)
    assert [float(row['train_views']) for row in rows] == [640., 640., 1920.]
    for row in rows[:2]:
        assert row['eval_branch_0_top1'] == row['eval_branch_2_top1'] == row['eval_ensemble_top1']
    assert capsys.readouterr().out.count('(branches start at epoch 3)') == 2
    assert counts_of(run) == [15, 15, 15]  # statistics are copied with their count


def test_the_recipe_of_the_user_is_branch_0(tmp_path):
    argv = ['--data-dir', '.', '--a2aug-branches', '3', '--aa', 'rand-m9-mstd0.5-inc1', '--a2aug-seed', '5']
    assert checked(argv).a2aug_policies == ['rand-m9-mstd0.5-inc1', *sample_policies(2, 5)]
    named = checked([*argv[:-2], '--a2aug-policies', 'none', 'ta'])
    assert named.a2aug_policies == ['rand-m9-mstd0.5-inc1', 'none', 'ta']
    # A policy of the search space is not sampled a second time.
    first, second, third = sample_policies(3, 5)
    assert checked([*argv[:4], '--aa', second, '--a2aug-seed', '5']).a2aug_policies == [second, first, third]
    # The arguments of the run are a config file that gives the same policies.
    run = run_train(tmp_path, *THREE, *CONSTANT, '--aa', 'rand-m9', '--color-jitter', '0.3')
    train.main(['-c', str(run / 'args.yaml'), '--experiment', 'again', '--device', 'cpu'])
    assert_equal_weights(run, tmp_path / 'again')


@pytest.mark.parametrize('policy', ['rand-m9-mstd0.5-inc1', '3a', 'ta', 'mix:v0,none', 'none'])
@pytest.mark.parametrize('backend', ['pillow', 'opencv'])
def test_every_policy_can_be_an_anchor_and_a_plain_control(tmp_path, policy, backend):
    argv = [*SMALL, '--train-subset', '100', '-b', '32', '--grayscale-prob', '0.1', '--aa', policy]
    joint = built([*argv, *THREE, '--a2aug-op-backend', backend, '--output', tmp_path / 'joint'])
    images, target = next(iter(joint.data.train))
    assert images.shape == (96, 1, 32, 32) and len(target) == 32
    plain = built([*argv, '--color-jitter', '0', '--output', tmp_path / 'plain'])
    assert next(iter(plain.data.train))[0].shape == (32, 1, 32, 32)


def test_a_batch_can_count_views(tmp_path):
    argv = [*SMALL, *THREE, '-b', '96', '--a2aug-batch', 'views', '--lr', '0', '--lr-base', '0.1', '--output', tmp_path]
    run = built(argv)
    images, target = next(iter(run.data.train))
    assert (len(images), len(target)) == (96, 32)
    # The learning rate follows the batch size as it is counted.
    assert run.args.lr == pytest.approx(0.1 * 96 / 256)
    one_view = built([*argv, '--a2aug-views', '1'])
    assert len(next(iter(one_view.data.train))[1]) == 96


@pytest.mark.parametrize('argv, words', [
    (['--a2aug-views', '4'], 'more than the 3 branches'), (['--a2aug-anchor-share', '0.5'], 'needs --a2aug-views'),
    (['--a2aug-views', '2', '--reprob', '0.1', '--resplit'], '--resplit'),
    (['--a2aug-start-epoch', '300'], 'no branch but the first'),
    (['--a2aug-batch', 'views', '-b', '2'], 'holds no image'),
    (['--aa', 'none', '--color-jitter', '0.2'], '--color-jitter contradicts'),
    (['--aa', 'v0', '--a2aug-policies', 'none', 'v0'], 'are the same')], ids=lambda value: ' '.join(value)[:40])
def test_views_that_cannot_be_are_refused(argv, words):
    with pytest.raises(ValueError, match=words):
        checked(['--data-dir', '.', *THREE, *argv])


def test_flags_of_the_ensemble_are_warned_of_with_one_view(caplog):
    checked(['--data-dir', '.', *THREE, '--a2aug-views', '1', '--a2aug-kl-weight', '2'])
    assert '--a2aug-kl-weight has no effect with --a2aug-views 1' in caplog.text


def test_two_ranks_draw_the_same_branches(run_script, tmp_path):
    run_script('./distributed_train.sh', '2', *SMALL, *THREE, '-b', '64', '--train-subset', '700', '--epochs', '1',
               '--a2aug-views', '1', '--output', tmp_path, '--experiment', 'two')
    checkpoint = read_checkpoint(tmp_path / 'two' / 'last.pth.tar')
    counts = counts_of(tmp_path / 'two')
    assert sum(counts) == NUM_BATCHES and max(counts) - min(counts) <= 1
    assert len(checkpoint['rng']) == 2
    with open(tmp_path / 'two' / 'summary.csv', encoding='utf-8') as file:
        row, = csv.DictReader(file)
    assert float(row['train_views']) == NUM_BATCHES * 128
    assert json.loads((tmp_path / 'two' / 'result.json').read_text(encoding='utf-8'))['branch'] in range(3)

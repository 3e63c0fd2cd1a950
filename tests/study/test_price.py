"""The comparison at equal cost: equal views in all rows, tuning on held-out images, paired differences, the table."""
import csv
import itertools
import json
import statistics
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from scipy import stats

import a2aug_timm.train.__main__ as train
from a2aug_timm.data.policies import check_policies
from a2aug_timm.report import RunRecord
from a2aug_timm.study import Study, Trial, trial_queue
from a2aug_timm.study.__main__ import main
from a2aug_timm.study.figures import pareto_front
from a2aug_timm.study.pages import write_tables
from a2aug_timm.study.price import TUNING_SEED, price_of
from a2aug_timm.study.price_table import Interval, num_updates, price_lines
from a2aug_timm.study.rows import Method
from tests.study.finished import RECIPE, finish

POLICIES = ['none', 'rand-m6-n1-p1.0-mmax30-tpublished', 'rand-m10-n2-p1.0-mmax30-tpublished']
METHOD = Method(3, [1], [2], 28, named=POLICIES)
NUM_IMAGES = 1000
NAMES = [
    'plain-none', 'plain-rand-m6-n1-p1.0-mmax30-tpublished', 'plain-rand-m10-n2-p1.0-mmax30-tpublished', 'plain-ta',
    'plain-mix', 'plain-3a', 'a2aug3-images-sum', 'a2aug3-views-sum', 'a2aug3-images-mean', 'a2aug3-views-mean',
    'a2aug3-crops', 'a2aug2-v1', 'a2aug2-v2', 'a2aug3-v1', 'a2aug3-v2', 'a2aug5-v1', 'a2aug5-v2',
    'a2aug3-v1-anchor0.5', 'a2aug3-v1-anchor0.8', 'a2aug3-v2-anchor1', 'late0.25', 'late0.5']


@pytest.fixture
def study(tmp_path):
    recipe = {'holdout': 100, 'a2aug_branches': 3, 'a2aug_policies': POLICIES, 'lr': 0.1, 'batch_size': 64}
    return Study(tmp_path / 'study', recipe, 30, ['net'], 5, learning_rates=[0.1, 0.2], batch_sizes=[32, 64])


@pytest.fixture
def price(study):
    return price_of(study, METHOD, 1)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'recipe.yaml'
    settings = {name: value for name, value in RECIPE.items() if name not in ('a2aug_num_layers', 'a2aug_magnitudes')}
    path.write_text(yaml.safe_dump({**settings, 'lr': 0.1, 'epochs': 2, 'a2aug_policies': POLICIES[:2]}))
    return str(path)


def row_of(price, name):
    return next(row for row in price.rows if row.name == name)


def simulated_views(config):
    """Views of each epoch, batch by batch; an incomplete batch is dropped."""
    views = config.get('a2aug_views', config.get('a2aug_branches', 1))
    size = config['batch_size'] // views if config.get('a2aug_batch') == 'views' else config['batch_size']
    epochs = []
    for epoch in range(config['epochs']):
        in_epoch = 1 if epoch < config.get('a2aug_start_epoch', 0) else views
        epochs.append([size * in_epoch for first in range(0, NUM_IMAGES, size) if first + size <= NUM_IMAGES])
    return epochs


def tune(study, price, row, best=0):
    """Finish the tuning of a row so that its setting number ``best`` is chosen."""
    for number, trial in enumerate(price.tuning(row, 'net')):
        finish(study, trial, 10., held=60. if number == best else 50.)


@pytest.mark.parametrize('factor', [1, 3])
def test_all_rows_train_on_the_same_number_of_views(study, factor):
    price = price_of(study, METHOD, factor)
    assert [row.name for row in price.rows] == NAMES and price.num_views == 90 * factor
    for row in price.rows:
        config = study.config(price.tuning(row, 'net')[0])
        views = config.get('a2aug_views', config.get('a2aug_branches', 1))
        start = config.get('a2aug_start_epoch', 0)
        assert start + (config['epochs'] - start) * views == 90 * factor
        assert price.tuning(row, 'net')[0].setting.cost == 3 * factor
        assert 0.95 < sum(map(sum, simulated_views(config))) / (90 * factor * NUM_IMAGES) <= 1


def test_views_per_epoch_that_do_not_divide_the_number_give_fewer_views_not_more(study):
    price = price_of(replace(study, epochs=5), METHOD, 1)
    for row in price.rows:
        setting = price.tuning(row, 'net')[0].setting
        assert 15 - setting.num_views < setting.cost * 5 <= 15


def test_the_rows_are_what_their_names_say(study, price):
    configs = {row.name: study.config(price.tuning(row, 'net')[-1]) for row in price.rows}
    common = {'holdout': 100, 'model': 'net', 'seed': TUNING_SEED, 'lr': 0.2, 'batch_size': 64}
    joint = {**common, 'a2aug_branches': 3, 'a2aug_policies': POLICIES}
    five = configs['a2aug5-v1']['a2aug_policies']
    assert five[:3] == POLICIES and len(five) == 5 and price.added_policies == five[3:]
    check_policies(five)
    for name, expected in {
        'plain-none': {**common, 'epochs': 90, 'aa': 'none', 'color_jitter': 0.},
        'plain-ta': {**common, 'epochs': 90, 'aa': 'ta'},
        'plain-mix': {**common, 'epochs': 90, 'aa': 'mix:' + ','.join(POLICIES)},
        'a2aug3-images-mean': {**joint, 'epochs': 30, 'a2aug_batch': 'images', 'a2aug_loss_reduction': 'mean'},
        'a2aug3-crops': {**joint, 'epochs': 30, 'a2aug_batch': 'views', 'a2aug_independent_crops': True},
        'a2aug2-v2': {**joint, 'a2aug_branches': 2, 'a2aug_policies': POLICIES[:2], 'epochs': 45,
                      'a2aug_batch': 'views'},
        'a2aug5-v1': {**joint, 'a2aug_branches': 5, 'a2aug_policies': five, 'epochs': 90, 'a2aug_batch': 'views',
                      'a2aug_views': 1},
        'a2aug3-v1-anchor0.8': {**joint, 'epochs': 90, 'a2aug_batch': 'views', 'a2aug_views': 1,
                                'a2aug_anchor_share': 0.8},
        'late0.25': {**joint, 'epochs': 60, 'a2aug_start_epoch': 45},
        'late0.5': {**joint, 'epochs': 46, 'a2aug_start_epoch': 24},
    }.items():
        assert configs[name] == expected, name


def test_trials_of_all_rows_and_numbers_of_views_have_different_names(study):
    trials = [trial for factor in (1, 3) for price in [price_of(study, METHOD, factor)]
              for row in price.rows for trial in price.tuning(row, 'net')]
    assert len({trial.name for trial in trials}) == len(trials) == 2 * 22 * 4


def test_a_row_is_tuned_on_held_out_images_of_a_separate_seed(study, price):
    price = price.with_rows(['plain-ta'])
    reference, row = price.rows
    trials = price.tuning(row, 'net')
    assert {trial.seed for trial in trials}.isdisjoint(study.seeds)
    for trial, top1, held in zip(trials[:3], (90., 60., 70.), (50., 80., 55.), strict=True):
        finish(study, trial, top1, held)
    assert price.chosen(study, row, 'net') is None and len(price.trials(study)) == 8
    study.beside(trials[3], 'failed').write_text('the loss is not finite\n')
    assert price.chosen(study, row, 'net') == trials[1].setting
    tune(study, price, reference, best=2)
    seeds = price.trials(study)[8:]
    assert [(trial.seed, trial.setting.changes['lr'], trial.setting.changes['batch_size']) for trial in seeds] == [
        (seed, lr, size) for seed in range(5) for lr, size in ((0.2, 32), (0.1, 64))]


def test_a_plan_has_the_trials_that_are_not_chosen_yet(study, price):
    planned = price.trials(study, is_planned=True)
    assert len(planned) == len(set(planned)) == 22 * (4 + 5)
    assert not any(study.is_done(trial) for trial in planned)
    tune(study, price, price.rows[0], best=3)
    assert Trial('net', price.setting(price.rows[0], 0.2, 64), 0) in price.trials(study, is_planned=True)


def test_the_queue_trains_the_chosen_settings_after_their_tuning(study, price, monkeypatch):
    price = price.with_rows(['late0.5'])
    begun = []

    def train_at_once(study, trial, lock):
        begun.append(trial)
        finish(study, trial, 80., held=trial.setting.changes['lr'])

    monkeypatch.setattr(trial_queue, 'train', train_at_once)
    trial_queue.work(study, lambda: price.trials(study), lambda trial: True, lambda trial, seconds: None)
    assert [trial.seed for trial in begun] == [TUNING_SEED] * 8 + [seed for seed in range(5) for _ in range(2)]
    assert {(trial.setting.changes['lr'], trial.setting.changes['batch_size']) for trial in begun[8:]} == {(0.2, 32)}


def test_differences_are_paired_and_have_a_95_percent_interval(study, price):
    price = price.with_rows(['plain-mix'])
    reference, row = price.rows
    figures = {reference.name: [80., 82., 84., 79., 85.], row.name: [81., 82.5, 86., 79.5, 86.]}
    for one in price.rows:
        tune(study, price, one)
        for seed, top1 in enumerate(figures[one.name]):
            finish(study, Trial('net', price.chosen(study, one, 'net'), seed), top1)
    first, second = price_lines(study, price, 'net')
    differences = [1., 0.5, 2., 0.5, 1.]
    error = statistics.stdev(differences) / 5 ** 0.5
    expected = stats.ttest_rel(figures[row.name], figures[reference.name]).confidence_interval(0.95)
    assert first.result.difference is None and first.result.top1.mean == pytest.approx(82)
    assert (second.result.difference.mean, second.result.difference.error) == pytest.approx((1., error))
    assert (second.result.difference.low, second.result.difference.high) == pytest.approx((expected.low, expected.high))
    assert second.result.difference.high - 1 == pytest.approx(2.776 * error, rel=1e-3)  # the tabled quantile, 4 degrees
    assert second.result.loss == pytest.approx(1 - statistics.fmean(figures[row.name]) / 100)


def test_an_interval_of_one_value_or_of_equal_values_is_defined():
    assert Interval.of([3.]) == Interval(3.)
    assert Interval.of([3., 3.]) == Interval(3., 0., 3., 3.)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [32, 64])
def test_updates_are_those_of_the_batches(study, price, name, size):
    trial = Trial('net', price.setting(row_of(price, name), 0.1, size), 0)
    batches = simulated_views(study.config(trial))
    finish(study, trial, 80., views=list(map(sum, batches)))
    assert num_updates(study.config(trial), study.record(trial)) == sum(map(len, batches))


def test_updates_are_counted_with_accumulation_processes_and_epochs_without_a_row():
    config = {'batch_size': 10, 'a2aug_branches': 2, 'a2aug_start_epoch': 3, 'grad_accum_steps': 2}
    # Five epochs of 7 batches on each of 2 processes; rows after the second, the fourth and the fifth.
    views = [2 * 7 * 20, 7 * 20 + 7 * 40, 7 * 40]
    record = RunRecord('run', {'epoch': [1., 3., 4.], 'train_views': list(map(float, views))})
    assert num_updates(config, record, num_processes=2) == 5 * 4


def test_the_table_has_costs_intervals_and_notes(study, price):
    price = replace(price, learning_rates=[0.05, 0.1, 0.2]).with_rows(['late0.25', 'a2aug5-v2'])
    for row, best in zip(price.rows, (5, 2, 0), strict=True):
        tune(study, price, row, best)
    for row, seed in itertools.product(price.rows[:2], (0, 1)):
        trial = Trial('net', price.chosen(study, row, 'net'), seed)
        views = list(map(sum, simulated_views(study.config(trial))))
        finish(study, trial, 80. + seed + (row is not price.rows[0]), seconds=360., views=views)
    done, total = write_tables(study, METHOD, [], ['the command'], {'price': price})
    assert (done, total) == (18 + 4, 18 + 15)
    text = (study.folder / 'price.md').read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert lines[2] == ('| plain, crop and flip | 0.2 | 64 images | 80.50 [74.15, 86.85] |  | 2 | 86 k | 1350 | 0.1 '
                        '| 0.1950 | 80.00 81.00 |')
    with open(study.folder / 'price.csv', newline='', encoding='utf-8') as file:
        rows = {row['name']: row for row in csv.DictReader(file)}
    assert [row.name for row in price.rows[1:2]] == ['a2aug5-v2'] and set(rows) == {'plain-none', 'a2aug5-v2'}
    assert rows['a2aug5-v2']['updates'] == str(45. * (NUM_IMAGES // 16)) and rows['a2aug5-v2']['difference'] == '1.0'
    assert '| A²-Aug, N = 3, from epoch 45 of 60 | 0.05 | 32 images | – |' in text
    assert 'at most 90 views' in text and 'learning rates 0.05, 0.1, 0.2 and the batch sizes 32, 64' in text
    assert 'The chosen learning rate is the smallest or largest of its list for 2 rows: plain, crop and flip; ' in text
    assert 'With 1 differences, about 0.1' in text and f"recipe's: {', '.join(price.added_policies)}" in text
    with Image.open(study.folder / 'pareto.png') as image:
        assert image.width > 300 and len(image.convert('L').getcolors(256) or ()) > 2
    assert '![pareto](pareto.png)' in text and text.strip() in (study.folder / 'study.md').read_text(encoding='utf-8')
    kept = [json.loads(line) for line in (study.folder / 'trials.jsonl').read_text(encoding='utf-8').splitlines()]
    assert len(kept) == 22


def test_the_pareto_front_has_the_results_that_no_cheaper_result_beats():
    lines = [SimpleNamespace(top1=Interval(top1)) for top1 in (70., 69., 75., 75., 80.)]
    assert pareto_front(lines) == [lines[0], lines[2], lines[4]]


def test_a_folder_keeps_its_choices(study):
    study.keep()
    again = replace(study, learning_rates=[], batch_sizes=[]).with_kept()
    assert (again.learning_rates, again.batch_sizes) == ([0.1, 0.2], [32, 64])
    with pytest.raises(ValueError, match='a study with --batch-sizes 32 64; give another folder'):
        replace(study, batch_sizes=[16]).with_kept()


@pytest.mark.parametrize('flags, words', [
    (['price', '--rows', 'plain-tea'], "no row 'plain-tea'; the rows are plain-none, plain-rand-m6"),
    (['table7', '--rows', 'plain-ta'], '--rows is for the tables price, price_long'),
    (['price', '--batch-sizes', '4'], 'batch sizes must be at least 5'),
    (['price', '--learning-rates', '0.1', '-0.1'], '--learning-rates must be above 0, got -0.1'),
    (['price', '--a2aug-views', '1'], 'a2aug-views')])
def test_bad_input_is_refused_before_any_work(recipe, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        main([*flags, '-c', recipe, '-o', str(tmp_path / 'out')])
    assert exit_info.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_policies_that_differ_from_seed_to_seed_are_refused(tmp_path, capsys):
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump({**RECIPE, 'lr': 0.1}))
    with pytest.raises(SystemExit):
        main(['price', '-c', str(tmp_path / 'recipe.yaml'), '-o', str(tmp_path / 'out')])
    assert 'name them with --a2aug-policies' in capsys.readouterr().err


def test_rows_are_tuned_trained_and_written_and_a_second_call_adds_rows(recipe, tmp_path, capsys, monkeypatch):
    def in_process(command, **kwargs):
        train.main(command[command.index('-c'):])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(trial_queue.subprocess, 'run', in_process)
    out = tmp_path / 'out'
    argv = ['-c', recipe, '-o', str(out), '--seeds', '1', '--learning-rates', '0.05', '--batch-sizes', '16']
    main(['price', *argv, '--rows', 'a2aug2-v1'])
    assert '4 runs, 0 of them done' in capsys.readouterr().out
    main(['price', *argv, '--rows', 'a2aug5-v2', 'late0.25'])
    assert '6 runs, 2 of them done' in capsys.readouterr().out
    with open(out / 'price.csv', newline='', encoding='utf-8') as file:
        rows = {row['name']: (float(row['views']), float(row['updates'])) for row in csv.DictReader(file)}
    # 128 images and 4 views of each; late branches make 2 epochs of one view and 1 epoch of two views.
    assert rows == {
        'plain-none': (512, 32), 'a2aug2-v1': (512, 32), 'a2aug5-v2': (512, 32), 'late0.25': (512, 24)}
    text = (out / 'price.md').read_text(encoding='utf-8')
    assert len((out / 'trials.jsonl').read_text().splitlines()) == 8
    main(['table7', '-c', recipe, '-o', str(out), '--seeds', '1', '--budget', '0'])  # writes the other table again
    lines = [line for line in (out / 'price.md').read_text(encoding='utf-8').splitlines() if line.startswith('| plain')]
    assert lines == [line for line in text.splitlines() if line.startswith('| plain')] and len(lines) == 1


def test_train_accepts_every_row(recipe, tmp_path, capsys):
    main(['price', 'price_long', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '5', '--plan'])
    assert 'runs, 0 of them done' in capsys.readouterr().out and not (tmp_path / 'out').exists()

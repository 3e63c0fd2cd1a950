"""Studies: the trials of each table, the queue that trains each of them once, and the tables that are written."""
import csv
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

import a2aug_timm.train.__main__ as train
from a2aug_timm.data.policies import sample_policies
from a2aug_timm.study import Row, Setting, Study, Trial, trial_queue
from a2aug_timm.study.__main__ import main
from a2aug_timm.study.estimate import Estimate
from a2aug_timm.study.outcomes import expected_search, lines_of, outcome
from a2aug_timm.study.pages import write_tables
from a2aug_timm.study.rows import TABLES
from tests import ROOT
from tests.study.finished import METHOD, RECIPE, finish

NAMED = replace(METHOD, num_branches=3, named=['v0', 'none', '3a'])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / 'study', {'holdout': 100, 'a2aug_space': 'cifar100'}, 10, ['net'], 2)


def read_table(study, name):
    with open(study.folder / f'{name}.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_the_controls_of_table_1_have_as_many_views_as_a2aug():
    rows = {row.label: sum(setting.cost for setting in row.settings(0)) for row in TABLES['table1'](METHOD)}
    assert rows == {
        'baseline': 1, 'RA, a drawn policy': 1, 'baseline, 2× the epochs': 2, 'RA, a drawn policy, 2× the epochs': 2,
        'RA, the best of 2 drawn policies': 2, 'RA, grid of 3': 3, 'A²-Aug, N = 2': 2}
    drawn = [setting.changes['aa'] for setting in METHOD.best_of(2).settings(5)]
    assert drawn == sample_policies(2, 5, [1], [2, 6, 10])
    assert [setting.name for setting in METHOD.search().settings(0)] == ['ra-n1-m2', 'ra-n1-m6', 'ra-n1-m10']


def test_policies_that_the_recipe_names_replace_the_search_space():
    rows = {row.label: [(setting.name, setting.changes, setting.epochs) for setting in row.settings(7)]
            for row in TABLES['table1'](NAMED)}
    alone = [('aa-v0', {'aa': 'v0'}, 1), ('aa-none', {'aa': 'none', 'color_jitter': 0.}, 1), ('aa-3a', {'aa': '3a'}, 1)]
    assert rows == {
        'baseline': [('baseline', {'color_jitter': 0.}, 1)], 'v0 alone': alone[:1],
        'baseline, 3× the epochs': [('baseline-3x', {'color_jitter': 0.}, 3)],
        'v0 alone, 3× the epochs': [('aa-v0-3x', {'aa': 'v0'}, 3)], 'the best of 3 policies alone': alone,
        'A²-Aug, N = 3': [('a2aug3', {'a2aug_branches': 3, 'a2aug_policies': ['v0', 'none', '3a']}, 1)]}
    branches = [row.settings(0)[0].changes.get('a2aug_policies') for row in TABLES['figure4'](NAMED)]
    assert branches == [None, ['v0', 'none'], ['v0', 'none', '3a']]


@pytest.mark.parametrize('method', [METHOD, NAMED])
def test_a_setting_name_means_the_same_in_all_tables_and_seeds(method):
    seen = {}
    for make in TABLES.values():
        for row, seed in itertools.product(make(method), range(3)):
            for setting in row.settings(seed):
                assert seen.setdefault(setting.name, setting) == setting


def test_plain_trials_get_no_a2aug_arguments_and_all_trials_get_the_others(study):
    joint, plain = (Trial('net', setting, 1) for setting in (
        METHOD.joint(2, '-average', a2aug_ensemble='average').settings(0)[0], METHOD.baseline(3).settings(0)[0]))
    assert study.config(joint) == {'holdout': 100, 'a2aug_space': 'cifar100', 'model': 'net', 'seed': 1, 'epochs': 10,
                                   'a2aug_branches': 2, 'a2aug_ensemble': 'average'}
    assert study.config(plain) == {'holdout': 100, 'model': 'net', 'seed': 1, 'epochs': 30, 'color_jitter': 0.}
    stepwise = replace(study, recipe={'decay_epochs': 4, 'decay_milestones': [2, 3]})
    assert stepwise.config(plain).items() >= {'decay_epochs': 12, 'decay_milestones': [6, 9]}.items()
    assert replace(study, recipe={'decay_epochs': 0.2}).config(plain)['decay_epochs'] == 0.2


def test_the_best_of_several_trials_is_chosen_on_held_out_images_and_costs_all_of_them(study):
    trials = METHOD.search().trials('net', 0)
    for trial, top1, held in zip(trials, (90., 80., 85.), (50., 60., 55.), strict=True):
        assert outcome(study, trials) is None
        finish(study, trial, top1, held)
    found = outcome(study, trials)
    assert (found.top1, found.views, found.seconds, found.cost) == (80., 3000., 30., 3)


def test_the_expected_search_is_the_mean_over_all_draws(study):
    row = Row('', lambda seed: [Setting(f's{i}', {}) for i in range(5)])
    assert expected_search(study, row, 'net', 0) == []
    figures = [(80., 3.), (70., 5.), (90., 1.), (60., 4.), (75., 2.)]  # top-1, and what is chosen by
    for trial, (top1, held) in zip(row.trials('net', 0), figures, strict=True):
        finish(study, trial, top1, held)
    expected = [statistics.fmean(max(drawn, key=lambda one: one[1])[0] for drawn in itertools.combinations(figures, k))
                for k in range(1, 6)]
    assert expected_search(study, row, 'net', 0) == pytest.approx(expected)


def test_tables_have_means_deviations_gains_and_costs(study):
    rows = TABLES['table7'](METHOD)
    for seed, figures in enumerate([(80., 81., 84.), (82., 83., 85.)]):
        for row, top1 in zip(rows, figures, strict=True):
            finish(study, row.trials('net', seed)[0], top1, seconds=1800.)
    write_tables(study, METHOD, ['table7'], ['the command'])
    baseline, _, adaptive = read_table(study, 'table7')
    assert [float(baseline[name]) for name in ('top1', 'top1_std')] == pytest.approx([81, 2 ** 0.5])
    assert baseline['gain'] == ''
    assert [float(adaptive[name]) for name in ('top1', 'gain', 'gain_std', 'seeds', 'cost', 'views', 'seconds')] == (
        pytest.approx([84.5, 3.5, 0.5 ** 0.5, 2, 2, 2000, 1800]))
    page = (study.folder / 'study.md').read_text(encoding='utf-8')
    assert '| adaptive ensemble | 84.50 ± 0.71 | +3.50 ± 0.71 | 2 | 2× (2 k) | 0.5 | 84.00 85.00 |' in page
    assert 'the command' in page and 'holdout: 100' in page
    with open(study.folder / 'runs.csv', newline='', encoding='utf-8') as file:
        lines = list(csv.DictReader(file))
    assert sorted(line['top1'] for line in lines) == [f'{top1}.00' for top1 in range(80, 86)]


def test_a_row_without_a_finished_trial_stays_empty(study):
    rows = TABLES['table7'](METHOD)
    finish(study, rows[2].trials('net', 1)[0], 84.)
    write_tables(study, METHOD, list(TABLES), [])
    (adaptive,) = read_table(study, 'table7')
    assert adaptive['top1'] == '84.0' and adaptive['gain'] == adaptive['top1_std'] == '' and adaptive['seeds'] == '1'
    page = (study.folder / 'table7.md').read_text(encoding='utf-8')
    assert '| baseline | – |  | 0 |' in page and '| adaptive ensemble | 84.00 |  | 1 |' in page


def test_a_gain_uses_the_seeds_that_both_rows_have(study):
    rows = TABLES['table7'](METHOD)
    finish(study, rows[0].trials('net', 1)[0], 80.)
    for seed, top1 in enumerate((50., 84.)):
        finish(study, rows[2].trials('net', seed)[0], top1)
    baseline, _, adaptive = lines_of(study, rows, 'net')
    assert adaptive.gain == (4., None) and adaptive.top1[0] == 67. and baseline.seeds == {1: 80.}


def test_failed_trials_are_named_and_left_out_of_a_search(study):
    trials = METHOD.search().trials('net', 0)
    for trial in trials[:2]:
        finish(study, trial, 80.)
    study.beside(trials[2], 'failed').write_text('the loss is not finite\n')
    found = outcome(study, trials)
    assert found.top1 == 80. and found.cost == 3 and outcome(study, trials[2:]) is None
    write_tables(study, METHOD, ['table1'], [])
    page = (study.folder / 'study.md').read_text(encoding='utf-8')
    assert 'net-ra-n1-m10-seed0 failed: the loss is not finite' in page
    for trial in METHOD.search().trials('net', 1):
        finish(study, trial, 80.)
    write_tables(study, METHOD, ['table1'], [])  # its figure has a search of two trials and one of three


def test_kept_results_replace_the_folders_of_the_trials(study):
    for seed, make in itertools.product(study.seeds, TABLES.values()):
        for row in make(METHOD):
            for trial in row.trials('net', seed):
                if not study.is_done(trial):
                    finish(study, trial, 80. + len(trial.name) / 8, seconds=1234.5678)
    failed = Trial('net', Setting('too-fast', {}), 0)
    study.beside(failed, 'failed').write_text('the loss is not finite\n')
    study.keep_results([failed])
    write_tables(study, METHOD, list(TABLES), [])
    written = {path.name: path.read_bytes() for path in study.folder.iterdir() if path.is_file()}
    shutil.rmtree(study.folder / 'runs')
    again = replace(study, _records={})
    assert again.failure(failed) == 'the loss is not finite' and not again.is_done(failed)
    write_tables(again, METHOD, list(TABLES), [])
    assert {path.name: path.read_bytes() for path in study.folder.iterdir() if path.is_file()} == written
    assert len(written['trials.jsonl'].splitlines()) == len(written['runs.csv'].splitlines())  # one failed, one header


def test_an_unfinished_line_of_kept_results_is_skipped_and_added_again(study, caplog):
    first, second, _ = METHOD.search().trials('net', 0)
    for trial in first, second:
        finish(study, trial, 80.)
    study.keep_results([first, second])
    path = study.folder / 'trials.jsonl'
    path.write_bytes(path.read_bytes()[:-20])
    torn = replace(study, _records={})
    torn.keep_results([first, second])
    assert 'line 2 is not the result of a trial' in caplog.text
    shutil.rmtree(study.folder / 'runs')
    again = replace(study, _records={})
    assert again.is_done(first) and path.read_text().count('\n') == 3
    assert again.record(second).result == study.record(second).result


def test_table_6_counts_the_runs_whose_best_branch_has_the_largest_mu(study):
    (row,) = TABLES['table6'](METHOD)
    for seed, mu in enumerate([(0.25, 0.75), (0.6, 0.4)]):
        finish(study, row.trials('net', seed)[0], 84., mu=mu)
    write_tables(study, METHOD, ['table6'], [])
    lines = read_table(study, 'table6')
    assert [line['μ'] for line in lines] == ['0.250', '0.750', '', '0.600', '0.400', '']
    assert [line['top-1 held out, %'] for line in lines] == ['70.00', '80.00', '84.00'] * 2
    assert 'In 1 of 2 runs' in (study.folder / 'table6.md').read_text(encoding='utf-8')


def test_figures_are_drawn_from_the_finished_trials_as_png(study):
    for make in TABLES.values():
        for row in make(METHOD):
            for trial in row.trials('net', 0):
                if not study.is_done(trial):
                    finish(study, trial, 80. + len(trial.name) / 10)
    write_tables(study, METHOD, list(TABLES), [])
    for name in ('cost', 'mu', 'figure3', 'figure4'):
        assert (study.folder / f'{name}.png').stat().st_size > 5000
    assert not list(study.folder.glob('*.svg'))
    assert '![figure4](figure4.png)' in (study.folder / 'study.md').read_text(encoding='utf-8')


def test_a_trial_that_another_process_holds_is_not_started(study, monkeypatch):
    begun = []

    def train_at_once(study, trial, lock):
        begun.append(trial)
        finish(study, trial, 80.)

    monkeypatch.setattr(trial_queue, 'train', train_at_once)
    trials = METHOD.search().trials('net', 0)
    finish(study, trials[1], 80.)
    with trial_queue.claim(study.beside(trials[0], 'lock')) as lock:
        assert lock is not None
        trial_queue.work(study, lambda: trials, lambda trial: True, lambda trial, seconds: None)
    assert begun == [trials[2]]
    trial_queue.work(study, lambda: trials, lambda trial: False, lambda trial, seconds: None)
    assert begun == [trials[2]]
    trial_queue.work(study, lambda: trials, lambda trial: True, lambda trial, seconds: None)
    assert begun == [trials[2], trials[0]]


def test_a_stopped_trial_is_resumed_and_a_failed_one_is_reported(study, monkeypatch):
    recipe = {name: value for name, value in RECIPE.items() if name not in ('epochs', 'model')}
    study = Study(study.folder, recipe, 2, ['wide_resnet10_1'], 1)
    (trial,) = METHOD.joint().trials('wide_resnet10_1', 0)
    study.path(trial).parent.mkdir(parents=True)
    calls = []

    def in_process(command, **kwargs):
        assert command[:3] == [sys.executable, '-m', 'a2aug_timm.train']
        calls.append(command[3:])
        train.main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    config = study.beside(trial, 'yaml')
    config.write_text(yaml.safe_dump(study.config(trial)))
    train.main(['-c', str(config), '--output', str(config.parent), '--experiment', trial.name, '--epochs', '1'])
    (study.path(trial) / 'result.json').unlink()
    monkeypatch.setattr(trial_queue.subprocess, 'run', in_process)
    told = []
    trial_queue.work(study, lambda: [trial], lambda trial: True, lambda trial, seconds: told.append(trial))
    assert len(study.record(trial).columns['epoch']) == 2 and '--resume' in calls[0] and told == [trial]

    (trial,) = METHOD.baseline().trials('wide_resnet10_1', 0)
    for code in (1, 2):
        def end(command, stdout, code=code, **_):
            stdout.write('Traceback\ntrain.py: error: no such thing\n\n')
            return subprocess.CompletedProcess(command, code)
        monkeypatch.setattr(trial_queue.subprocess, 'run', end)
        if code == 2:
            with pytest.raises(ValueError, match='^no such thing$'):
                trial_queue.work(study, lambda: [trial], lambda trial: True, lambda trial, seconds: told.append(trial))
        else:
            trial_queue.work(study, lambda: [trial], lambda trial: True, lambda trial, seconds: told.append(trial))
            assert told[1] == trial and study.failure(trial) == 'train.py: error: no such thing'


def test_two_processes_share_the_trials_and_a_second_call_trains_nothing(recipe, tmp_path):
    command = [sys.executable, '-m', 'a2aug_timm.study', 'table7', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds',
               '1']
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    runs = tmp_path / 'out' / 'runs'
    done = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob('*/result.json')}
    assert set(done) == {f'wide_resnet10_1-{name}-seed0' for name in ('baseline', 'a2aug2-average', 'a2aug2')}
    lines = [line for out, _ in outputs for line in out.splitlines() if ': top-1 ' in line]
    log = (tmp_path / 'out' / 'study.log').read_text(encoding='utf-8').splitlines()
    assert len(lines) == 3 and sorted(log) == sorted(lines)
    for log in runs.glob('*.log'):
        assert log.read_text(encoding='utf-8').count('Best: branch') == 1

    main(['table7', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '1'])
    assert {path.parent.name: path.stat().st_mtime_ns for path in runs.glob('*/result.json')} == done

    names = [json.loads(line)['name'] for line in (tmp_path / 'out' / 'trials.jsonl').read_text().splitlines()]
    assert sorted(names) == sorted(done)
    shutil.rmtree(runs)  # the kept results are enough, for the tables and to train nothing again
    main(['table7', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '1'])
    assert not list(runs.glob('*/result.json'))
    main(['table8', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '1', '--budget', '0'])
    page = (tmp_path / 'out' / 'study.md').read_text(encoding='utf-8')
    assert 'python -m a2aug_timm.study table8 -c' in page and '| no KL | – |' in page
    assert 'Table 7' in page and '| adaptive ensemble | – |' not in page


def test_estimates_are_proportional_to_the_views(study):
    trials = [trial for row in TABLES['table1'](METHOD) for trial in row.trials('net', 0)]
    estimate = Estimate(study, trials, 1000, may_probe=False)
    assert estimate.seconds(trials[0]) is None
    for trial in trials[:2]:
        finish(study, trial, 80., seconds=30.)
    doubled = [trial for trial in trials if trial.setting.name in ('a2aug2', 'baseline-2x')]
    assert [estimate.seconds(trial) for trial in doubled] == [60., 60.]


def test_a_plan_prints_runs_and_hours_and_writes_nothing(recipe, tmp_path, capsys):
    main(['table1', 'table8', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '2', '--plan'])
    out = capsys.readouterr().out
    # Per seed: the baseline and the grid's 3 policies, a longer trial of each kind, A²-Aug and its two variants.
    assert '18 runs, 0 of them done' in out
    assert 'hours of training' in out and 'unknown' not in out
    assert not (tmp_path / 'out').exists()


def test_a_recipe_of_named_policies_is_checked_and_planned(recipe, tmp_path, capsys):
    named = ['--a2aug-policies', 'v0', 'rand-m4-n2']
    main(['all', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '1', '--plan', *named])
    out = capsys.readouterr().out
    assert 'wide_resnet10_1-aa-rand-m4-n2-seed0' in out and '21 runs' in out


@pytest.mark.parametrize('table, num_runs', [('table6', 2), ('table5', 6), ('choices', 18), ('table2', 14)])
def test_any_table_can_be_made_alone(recipe, tmp_path, capsys, table, num_runs):
    study = Study(tmp_path / 'out', {}, 1, ['wide_resnet10_1'], 2)
    finish(study, METHOD.joint().trials('wide_resnet10_1', 0)[0], 80., seconds=720.)
    main([table, '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '2', '--plan'])
    out = capsys.readouterr().out
    assert f'{num_runs} runs, 1 of them done' in out and 'wide_resnet10_1-a2aug2-seed1' in out and '2×  0.20 h' in out


@pytest.mark.parametrize('flags, words', [
    (['--a2aug-branches', '1'], 'needs a recipe of A²-Aug'), (['--seed', '3'], '--seed is set by the study itself'),
    (['--a2aug-policies', 'v0', 'v0'], '2 different policies, got v0 v0'),
    (['--seeds', '0'], '--seeds and --nproc must be at least 1'),
    (['--budget', 'nan'], '--budget at least 0'),
    (['--a2aug-kl-weight', '0'], '--a2aug-kl-weight is compared by the tables'),
    (['--lr', '0.1', 'figure4'], "'figure4' is not expected here"),
    (['--val-split', ''], 'accuracy on the validation split'),
    (['--model', 'resnet18', 'wide_resnet10_1', '--input-size', '1', '16', '16', '--holdout', '2000'], 'be held out'),
    (['--modle', 'resnet18'], "unknown argument '--modle'"), (['--model', 'resnet81'], 'resnet81'),
    (['--dataset', 'torch/cifar10', '--data', '/nowhere'], "no data folder '/nowhere'"),
    (['--a2aug-norm', 'all'], 'do not go together')])
def test_bad_input_is_refused_before_any_work(recipe, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        main(['all', '-c', recipe, '-o', str(tmp_path / 'out'), *flags])
    assert exit_info.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_folder_belongs_to_one_recipe(recipe, study, capsys):
    kept = {name: value for name, value in RECIPE.items() if name not in ('epochs', 'model')}
    Study(study.folder, {**kept, 'lr': 0.3, 'checkpoint_hist': 1, 'workers': 5}, 1, ['net'], 4).keep()
    with pytest.raises(SystemExit):
        main(['table7', '-c', recipe, '-o', str(study.folder), '--seeds', '1'])
    assert 'a recipe with lr 0.3, not None; give another folder' in capsys.readouterr().err
    ours = Study(study.folder, {**kept, 'lr': 0.3, 'checkpoint_hist': 1}, 1, ['other'], 2)
    with pytest.raises(ValueError, match='with --nproc 1; give another folder'):
        replace(ours, num_processes=8).with_kept()
    ours = ours.with_kept()
    assert ours.models == ['net', 'other'] and ours.num_seeds == 4

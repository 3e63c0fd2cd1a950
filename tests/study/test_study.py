"""A study: which runs its tables need, that they are trained once, and what is written of them."""
import csv
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

import a2aug_timm.train.__main__ as train
from a2aug_timm.data.policies import sample_policies
from a2aug_timm.study import Row, Run, Setting, Study, run_list
from a2aug_timm.study.__main__ import main
from a2aug_timm.study.estimate import Estimate
from a2aug_timm.study.outcomes import expected_search, lines_of, outcome
from a2aug_timm.study.pages import write_tables
from a2aug_timm.study.rows import TABLES, Method
from tests import ROOT

RECIPE = dict(
    dataset='sklearn/digits', model='wide_resnet10_1', num_classes=10, input_size=[1, 16, 16], mean=[0.3], std=[0.35],
    a2aug_branches=2, a2aug_num_layers=[1], a2aug_magnitudes=[2, 6, 10], epochs=1, batch_size=64, train_subset=128,
    holdout=100, warmup_epochs=0, workers=0, device='cpu')
METHOD = Method(2, [1], [2, 6, 10], 16)
NAMED = replace(METHOD, num_branches=3, named=['v0', 'none', '3a'])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / 'study', {'holdout': 100, 'a2aug_space': 'cifar100'}, 10, ['net'], 2)


def finish(study, run, top1, held=None, seconds=10., mu=(0.25, 0.75), branches=(70., 80.)):
    """Write what a run of two epochs leaves; the second epoch is chosen."""
    path = study.path(run)
    path.mkdir(parents=True)
    held = top1 if held is None else held
    result = {'epoch': 1, 'branch': 0, 'policy': 'p', 'eval_metric': 'top1', 'chosen_on': '100 held out',
              'chosen_with': {'top1': held}, 'test_split': 'validation', 'test': {'top1': top1}}
    (path / 'result.json').write_text(json.dumps(result))
    num = run.setting.changes.get('a2aug_branches', 1)
    rows = []
    for epoch in range(2):
        row = {'epoch': epoch, 'train_loss': 1., 'train_views': 500. * num * run.setting.epochs,
               'train_seconds': seconds / 2, 'eval_top1': held - 1 + epoch}
        if num > 1:
            row.update({f'mu_{i}': mu[i % 2] for i in range(num)}, best_branch=0, eval_ensemble_top1=held)
            row.update({f'eval_branch_{i}_top1': branches[i % 2] for i in range(num)})
        rows.append(row)
    with open(path / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_table(study, name):
    with open(study.folder / f'{name}.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_the_controls_of_table_1_see_as_many_images_as_a2aug():
    rows = {row.label: sum(setting.cost for setting in row.settings(0)) for row in TABLES['table1'](METHOD)}
    assert rows == {
        'baseline': 1, 'RA, a drawn policy': 1, 'baseline, 2× the epochs': 2, 'RA, a drawn policy, 2× the epochs': 2,
        'RA, the best of 2 drawn policies': 2, 'RA, grid of 3': 3, 'A²-Aug, N = 2': 2}
    drawn = [setting.changes['aa'] for setting in METHOD.best_of(2).settings(5)]
    assert drawn == sample_policies(2, 5, [1], [2, 6, 10])
    assert [setting.name for setting in METHOD.search().settings(0)] == ['ra-n1-m2', 'ra-n1-m6', 'ra-n1-m10']


def test_policies_that_the_recipe_names_take_the_place_of_the_space():
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
def test_settings_of_one_name_are_the_same_in_all_tables_and_seeds(method):
    seen = {}
    for make in TABLES.values():
        for row, seed in itertools.product(make(method), range(3)):
            for setting in row.settings(seed):
                assert seen.setdefault(setting.name, setting) == setting


def test_plain_runs_get_nothing_of_a2aug_and_all_runs_the_rest(study):
    joint, plain = (Run('net', setting, 1) for setting in (
        METHOD.joint(2, '-average', a2aug_ensemble='average').settings(0)[0], METHOD.baseline(3).settings(0)[0]))
    assert study.config(joint) == {'holdout': 100, 'a2aug_space': 'cifar100', 'model': 'net', 'seed': 1, 'epochs': 10,
                                   'a2aug_branches': 2, 'a2aug_ensemble': 'average'}
    assert study.config(plain) == {'holdout': 100, 'model': 'net', 'seed': 1, 'epochs': 30, 'color_jitter': 0.}
    stepwise = replace(study, recipe={'decay_epochs': 4, 'decay_milestones': [2, 3]})
    assert stepwise.config(plain).items() >= {'decay_epochs': 12, 'decay_milestones': [6, 9]}.items()
    assert replace(study, recipe={'decay_epochs': 0.2}).config(plain)['decay_epochs'] == 0.2


def test_the_best_of_several_runs_is_chosen_on_held_out_images_and_costs_all_of_them(study):
    runs = METHOD.search().runs('net', 0)
    for run, top1, held in zip(runs, (90., 80., 85.), (50., 60., 55.), strict=True):
        assert outcome(study, runs) is None
        finish(study, run, top1, held)
    found = outcome(study, runs)
    assert (found.top1, found.views, found.seconds, found.cost) == (80., 3000., 30., 3)


def test_a_growing_search_is_the_mean_over_all_its_draws(study):
    row = Row('', lambda seed: [Setting(f's{i}', {}) for i in range(5)])
    assert expected_search(study, row, 'net', 0) == []
    figures = [(80., 3.), (70., 5.), (90., 1.), (60., 4.), (75., 2.)]  # top-1, and what is chosen by
    for run, (top1, held) in zip(row.runs('net', 0), figures, strict=True):
        finish(study, run, top1, held)
    expected = [statistics.fmean(max(drawn, key=lambda one: one[1])[0] for drawn in itertools.combinations(figures, k))
                for k in range(1, 6)]
    assert expected_search(study, row, 'net', 0) == pytest.approx(expected)


def test_tables_say_means_spreads_gains_and_costs(study):
    rows = TABLES['table7'](METHOD)
    for seed, figures in enumerate([(80., 81., 84.), (82., 83., 85.)]):
        for row, top1 in zip(rows, figures, strict=True):
            finish(study, row.runs('net', seed)[0], top1, seconds=1800.)
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


def test_what_is_not_done_is_no_figure(study):
    rows = TABLES['table7'](METHOD)
    finish(study, rows[2].runs('net', 1)[0], 84.)
    write_tables(study, METHOD, list(TABLES), [])
    (adaptive,) = read_table(study, 'table7')
    assert adaptive['top1'] == '84.0' and adaptive['gain'] == adaptive['top1_std'] == '' and adaptive['seeds'] == '1'
    page = (study.folder / 'table7.md').read_text(encoding='utf-8')
    assert '| baseline | – |  | 0 |' in page and '| adaptive ensemble | 84.00 |  | 1 |' in page


def test_a_gain_is_over_the_seeds_that_both_have(study):
    rows = TABLES['table7'](METHOD)
    finish(study, rows[0].runs('net', 1)[0], 80.)
    for seed, top1 in enumerate((50., 84.)):
        finish(study, rows[2].runs('net', seed)[0], top1)
    baseline, _, adaptive = lines_of(study, rows, 'net')
    assert adaptive.gain == (4., None) and adaptive.top1[0] == 67. and baseline.seeds == {1: 80.}


def test_runs_that_failed_are_named_and_a_search_goes_without_them(study):
    runs = METHOD.search().runs('net', 0)
    for run in runs[:2]:
        finish(study, run, 80.)
    study.beside(runs[2], 'failed').write_text('the loss is not finite\n')
    assert outcome(study, runs).top1 == 80. and outcome(study, runs).cost == 3 and outcome(study, runs[2:]) is None
    write_tables(study, METHOD, ['table1'], [])
    page = (study.folder / 'study.md').read_text(encoding='utf-8')
    assert 'net-ra-n1-m10-seed0 failed: the loss is not finite' in page
    for run in METHOD.search().runs('net', 1):
        finish(study, run, 80.)
    write_tables(study, METHOD, ['table1'], [])  # whose figure has a search of two runs and one of three


def test_table_6_counts_where_the_largest_mu_is_at_the_best_branch(study):
    (row,) = TABLES['table6'](METHOD)
    for seed, mu in enumerate([(0.25, 0.75), (0.6, 0.4)]):
        finish(study, row.runs('net', seed)[0], 84., mu=mu)
    write_tables(study, METHOD, ['table6'], [])
    lines = read_table(study, 'table6')
    assert [line['μ'] for line in lines] == ['0.250', '0.750', '', '0.600', '0.400', '']
    assert [line['top-1 held out, %'] for line in lines] == ['70.00', '80.00', '84.00'] * 2
    assert 'In 1 of 2 runs' in (study.folder / 'table6.md').read_text(encoding='utf-8')


def test_figures_are_drawn_of_what_is_done(study):
    for make in TABLES.values():
        for row in make(METHOD):
            for run in row.runs('net', 0):
                if not study.is_done(run):
                    finish(study, run, 80. + len(run.name) / 10)
    write_tables(study, METHOD, list(TABLES), [])
    for name in ('cost', 'mu', 'figure3', 'figure4'):
        assert (study.folder / f'{name}.png').stat().st_size > 5000 and (study.folder / f'{name}.svg').is_file()
    assert '![figure4](figure4.png)' in (study.folder / 'study.md').read_text(encoding='utf-8')


def test_a_run_that_another_process_holds_is_left_alone(study, monkeypatch):
    begun = []

    def train_at_once(study, run, lock):
        begun.append(run)
        finish(study, run, 80.)

    monkeypatch.setattr(run_list, 'train', train_at_once)
    runs = METHOD.search().runs('net', 0)
    finish(study, runs[1], 80.)
    with run_list.claim(study.beside(runs[0], 'lock')) as lock:
        assert lock is not None
        run_list.work(study, runs, lambda run: True, lambda run, seconds: None)
    assert begun == [runs[2]]
    run_list.work(study, runs, lambda run: False, lambda run, seconds: None)
    assert begun == [runs[2]]
    run_list.work(study, runs, lambda run: True, lambda run, seconds: None)
    assert begun == [runs[2], runs[0]]


def test_a_stopped_run_goes_on_and_one_that_fails_is_told(study, monkeypatch):
    recipe = {name: value for name, value in RECIPE.items() if name not in ('epochs', 'model')}
    study = Study(study.folder, recipe, 2, ['wide_resnet10_1'], 1)
    (run,) = METHOD.joint().runs('wide_resnet10_1', 0)
    study.path(run).parent.mkdir(parents=True)
    calls = []

    def in_process(command, **kwargs):
        assert command[:3] == [sys.executable, '-m', 'a2aug_timm.train']
        calls.append(command[3:])
        train.main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    config = study.beside(run, 'yaml')
    config.write_text(yaml.safe_dump(study.config(run)))
    train.main(['-c', str(config), '--output', str(config.parent), '--experiment', run.name, '--epochs', '1'])
    (study.path(run) / 'result.json').unlink()
    monkeypatch.setattr(run_list.subprocess, 'run', in_process)
    told = []
    run_list.work(study, [run], lambda run: True, lambda run, seconds: told.append(run))
    assert len(study.record(run).columns['epoch']) == 2 and '--resume' in calls[0] and told == [run]

    (run,) = METHOD.baseline().runs('wide_resnet10_1', 0)
    for code in (1, 2):
        def end(command, stdout, code=code, **_):
            stdout.write('Traceback\ntrain.py: error: no such thing\n\n')
            return subprocess.CompletedProcess(command, code)
        monkeypatch.setattr(run_list.subprocess, 'run', end)
        if code == 2:
            with pytest.raises(ValueError, match='^no such thing$'):
                run_list.work(study, [run], lambda run: True, lambda run, seconds: told.append(run))
        else:
            run_list.work(study, [run], lambda run: True, lambda run, seconds: told.append(run))
            assert told[1] == run and study.failure(run) == 'train.py: error: no such thing'


def test_two_processes_share_the_runs_and_a_second_call_trains_nothing(recipe, tmp_path):
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
    main(['table8', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '1', '--budget', '0'])
    page = (tmp_path / 'out' / 'study.md').read_text(encoding='utf-8')
    assert 'python -m a2aug_timm.study table8 -c' in page and '| no KL | – |' in page
    assert 'Table 7' in page and '| adaptive ensemble | – |' not in page


def test_estimates_are_by_views_and_a_budget_begins_nothing_that_would_end_later(study):
    runs = [run for row in TABLES['table1'](METHOD) for run in row.runs('net', 0)]
    estimate = Estimate(study, runs, 1000, may_probe=False)
    assert estimate.seconds(runs[0]) is None
    for run in runs[:2]:
        finish(study, run, 80., seconds=30.)
    assert [estimate.seconds(run) for run in runs if run.setting.name in ('a2aug2', 'baseline-2x')] == [60., 60.]


def test_a_plan_says_runs_and_hours_and_leaves_nothing(recipe, tmp_path, capsys):
    main(['table1', 'table8', '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '2', '--plan'])
    out = capsys.readouterr().out
    # A seed: the baseline and the grid's 3 policies, a longer run of either, A²-Aug and its two variants.
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
    finish(study, METHOD.joint().runs('wide_resnet10_1', 0)[0], 80., seconds=720.)
    main([table, '-c', recipe, '-o', str(tmp_path / 'out'), '--seeds', '2', '--plan'])
    out = capsys.readouterr().out
    assert f'{num_runs} runs, 1 of them done' in out and 'wide_resnet10_1-a2aug2-seed1' in out and '2×  0.20 h' in out


@pytest.mark.parametrize('flags, words', [
    (['--a2aug-branches', '1'], 'needs a recipe of A²-Aug'), (['--seed', '3'], '--seed is what a study sets itself'),
    (['--a2aug-policies', 'v0', 'v0'], 'each another, got v0 v0'), (['--seeds', '0'], '--seeds and --nproc are 1'),
    (['--budget', 'nan'], '--budget 0 or more'),
    (['--a2aug-kl-weight', '0'], '--a2aug-kl-weight is what the tables compare'),
    (['--lr', '0.1', 'figure4'], "what is 'figure4'?"), (['--val-split', ''], 'reports the validation split'),
    (['--model', 'resnet18', 'wide_resnet10_1', '--input-size', '1', '16', '16', '--holdout', '2000'], 'be held out'),
    (['--modle', 'resnet18'], "unknown argument '--modle'"), (['--model', 'resnet81'], 'resnet81'),
    (['--dataset', 'torch/cifar10', '--data', '/nowhere'], "no data folder '/nowhere'"),
    (['--a2aug-norm', 'all'], 'do not go together')])
def test_bad_input_is_refused_before_any_work(recipe, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        main(['all', '-c', recipe, '-o', str(tmp_path / 'out'), *flags])
    assert exit_info.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_folder_keeps_one_recipe(recipe, study, capsys):
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

"""Reports: reading a run's folder, the figures, and the self-contained page."""
import json
import re

import pytest
from PIL import Image

import a2aug_timm.train.__main__ as train
from a2aug_timm.report import read_run
from a2aug_timm.report.__main__ import main
from a2aug_timm.report.sample_views import sample_views
from tests.commands import SMALL


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A plain run, a joint run with a holdout, and a joint run with shared batch norm and no validation."""
    folder = tmp_path_factory.mktemp('runs')
    for name, flags in (('plain', ['--aa', 'rand-m9']), ('joint', ['--a2aug-branches', '2', '--holdout', '100']),
                        ('shared', ['--a2aug-branches', '2', '--a2aug-shared-bn', '--val-split', ''])):
        train.main([*SMALL, '--epochs', '2', '--output', str(folder), '--experiment', name, *flags])
    return folder


def test_a_run_is_read_from_its_folder(runs):
    joint = read_run(runs / 'joint')
    assert joint.num_branches == 2 and joint.policies == joint.args['a2aug_policies']
    assert len(joint.series(1, 'top1')) == len(joint.series('ensemble', 'loss')) == 2
    assert joint.chosen_branch == joint.result['branch'] and joint.chosen_epoch == joint.result['epoch']
    assert 'torch' in joint.origin[1]
    plain, shared = read_run(runs / 'plain'), read_run(runs / 'shared')
    assert plain.num_branches == 1 and plain.policies == ['rand-m9'] and len(plain.series(0, 'top1')) == 2
    assert shared.series(0, 'top1') == [] and 0 <= shared.chosen_epoch < 2


def test_the_page_is_self_contained_and_states_the_accuracy_on_unused_images_first(runs, tmp_path, capsys):
    folders = [str(runs / name) for name in ('joint', 'plain', 'shared')]
    main([*folders, '-o', str(tmp_path / 'out')])
    page = (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    result = json.loads((runs / 'joint' / 'result.json').read_text(encoding='utf-8'))
    sentence = re.search(r'<h2>joint</h2>\s*<p>(.*?)</p>', page).group(1)
    assert sentence.startswith(f"On validation, which was not used for the choice: top1 {result['test']['top1']:.4g}")
    assert 'it is optimistic' in re.search(r'<h2>plain</h2>\s*<p>(.*?)</p>', page).group(1)
    for policy in result['policy'], 'ensemble', 'Command and versions', 'What the branches see':
        assert policy in page
    links = set(re.findall(r'(?:href|src)="([^"]*)"', page))
    assert all(link.startswith(('#', 'data:')) for link in links) and '<script' not in page
    drawn = {'joint': ('curves', 'mu', 'views'), 'plain': ('curves', 'views'), 'shared': ('curves', 'mu', 'views')}
    for name, parts in drawn.items():
        for part in parts:
            with Image.open(tmp_path / 'out' / f'{name}-{part}.png') as image:
                assert image.width > 300 and len(image.convert('L').getcolors(256) or ()) > 2
    assert page.count('<svg') == 8 and not list((tmp_path / 'out').glob('*.svg'))
    assert 'report.html' in capsys.readouterr().out


def test_sample_views_show_the_images_and_one_view_per_policy(runs):
    views, labels = sample_views(read_run(runs / 'joint'))
    assert [len(row) for row in views] == [8, 8, 8] and labels[0] == 'image' and len(labels) == 3
    assert views[0][0].size == (32, 32) and any(one.tobytes() != other.tobytes() for one, other in zip(
        views[0], views[1], strict=True))
    again, _ = sample_views(read_run(runs / 'joint'))
    assert all(one.tobytes() == other.tobytes() for row, other_row in zip(views, again, strict=True)
               for one, other in zip(row, other_row, strict=True))


def test_a_summary_alone_makes_a_report_and_the_same_bytes_each_time(runs, tmp_path, caplog):
    (tmp_path / 'alone').mkdir()
    (tmp_path / 'alone' / 'summary.csv').write_text((runs / 'joint' / 'summary.csv').read_text())
    main([str(tmp_path / 'alone'), '-o', str(tmp_path / 'out')])
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / 'alone'), '-o', str(tmp_path / 'file')])
    assert exit_info.value.code == 2
    figure = tmp_path / 'out' / 'report.html'
    before = figure.read_bytes()
    main([str(tmp_path / 'alone'), '-o', str(tmp_path / 'out')])
    assert figure.read_bytes() == before
    assert 'the run is not finished' in (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    assert 'no sample views' in caplog.text and not (tmp_path / 'out' / 'alone-views.png').exists()


@pytest.mark.parametrize('prepare, words', [
    (lambda path: None, 'no summary.csv'), (lambda path: (path / 'summary.csv').write_text(''), 'no epoch'),
    (lambda path: (path / 'summary.csv').write_text('epoch,train_loss\n0,foo\n'), 'cannot be read')])
def test_a_folder_without_a_run_is_refused_before_anything_is_written(tmp_path, capsys, prepare, words):
    (tmp_path / 'run').mkdir()
    prepare(tmp_path / 'run')
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / 'run'), '-o', str(tmp_path / 'out')])
    assert exit_info.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / 'out').exists()

"""Strict configuration: each mistake is one sentence and exit code 2."""
import pytest
import yaml

from a2aug_timm.train.arguments import train_parser


def parse(tmp_path, text, *argv):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    return train_parser().parse(['-c', str(path), *argv])


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    text = 'lr: 1e-3\nbatch-size: 7\namp: true\nscale: [0.5, 1]\nmodel_kwargs: {width: 2}\nlr_noise: null\nepochs: 9'
    args, explicit = parse(tmp_path, text, '-b', '5', '--a2aug-logit-scale', '4')
    assert (args.lr, args.batch_size, args.amp, args.scale) == (1e-3, 5, True, [0.5, 1.])
    assert args.model_kwargs == {'width': 2}
    assert args.lr_noise is None and args.a2aug_logit_scale == 4. and args.momentum == 0.9
    assert explicit == {'lr', 'batch_size', 'amp', 'scale', 'model_kwargs', 'lr_noise', 'epochs', 'a2aug_logit_scale'}


@pytest.mark.parametrize('argv, kept', [
    (['--a2aug-policies', 'v0', '3a'], {'a2aug_policies': ['v0', '3a']}),
    (['--a2aug-seed', '4'], {'a2aug_space': 'svhn', 'a2aug_num_layers': [2], 'a2aug_seed': 4}),
    (['--a2aug-space', 'imagenet'], {'a2aug_space': 'imagenet', 'a2aug_seed': 3}),
    (['--a2aug-branches', '3'], {'a2aug_policies': ['none', 'v0'], 'a2aug_seed': 3, 'a2aug_space': 'svhn',
                                 'a2aug_num_layers': [2], 'a2aug_branches': 3})])
def test_policies_of_the_command_line_take_the_place_of_however_the_file_says_them(tmp_path, argv, kept):
    text = 'a2aug_policies: [none, v0]\na2aug_seed: 3\na2aug_space: svhn\na2aug_num_layers: [2]'
    args, explicit = parse(tmp_path, text, *argv)
    assert explicit == set(kept) and {name: getattr(args, name) for name in kept} == kept
    assert (args.a2aug_policies is None) == ('a2aug_policies' not in kept)


def test_the_resolved_arguments_of_a_run_are_a_config_file_again(tmp_path):
    args, _ = train_parser().parse(['--a2aug-branches', '3', '--a2aug-policies', 'v0', '3a', '--opt-kwargs', 'a=1'])
    again, _ = parse(tmp_path, yaml.safe_dump(vars(args)))
    assert vars(again) == vars(args)


@pytest.mark.parametrize('text, words', [
    ('learning_rate: 1', "unknown key 'learning_rate'"), ('batchsize: 1', "did you mean 'batch_size'"),
    ('epochs: many', 'epochs: expected int'), ('epochs: 1.5', 'epochs: expected int'),
    ('lr: [1]', 'lr: expected float'), ('amp: 1', 'amp: expected true or false'),
    ('amp: "yes"', 'expected true or false'),
    ('scale: 0.5', 'expected a list'), ('input_size: [1, 2]', 'a list of 3'), ('epochs: null', 'got null'),
    ('a2aug_ensemble: median', 'adaptive, average'), ('a2aug_logit_scale: big', 'expected a positive number or one of'),
    ('model: no', 'expected str, got False'),
    ('model_kwargs: 3', 'expected a mapping'), ('- a', "must hold 'key: value'"), ('a: [', 'is not YAML')])
def test_a_wrong_file_is_one_sentence_and_exit_code_2(tmp_path, capsys, text, words):
    with pytest.raises(SystemExit) as exit_info:
        parse(tmp_path, text)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and words in error and error.count('\n') == 1


@pytest.mark.parametrize('argv, words', [
    (['--bacth-size', '3'], "did you mean '--batch-size'"), (['-b', 'x'], "expected int, got 'x'"),
    (['-c', 'nowhere.yaml'], 'cannot read the config file'), (['--a2aug-loss-reduction', 'max'], 'invalid choice')])
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(capsys, argv, words):
    with pytest.raises(SystemExit) as exit_info:
        train_parser().parse(argv)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and words in error and error.count('\n') == 1


@pytest.mark.parametrize('name, local_name', [('RANK', 'LOCAL_RANK'), ('SLURM_PROCID', 'SLURM_LOCALID')])
def test_ranks_other_than_the_first_of_a_node_stay_silent(capsys, monkeypatch, name, local_name):
    monkeypatch.setenv(name, '9')
    for local_rank in '01':
        monkeypatch.setenv(local_name, local_rank)
        with pytest.raises(SystemExit) as exit_info:
            train_parser().parse(['--nonsense'])
        assert exit_info.value.code == 2 and bool(capsys.readouterr().err) == (local_rank == '0')


def test_every_rank_says_what_only_it_may_have_met(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('LOCAL_RANK', '3')
    with pytest.raises(SystemExit) as exit_info, train_parser().user_errors():
        raise PermissionError('not\nallowed')
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.endswith('error: rank 3: not allowed (PermissionError)\n')


def test_a_folder_named_without_its_flag_takes_the_place_of_the_files(tmp_path):
    (tmp_path / 'run.yaml').write_text('data_dir: old\n')
    args, _ = train_parser().parse(['new', '-c', str(tmp_path / 'run.yaml')])
    assert (args.data, args.data_dir) == ('new', None)


def test_a_bug_of_ours_keeps_its_traceback():
    for error in (RuntimeError, KeyError, AttributeError, TypeError):
        with pytest.raises(error), train_parser().user_errors():
            raise error('ours')


@pytest.mark.parametrize('text, words', [
    ('epochs: 0', 'epochs: must be at least 1, got 0'), ('smoothing: 1.5', 'must be between 0 and 1'),
    ('sched: foo', 'expected one of cosine, tanh'), ('scale: [0.5]', 'a list of 2 values'),
    ('std: [0.0]', 'must be above 0'), ('holdout: 1.5', 'a number of images or a share')])
def test_ranges_choices_and_lengths_hold_for_a_file_too(tmp_path, capsys, text, words):
    with pytest.raises(SystemExit):
        parse(tmp_path, text)
    assert words in capsys.readouterr().err


def test_one_branch_on_the_command_line_drops_the_branch_flags_of_a_recipe(tmp_path):
    text = 'a2aug_branches: 3\na2aug_policies: [none, v0, 3a]\na2aug_views: 1\nepochs: 7'
    args, explicit = parse(tmp_path, text, '--a2aug-branches', '1')
    assert (args.a2aug_branches, args.a2aug_policies, args.a2aug_views, args.epochs) == (1, None, None, 7)
    assert explicit == {'a2aug_branches', 'epochs'}
    args, _ = parse(tmp_path, text, '--a2aug-branches', '3')
    assert (args.a2aug_policies, args.a2aug_views) == (['none', 'v0', '3a'], 1)

"""The commands of README.md and docs/ are valid command lines; nothing is trained and no data is read."""
import re
import shlex

import pytest

import a2aug_timm.export.__main__ as export
import a2aug_timm.report.__main__ as report
from a2aug_timm.study.__main__ import study_parser
from a2aug_timm.study.recipe import read_recipe
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.validate.arguments import validate_parser
from tests import ROOT
from tests.commands import checked

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'hparams' / 'README.md']
# Beginning of a command -> the program that it starts.
PROGRAMS = {
    ('python', 'train.py'): 'train', ('python', 'validate.py'): 'validate',
    **{('python', '-m', f'a2aug_timm.{name}'): name for name in ('train', 'validate', 'export', 'report', 'study')},
    **{(f'a2aug-{name}',): name for name in ('train', 'validate', 'export', 'report', 'study')}}


def commands_of(text):
    """Commands in the indented blocks of a page, each as a list of words."""
    for line in re.findall(r'^ {4,}(.+)$', text, flags=re.MULTILINE):
        for command in re.split(r'&&|; (?:do )?', line):
            if not re.match(r'\s*(\w+=\S+ )*(python |a2aug-|\./distributed_train\.sh)', command):
                continue
            words = shlex.split(command, comments=True)
            yield words[next(i for i, word in enumerate(words) if not re.match(r'\w+=', word)):]


def program_of(words):
    """The program that a command starts, and its arguments; None for scripts that are not this package's commands."""
    if words[0] == './distributed_train.sh':
        assert words[1].isdigit()
        return 'train', words[2:]
    return next(((name, words[len(start):]) for start, name in PROGRAMS.items() if tuple(words[:len(start)]) == start),
                None)


COMMANDS = [
    pytest.param(*found, id=f'{page.name}: {" ".join(words)}')
    for page in PAGES for words in commands_of(page.read_text(encoding='utf-8')) if (found := program_of(words))]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the data and the policy file that the pages name."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'my_policy.yaml').write_text('- [[Invert, 0.1, 7], [Contrast, 0.2, 6]]\n', encoding='utf-8')
    monkeypatch.chdir(tmp_path)


def check_train(argv):
    if '--resume' in argv:  # the checkpoint does not exist
        train_parser().parse(argv)
    else:
        assert checked(['data' if word == '/data/imagenet' else word for word in argv]).model


def check_validate(argv):
    validate_parser().parse(argv)


def check_study(argv):
    args, flags = study_parser().parse_known_args(argv)
    assert read_recipe(args.config, args.data, flags)[0]['a2aug_branches'] > 1


def check_flags_in_help(main, argv, capsys):
    """Check that a command knows the flags, since its parser takes files that exist."""
    with pytest.raises(SystemExit) as exit_info:
        main(['--help'])
    usage = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert {word for word in argv if word.startswith('-')} <= set(re.findall(r'(?<!\w)--?\w[\w-]*', usage))


@pytest.mark.parametrize('program, argv', COMMANDS)
def test_a_command_of_the_pages_is_a_valid_command_line(program, argv, place, capsys):
    if program in ('export', 'report'):
        check_flags_in_help({'export': export.main, 'report': report.main}[program], argv, capsys)
    else:
        {'train': check_train, 'validate': check_validate, 'study': check_study}[program](argv)


def test_the_readme_has_commands_of_training_validation_and_export():
    words = list(commands_of((ROOT / 'README.md').read_text(encoding='utf-8')))
    assert {'train', 'validate', 'export'} <= {found[0] for one in words if (found := program_of(one))}


@pytest.mark.parametrize('command, message', [
    ('python train.py -c quickstart --a2aug-vews 1', '--a2aug-vews'), ('python train.py -c quickstat', 'quickstart'),
    ('./distributed_train.sh 8 --a2aug-branches 3 --a2aug-views 4 --data-dir /data/imagenet', 'more than the 3')])
def test_a_wrong_command_on_a_page_is_found(command, message, place, capsys):
    (words,) = commands_of(f'Text\n\n    {command}\n')
    with pytest.raises((ValueError, SystemExit)) as error:
        check_train(program_of(words)[1])
    assert message in str(error.value) + capsys.readouterr().err

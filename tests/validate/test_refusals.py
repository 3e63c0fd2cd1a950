"""What validation refuses before any work, in one sentence."""
import pytest
import timm
import torch

from a2aug_timm.cli.resolve import resolve_common
from a2aug_timm.validate import checks as validate_checks
from a2aug_timm.validate import inference
from a2aug_timm.validate.arguments import validate_parser
from tests.validate.reference import DIGITS


@pytest.mark.parametrize('argv, words', [
    (['--branch', '3'], "no branch '3'; this checkpoint has branches 0 to 2"), (['--branch', 'first'], 'no branch'),
    (['--model', 'resnet18'], '--model resnet18 contradicts'), (['--num-classes', '4'], '--num-classes 4 contradicts'),
    (['--use-ema'], 'no EMA'), (['--results-format', 'xml'], "--results-format: invalid choice: 'xml'"),
    (['--checkpoint', 'nowhere.pth'], "no checkpoint 'nowhere.pth'"), (['--crop-pct', '0'], 'above 0'),
    (['--num-gpu', '0'], '--num-gpu: must be at least 1'), (['--num-gpu', '2'], 'needs as many GPUs'),
    (['--input-key', 'x'], 'no effect'), (['--target-key', 'x'], 'it is for hfds/, hfids/, tfds/, wds/'),
    (['--class-map', 'x'], 'no effect'), (['--pretrained'], '--pretrained does not go with --checkpoint'),
    (['--model-dtype', 'float8'], "--model-dtype: invalid choice: 'float8'"),
    (['--amp', '--model-dtype', 'bfloat16'], '--amp needs a model in float32'),
    (['--torchscript', '--torchcompile'], 'not allowed with argument'),
    (['--torchcompile', '--aot-autograd'], 'not allowed with argument'),
    (['--torchcompile', 'indicator'], "no backend 'indicator'; this torch has"),
    (['--torchcompile', '--torchcompile-mode', 'fast'], '--torchcompile-mode must be one of default'),
    (['--torchscript', '--fuser', 'nvfuser'], "--fuser: invalid choice: 'nvfuser'"),
    (['--real-labels', 'x.json'], "no file 'x.json' (--real-labels)"),
    (['--valid-labels', 'x.txt'], "no file 'x.txt' (--valid-labels)"),
    (['--valid-labels', 'README.md', '--real-labels', 'README.md'], '--real-labels does not go with --valid-labels'),
    (['--metrics-avg', 'median'], 'invalid choice'),
    (['--naflex-loader', '--crop-pct', '1'], '--crop-pct does not go with --naflex-loader'),
    (['--naflex-loader', '--test-pool'], '--test-pool does not go with'),
    (['--tf-preprocessing', '--no-prefetcher'], '--no-prefetcher does not go with --tf-preprocessing'),
    (['--tf-preprocessing'], 'not sklearn/digits'),
    (['--results-file', '/nowhere/r.csv'], 'no folder for --results-file')], ids=lambda value: ' '.join(value)[:50])
def test_bad_input_is_one_sentence_and_exit_code_2(run, refused, argv, words, monkeypatch):
    monkeypatch.chdir(inference.__file__.rsplit('/', 3)[0])
    assert words in refused(*DIGITS, '--checkpoint', run / 'last.pth.tar', *argv)


@pytest.mark.parametrize('argv, words', [
    (['--num-samples', '5'], '--num-samples has no effect on sklearn/digits; it is for hfids/, wds/'),
    (['--dataset-download'], '--dataset-download has no effect'),
    (['--amp-dtype', 'float16'], '--amp-dtype has no effect without --amp'),
    (['--torchcompile-mode', 'default'], 'no effect without --torchcompile'),
    (['--torchcompile', 'eager', '--torchcompile-mode', 'default'], 'no effect on the backend eager'),
    (['--fuser', 'te'], '--fuser has no effect without --torchscript or --aot-autograd'),
    (['--fast-norm'], '--fast-norm has no effect without --amp'),
    (['--naflex-max-seq-len', '64'], 'no effect without --naflex-loader'),
    (['--results-format', 'json'], 'no effect without --results-file')], ids=lambda value: ' '.join(value)[:40])
def test_a_flag_without_effect_is_warned_of(run, argv, words, caplog):
    parser = validate_parser()
    args, explicit = parser.parse([*DIGITS, '--checkpoint', str(run / 'last.pth.tar'), *argv])
    validate_checks.check_validate(resolve_common(args, explicit), explicit, [(args.model, args.checkpoint)])
    assert words in caplog.text


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


@pytest.mark.parametrize('argv, words', [
    (['--torchcompile', 'aot_eager'], '--num-gpu 2 and --torchcompile do not'),
    (['--aot-autograd'], '--aot-autograd do not go'), (['--amp', '--amp-dtype', 'bfloat16'], '--model-dtype bfloat16'),
    (['--num-gpu', '3'], 'needs as many GPUs')])
def test_what_several_gpus_cannot_share_is_refused(refused, run, monkeypatch, argv, words):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert words in refused(*DIGITS, '--checkpoint', run / 'export', '--device', 'cuda', '--num-gpu', '2', *argv)

"""How validation computes: precision, compilers, fused and pooled models, against models run by hand."""
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import create_loader
from timm.data.naflex_loader import create_naflex_loader
from timm.layers import set_fast_norm

import a2aug_timm.validate.__main__ as validate
from a2aug_timm import convert_multi_branch_bn, extract_branch
from a2aug_timm.branches import MultiBranchBN
from a2aug_timm.data.datasets import create_dataset
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.export import load_branches, model_config
from a2aug_timm.validate import inference
from tests.records import make_record
from tests.validate.reference import CPU, DIGITS, INPUT, check, images_of, logits_of


def test_test_pool_classifies_each_place_of_a_larger_image_in_every_branch(
        run, branches, folder, data, results, caplog):
    images, target = images_of(folder, 64, crop_pct=1.)
    pooled = []
    for model in branches[0]:
        with torch.inference_mode():  # 32 pixels were one place, 64 are four
            places = model.fc(model.forward_features(images).permute(0, 2, 3, 1)).flatten(1, 2)
            assert places.shape == (80, 4, 10)
            pooled.append(0.5 * (places.mean(1) + places.amax(1)))
    pooled.append(sum(mu * one for mu, one in zip(branches[1], pooled, strict=True)))
    argv = [*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--test-pool']
    measured = results(*argv, '--img-size', '64')
    check(measured, torch.stack(pooled), target)
    assert {(result['crop_pct'], result['img_size']) for result in measured} == {(1., 64)}
    check(results(*argv), logits_of(*branches, images_of(folder)[0]), target)
    assert '--test-pool changes nothing' in caplog.text


@pytest.mark.parametrize('argv', [
    ['--torchscript', '--fuser', 'te'], ['--torchcompile', 'aot_eager'], ['--aot-autograd'],
    ['--channels-last', '--no-prefetcher'], ['--model-dtype', 'float32']], ids=lambda argv: argv[0])
def test_what_only_changes_how_is_computed_changes_no_branchs_result(
        run, branches, folder, data, results, argv, monkeypatch):
    placed = []
    monkeypatch.setattr(validate, 'place', lambda *args: placed.append(inference.place(*args)) or placed[-1])
    images, target = images_of(folder)
    check(results(*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '-b', '50', *argv),
          logits_of(*branches, images), target)
    kinds = {'--torchscript': torch.jit.ScriptModule, '--torchcompile': torch._dynamo.eval_frame.OptimizedModule,
             '--aot-autograd': inference.FusedByShape}
    assert len(placed) == 3 and all(isinstance(model, kinds.get(argv[0], type(branches[0][0]))) for model in placed)
    if argv[0] == '--channels-last':
        assert all(model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) for model in placed)


@pytest.mark.parametrize('argv', [['--model-dtype', 'bfloat16'], ['--model-dtype', 'bfloat16', '--no-prefetcher'],
                                  ['--amp', '--amp-dtype', 'bfloat16']], ids=' '.join)
def test_low_precision_is_that_of_the_model_run_by_hand(run, branches, folder, data, results, argv):
    models, mu = branches
    if argv[0] == '--amp':
        images, target = images_of(folder)
        with torch.autocast('cpu', torch.bfloat16):
            logits = logits_of(models, mu, images)
    else:
        images, target = images_of(
            folder, use_prefetcher='--no-prefetcher' not in argv, img_dtype=torch.bfloat16)
        low = [extract_branch(load_branches(read_checkpoint(run / 'last.pth.tar'), ''), i).bfloat16().eval()
               for i in range(3)]
        logits = logits_of(low, mu, images.bfloat16())
    command = [*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all']
    measured = results(*command, *argv)
    check(measured, logits, target)
    for result, whole in zip(measured, results(*command), strict=True):
        assert result['loss'] != whole['loss'] and result['loss'] == pytest.approx(whole['loss'], rel=0.1)


def hand_made_run(path, name):
    """A checkpoint of two branches of any architecture, whose norms differ."""
    model = timm.create_model(name, num_classes=10, in_chans=1)
    config = model_config(model, INPUT)
    convert_multi_branch_bn(model, 2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MultiBranchBN):
                module.branches[1].weight.mul_(1.3)
                module.branches[1].running_mean.add_(0.1)
        model.get_classifier().weight.mul_(20)
    record = make_record(2, config=config, mu=[0.7, 0.3], best_branch=1)
    torch.save({'state_dict': model.state_dict(), **record.to_entry()}, path)
    return path


def test_reparam_fuses_each_branch_with_its_own_norms(data, results, tmp_path, run, caplog):
    path = hand_made_run(tmp_path / 'ghost.pth.tar', 'repghostnet_050')
    argv = [*data, '--branch', 'all', '--checkpoint']
    measured, fused = results(*argv, path), results(*argv, path, '--reparam')
    assert measured[0]['loss'] != pytest.approx(measured[1]['loss'], rel=1e-2)
    for one, other in zip(measured, fused, strict=True):
        assert other['param_count'] < one['param_count']
        assert other['loss'] == pytest.approx(one['loss'], rel=1e-3)
    results(*argv, run / 'last.pth.tar', '--reparam')
    assert '--reparam changes nothing: ResNet' in caplog.text


def test_fast_norm_computes_layer_norm_in_the_low_precision_of_amp(image_folder, results, tmp_path, caplog):
    path = tmp_path / 'vit.pth'
    torch.save(timm.create_model('test_vit', num_classes=2).state_dict(), path)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '--model', 'test_vit', '--num-classes', '2',
            '--checkpoint', path, '--amp', '--amp-dtype', 'bfloat16']
    slow = results(*argv)
    try:
        fast = results(*argv, '--fast-norm')
        model = timm.create_model('test_vit', num_classes=2, checkpoint_path=path).eval()
        assert all(module._fast_norm for module in model.modules() if hasattr(module, '_fast_norm'))
    finally:
        set_fast_norm(False)
    dataset = SkippingDataset(create_dataset('', str(image_folder), 'validation'))
    (images, target), = create_loader(
        dataset, (3, 160, 160), 8, interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95,
        num_workers=0, device=CPU)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        logits = model(images).float()
    assert fast['loss'] == pytest.approx(F.cross_entropy(logits, target).item(), abs=1e-4) and fast != slow
    assert 'changes nothing' not in caplog.text


def test_naflex_models_are_evaluated_with_patches(image_folder, results, refused, run, tmp_path):
    model = timm.create_model('test_vit', num_classes=2, use_naflex=True).eval()
    path = tmp_path / 'naflex.pth'
    torch.save(model.state_dict(), path)
    argv = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '-b', '3', '--naflex-loader',
            '--naflex-max-seq-len', '16', '--model', 'test_vit', '--num-classes', '2', '--checkpoint', path]
    kwargs = ['--model-kwargs', 'use_naflex=True']
    dataset = SkippingDataset(create_dataset('', str(image_folder), 'validation'))
    (patches, target), = create_naflex_loader(
        dataset, patch_size=16, max_seq_len=16, batch_size=8, interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3,
        num_workers=0, device=CPU, pin_memory=False)
    with torch.inference_mode():
        reference = F.cross_entropy(model(patches), target).item()
    for more in ([], ['--no-prefetcher'], ['--torchcompile', 'eager']):
        assert results(*argv, *kwargs, *more)['loss'] == pytest.approx(reference, abs=1e-4)
    assert 'needs a NaFlex model, not ResNet' in refused(
        *DIGITS, '--naflex-loader', '--checkpoint', run / 'export')
    assert 'is for plain models' in refused(*DIGITS, '--naflex-loader', '--checkpoint', run / 'last.pth.tar')


def test_retry_takes_smaller_batches_until_one_fits_into_memory(run, data, results, monkeypatch, capsys):
    sizes, real = [], validate.branch_logits

    def branch_logits(model, images):
        sizes.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return real(model, images)

    monkeypatch.setattr(validate, 'branch_logits', branch_logits)
    argv = [*map(str, data), '--checkpoint', str(run / 'export'), '-b', '64']
    limit = 1000
    whole = results(*argv)
    limit, sizes = 30, []
    assert results(*argv, '--retry') == whole
    assert sizes == [64, 48, 32, 24, 24, 24, 8]
    with pytest.raises(torch.OutOfMemoryError):
        validate.main(argv)
    limit, sizes = 0, []
    with pytest.raises(SystemExit) as exit_info:
        validate.main([*argv, '--retry'])
    assert exit_info.value.code == 1 and sizes[-1] == 1
    assert json.loads(capsys.readouterr().out.split('--result\n')[-1])['error'] == 'CUDA out of memory'


def test_several_gpus_share_a_batch(monkeypatch):
    made = {}
    monkeypatch.setattr(torch.nn, 'DataParallel', lambda model, device_ids: made.update(ids=device_ids) or model)
    args, _ = validate.validate_parser().parse(['--device', 'cpu', '--num-gpu', '3'])
    inference.place(args, torch.nn.Linear(2, 2))
    assert made['ids'] == [0, 1, 2]
    seen = []
    monkeypatch.setattr(validate, 'measure', lambda args, candidate, batch_size: seen.append(batch_size))
    validate.measure_with_retry(args, None)
    assert seen == [3 * 256]

"""The merged model: the mean of the branches' norms, with running statistics estimated again."""
import copy

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from a2aug_timm import (
    MultiBranchNetwork,
    convert_multi_branch_bn,
    convert_multi_branch_norm,
    estimate_statistics,
    extract_branch,
    merge_branches,
)
from tests.joint_and_separate import make_branches_differ


def converted(name, convert, num_branches=3):
    model = convert(timm.create_model(name, num_classes=5), num_branches)
    make_branches_differ(model)
    return model.eval()


@pytest.mark.parametrize('name, convert', [
    ('test_resnet', convert_multi_branch_bn), ('test_efficientnet', convert_multi_branch_bn),
    ('test_vit', convert_multi_branch_norm)])
def test_every_value_of_a_norm_is_the_mean_over_the_branches(name, convert):
    model = converted(name, convert)
    before = copy.deepcopy(model.state_dict())
    merged = merge_branches(model).state_dict()
    branches = [extract_branch(model, i).state_dict() for i in range(3)]
    assert merged.keys() == branches[0].keys() == timm.create_model(name, num_classes=5).state_dict().keys()
    num_means = 0
    for key, value in merged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(branch[key] for branch in branches) / 3)
            num_means += not torch.equal(value, branches[0][key])
    assert num_means > 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_statistics_are_those_of_torchs_update_bn():
    ours = merge_branches(converted('test_resnet', convert_multi_branch_bn)).eval()
    theirs = copy.deepcopy(ours)
    batches = [torch.randn(8, 3, 32, 32) + i for i in range(4)]
    assert estimate_statistics(ours, [(images, None) for images in batches], 'cpu') == 32
    update_bn(batches, theirs)
    for (key, own), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, msg=key)
    assert not any(module.training for module in ours.modules())
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)


def test_dropout_and_stochastic_depth_have_no_influence_on_the_statistics():
    batches = [torch.randn(8, 3, 32, 32) + i for i in range(2)]
    # Without zero-initialised norms, dropping a residual path changes what follows.
    plain = timm.create_model('test_resnet', num_classes=5, zero_init_last=False)
    dropped = timm.create_model('test_resnet', num_classes=5, drop_rate=0.5, drop_path_rate=0.9).train()
    dropped.load_state_dict(plain.state_dict())
    by_torch = copy.deepcopy(dropped)
    for model in (plain, dropped):
        estimate_statistics(model, batches, 'cpu')
    update_bn(batches, by_torch)
    torch.testing.assert_close(dropped.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert dropped.training
    # The difference that the test is about exists.
    assert any(not torch.equal(value, plain.state_dict()[key]) for key, value in by_torch.state_dict().items())


def test_a_model_without_batch_norm_reads_no_images():
    def images():
        raise AssertionError('no image is needed')
        yield

    merged = merge_branches(converted('test_vit', convert_multi_branch_norm))
    assert estimate_statistics(merged, images(), 'cpu') == 0


def test_models_that_cannot_be_merged_are_refused():
    plain = timm.create_model('test_resnet', num_classes=5)
    with pytest.raises(ValueError, match='no branches'):
        merge_branches(plain)
    with pytest.raises(ValueError, match='separate networks cannot be merged'):
        merge_branches(MultiBranchNetwork([plain, copy.deepcopy(plain)]))
    with pytest.raises(ValueError, match='the model has branches'):
        estimate_statistics(converted('test_resnet', convert_multi_branch_bn), [], 'cpu')
    with pytest.raises(ValueError, match='no images'):
        estimate_statistics(plain, [], 'cpu')

"""All kinds of networks in timm: a joint step equals N separate ones, and a branch is exported as timm builds it."""
import copy
import tempfile

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from a2aug_timm import (
    A2AugTask,
    MultiBranchBN,
    MultiBranchNorm,
    convert_multi_branch_bn,
    convert_multi_branch_norm,
    export_branch,
    extract_branch,
    select_branch,
)
from a2aug_timm.branches import _is_norm
from tests.joint_and_separate import N, create, differences, joint_keys, make_branches_differ, separate_models

B = 2
# The smallest architecture of each of timm's files that has a batch norm: the image's side, and arguments that make it
# smaller where they can.
BATCH_NORM = {
    'halonet_h1': (256, {}),
    'test_byobnet': (32, {}),
    'convmixer_768_32': (32, {}),
    'cpubone_nano': (64, {}),
    'cs3darknet_focus_s': (64, {}),
    'cspnext_tiny': (64, {}),
    'densenet121': (64, {'block_config': (2, 2, 2, 2)}),
    'dla46x_c': (64, {}),
    'dpn48b': (64, {}),
    'efficientformer_l1': (224, {'depths': (1, 1, 1, 2)}),
    'efficientformerv2_s0': (64, {'img_size': 64, 'depths': (1, 1, 2, 2)}),
    'test_efficientnet': (32, {}),
    'efficientvim_m1': (64, {}),
    'efficientvit_b0': (64, {}),
    'efficientvit_m0': (128, {'img_size': 128}),
    'fasternet_t0': (64, {}),
    'fastvit_t8': (64, {}),
    'ghostnet_050': (64, {}),
    'hardcorenas_b': (64, {}),
    'hgnetv2_b0': (64, {}),
    'hrnet_w18_small': (64, {}),
    'iformer_t': (64, {}),
    'inception_next_atto': (64, {}),
    'inception_resnet_v2': (96, {}),
    'inception_v3': (75, {}),
    'inception_v4': (96, {}),
    'lcnetv2_small': (64, {}),
    'levit_128s': (128, {'img_size': 128}),
    'lowformer_b0': (64, {}),
    'test_coatnet': (64, {'img_size': 64}),
    'lcnet_035': (64, {}),
    'mobilevit_xxs': (64, {}),
    'nasnetalarge': (64, {}),
    'nextvit_small': (64, {}),
    'pnasnet5large': (64, {}),
    'regnetx_002': (64, {}),
    'repghostnet_050': (64, {}),
    'repvit_m1': (64, {'depth': (1, 1, 2, 1)}),
    'res2next50': (64, {'layers': (1, 1, 1, 1)}),
    'resnest14d': (64, {}),
    'test_resnet': (32, {}),
    'resnetv2_18': (64, {}),
    'rexnet_100': (64, {}),
    'selecsls42': (64, {}),
    'legacy_seresnet18': (64, {}),
    'shvit_s1': (64, {}),
    'skresnet18': (64, {}),
    'starnet_s050': (64, {}),
    'swiftformer_xs': (64, {}),
    'tiny_vit_5m_224': (64, {}),
    'tresnet_m': (64, {'layers': (1, 1, 1, 1)}),
    'vgg11_bn': (32, {'mlp_ratio': 0.02}),
    'visformer_tiny': (64, {'img_size': 64}),
    'vit_small_resnet50d_s16_224': (64, {'img_size': 64, 'depth': 2}),
    'volo_d1_224': (64, {'img_size': 64}),
    'ese_vovnet19b_slim_dw': (64, {}),
    'legacy_xception': (64, {}),
    'xception41p': (64, {}),
    'xcit_nano_12_p8_224': (64, {'img_size': 64}),
}
# The same for files whose networks have other norms and no batch norm, without CSATv2, which is refused.
OTHER_NORMS = {
    'beit_base_patch16_224': (64, {'img_size': 64, 'depth': 2}),
    'regnetz_b16_evos': (32, {}),
    'cait_xxs24_224': (64, {'img_size': 64, 'depth': 2}),
    'coat_tiny': (32, {'img_size': 32}),
    'convit_tiny': (32, {'img_size': 32}),
    'test_convnext': (32, {}),
    'crossvit_tiny_240': (240, {}),
    'davit_tiny': (64, {'depths': (1, 1, 1, 1)}),
    'deepseek_vit_412m': (56, {'depth': 2}),
    'deit_tiny_patch16_224': (64, {'img_size': 64, 'depth': 2}),
    'edgenext_xx_small': (32, {}),
    'test_efficientnet_gn': (32, {}),
    'vit_tiny_patch16_dinov3_qkvb': (64, {'img_size': 64}),
    'focalnet_tiny_srf': (32, {}),
    'gcvit_xxtiny': (64, {'img_size': 64}),
    'gemma4_vit_167m_enc': (48, {'depth': 2}),
    'gmlp_ti16_224': (32, {'img_size': 32}),
    'hiera_tiny_224': (64, {'img_size': 64}),
    'sam2_hiera_tiny': (32, {}),
    'test_mambaout': (32, {}),
    'coatnext_nano_rw_224': (32, {'img_size': 32}),
    'poolformerv2_s12': (64, {}),
    'mobilenetv5_base': (32, {}),
    'mvitv2_tiny': (64, {'img_size': 64}),
    'naflexvit_base_patch16_parfac_gap': (64, {'depth': 2}),
    'nest_tiny': (64, {'img_size': 64}),
    'pit_ti_224': (64, {'img_size': 64}),
    'pvt_v2_b0': (32, {}),
    'qwen3_vit_88m': (64, {'depth': 2}),
    'rdnet_tiny': (32, {}),
    'regnety_040_sgn': (32, {}),
    'resnet50_gn': (32, {'layers': (1, 1, 1, 1)}),
    'resnetv2_50x1_bit': (32, {}),
    'samvit_base_patch16_224': (32, {'img_size': 32, 'depth': 2}),
    'sequencer2d_s': (32, {'img_size': 32}),
    'swin_tiny_patch4_window7_224': (64, {'img_size': 64, 'depths': (2, 2, 2, 2)}),
    'swinv2_tiny_window16_256': (64, {'img_size': 64, 'depths': (2, 2, 2, 2)}),
    'swinv2_cr_tiny_224': (64, {'img_size': 64, 'depths': (2, 2, 2, 2)}),
    'test_vit': (32, {'img_size': 32}),
    'test_vit_relpos': (32, {'img_size': 32}),
    'tnt_s_legacy_patch16_224': (64, {'img_size': 64, 'depth': 2}),
    'twins_svt_small': (64, {'img_size': 64, 'depths': (1, 1, 1, 1)}),
    'vit_tiny_r_s16_p8_224': (64, {'img_size': 64}),
    'vitamin_small_224': (32, {'img_size': 32}),
    'ese_vovnet39b_evos': (32, {}),
    'resmlp_12_224': (32, {'img_size': 32}),
}
# Networks of a kind of which timm has no small one.
SLOW = {'halonet_h1', 'inception_resnet_v2', 'inception_v4', 'nasnetalarge', 'pnasnet5large',
        'deepseek_vit_412m', 'gemma4_vit_167m_enc', 'mobilenetv5_base'}
# With `pretrained=True`, timm downloads the backbone of these from the hub, even if a file has all the weights.
BACKBONE_FROM_HUB = {'vit_small_resnet50d_s16_224'}


def archs(table):
    return [pytest.param(arch, *settings, marks=[pytest.mark.slow] if arch in SLOW else [], id=arch)
            for arch, settings in table.items()]


@pytest.mark.parametrize('arch, size, kwargs', archs(BATCH_NORM))
def test_a_step_with_branches_of_batch_norm_equals_n_separate_steps_and_a_branch_exports(arch, size, kwargs):
    check(arch, size, kwargs, convert_multi_branch_bn)


@pytest.mark.parametrize('arch, size, kwargs', archs(OTHER_NORMS))
def test_a_step_with_branches_of_other_norms_equals_n_separate_steps_and_a_branch_exports(arch, size, kwargs):
    check(arch, size, kwargs, convert_multi_branch_norm)


def check(arch, size, kwargs, convert):
    plain = create(arch, **kwargs).double()
    joint = convert(copy.deepcopy(plain), N)
    make_branches_differ(joint)
    images, target = torch.randn(N * B, 3, size, size, dtype=torch.float64), torch.tensor([0, 1])
    task = A2AugTask(joint, nn.CrossEntropyLoss(), N, device=torch.device('cpu'), verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)

    def loss(outputs):
        return task.trainable_module.loss(outputs[0].flatten(1), target)['loss']

    found = differences(separate_models(plain, joint), joint, images, loss)
    assert found['outputs'] < 1e-9 and found['statistics'] < 1e-9 and found['gradients'] < 1e-5, found
    check_layers(plain, joint)
    check_export(arch, kwargs, plain, joint.float().eval(), images[B:].float())

    before = norm_parameters(joint.double())
    optimizer.step()
    after = norm_parameters(joint)
    assert not [branch for branch in before if torch.equal(before[branch], after[branch])]


def norm_parameters(model):
    """Parameters of each branch of each layer, as one vector."""
    return {f'{name}.{branch}': nn.utils.parameters_to_vector(norm.parameters())
            for name, layer in model.named_modules() if isinstance(layer, MultiBranchNorm)
            for branch, norm in enumerate(layer.branches)}


def check_layers(plain, joint):
    """Layer-wise decay must find a branch's parameters in the layer where the plain model has them."""
    if not hasattr(plain, 'group_matcher'):
        return
    layers, own = (timm.models.group_parameters(model, model.group_matcher(), reverse=True) for model in (plain, joint))
    key = joint_keys(joint)
    assert own == {key(name, branch): layer for name, layer in layers.items() for branch in range(N)}


def check_export(arch, kwargs, plain, joint, images):
    extracted = extract_branch(joint, 1)
    assert [(name, type(module)) for name, module in extracted.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()]
    assert list(extracted.state_dict()) == list(plain.state_dict())
    with tempfile.TemporaryDirectory() as folder:  # pytest's tmp_path would keep gigabytes
        export_branch(joint, 1, folder)
        if arch in BACKBONE_FROM_HUB:
            model = timm.create_model(
                arch, num_classes=plain.num_classes, checkpoint_path=f'{folder}/checkpoint.pth.tar', **kwargs)
        else:
            model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    with torch.no_grad(), select_branch(joint, 1):
        expected = joint(images)
    assert expected.isfinite().all()
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected)


@pytest.mark.parametrize('arch, size, convert, layer', [
    ('test_resnet', 64, convert_multi_branch_bn, MultiBranchBN),
    ('test_efficientnet', 64, convert_multi_branch_bn, MultiBranchBN),
    ('hrnet_w18_small', 64, convert_multi_branch_bn, MultiBranchBN),
    ('test_convnext', 64, convert_multi_branch_norm, MultiBranchNorm),
    ('test_vit', 160, convert_multi_branch_norm, MultiBranchNorm),
])
def test_a_backbone_of_feature_maps_trains_jointly(arch, size, convert, layer):
    plain = create(arch, features_only=True).double()
    joint = convert(copy.deepcopy(plain), N)
    assert any(type(module) is layer for module in joint.modules())
    make_branches_differ(joint)
    images = torch.randn(N * B, 3, size, size, dtype=torch.float64)
    found = differences(separate_models(plain, joint), joint, images)
    assert found['outputs'] < 1e-9 and found['statistics'] < 1e-9 and found['gradients'] < 1e-5, found


def test_an_export_of_fbnet_keeps_the_epsilon_of_its_norms():
    # The only architecture that `pretrained=True` changes.
    check('fbnetc_100', 64, {}, convert_multi_branch_bn)


def test_a_network_that_mixes_the_images_of_a_batch_is_refused():
    with pytest.raises(ValueError, match='CSATv2 mixes the images of a batch'):
        convert_multi_branch_norm(timm.create_model('csatv2'), N)


@pytest.mark.slow
def test_the_architectures_are_the_smallest_of_each_of_timms_files():
    smallest = {True: {}, False: {}}
    for arch in timm.list_models():
        if not timm.model_entrypoint(arch).__module__.startswith('timm.'):
            continue  # ours, in test_networks.py
        with torch.device('meta'):
            model = timm.create_model(arch, num_classes=5)
        norms = [module for module in model.modules() if _is_norm(module)]
        if norms:
            of_kind = smallest[any(isinstance(norm, _BatchNorm) for norm in norms)]
            size = sum(parameter.numel() for parameter in model.parameters())
            module = timm.models._registry._model_to_module[arch]
            of_kind[module] = min(of_kind.get(module, (size, arch)), (size, arch))
    assert {arch for _, arch in smallest[True].values()} == set(BATCH_NORM)
    # ResMLP shares its file with a smaller network of other norms.
    assert {arch for _, arch in smallest[False].values()} == {*OTHER_NORMS, 'csatv2'} - {'resmlp_12_224'}

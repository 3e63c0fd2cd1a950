"""timm's interface of the paper's networks: names, features, classifier, groups of parameters."""
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from tests.models.small_networks import REGISTERED, SMALL, small


def test_the_names_are_registered_and_timms_stay_timms():
    assert all(timm.is_model(arch) for arch in REGISTERED)
    assert timm.model_entrypoint('wide_resnet50_2').__module__ == 'timm.models.resnet'
    assert not set(REGISTERED) & set(timm.list_models(pretrained=True))


@pytest.mark.parametrize('arch', REGISTERED)
def test_the_description_is_that_of_the_network(arch):
    with torch.device('meta'):
        model = timm.create_model(arch)
    cfg, modules = model.pretrained_cfg, dict(model.named_modules())
    assert modules[cfg['first_conv']].in_channels == 3 and modules[cfg['classifier']].out_features == cfg['num_classes']
    assert (cfg['input_size'], cfg['pool_size'], cfg['fixed_input_size']) == ((3, 32, 32), (8, 8), False)
    data = timm.data.resolve_model_data_config(model)
    assert data['crop_pct'] == 1 and data['mean'] == (0.4914, 0.4822, 0.4465) and data['std'] == (0.247, 0.2435, 0.2616)


@small
def test_the_classifier_can_be_taken_away_and_replaced(arch):
    model = timm.create_model(arch, **SMALL[arch]).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(images), model.get_classifier()(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(images), features)
    model.reset_classifier(4, 'catavgmax')
    assert model(images).shape == (2, 4) and model.head_hidden_size == 2 * model.num_features
    assert timm.create_model(arch, num_classes=0, global_pool='', **SMALL[arch])(images).shape == features.shape


@small
def test_dropout_comes_before_the_classifier(arch):
    model = timm.create_model(arch, drop_rate=1., **SMALL[arch])
    assert not model(torch.randn(2, 3, 32, 32)).any()


@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
@small
def test_feature_maps_are_those_of_the_stages(arch, feature_cls):
    model = timm.create_model(arch, **SMALL[arch]).eval()
    backbone = timm.create_model(arch, features_only=True, feature_cls=feature_cls, **SMALL[arch]).eval()
    backbone.load_state_dict({
        key: value for key, value in zip(
            backbone.state_dict(), model.state_dict().values(), strict=False)})
    images = torch.randn(2, 3, 32, 32)
    final, stages = model.forward_intermediates(images)
    torch.testing.assert_close(final, model.forward_features(images))
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (channels, 32 // reduction, 32 // reduction) for channels, reduction in
        zip(backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True)]
    torch.testing.assert_close(backbone(images), stages)
    first, = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first, stages[0])
    normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[0], final)


@small
def test_layer_decay_gives_each_block_its_depth(arch):
    model = timm.create_model(arch, **SMALL[arch])
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scales = {id(parameter): group['lr_scale'] for group in groups for parameter in group['params']}
    assert len(scales) == len(list(model.parameters()))
    by_name = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    blocks = [f'stages.{stage}.{block}.' for stage in range(3) for block in range(len(model.stages[0]))]
    depths = [{scale for name, scale in by_name.items() if name.startswith(prefix)}
              for prefix in ('stem.', *blocks, 'head.')]
    assert depths == [{0.5 ** (len(blocks) + 1 - depth)} for depth in range(len(blocks) + 2)]
    assert timm.models.group_parameters(model, model.group_matcher(coarse=True)).keys() == {*range(5)}

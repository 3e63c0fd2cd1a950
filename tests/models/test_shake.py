"""Shake-Shake and ShakeDrop: what they draw for each image and each pass."""
import pytest
import timm
import torch

from a2aug_timm.models.shake import ShakeDrop, ShakeShake

# What Shake-Shake and ShakeDrop draw: ones show the factors of the forward pass, gradients those of the other.

IMAGES = 4096


def factors(module, *inputs):
    """Factors of each input in the forward pass (with the others 0) and in the backward pass, one an image."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = module(*inputs)
    grads = torch.autograd.grad(output.sum(), inputs)
    for tensor in (output, *grads):
        assert torch.equal(tensor, tensor[:, :1, :1, :1].expand_as(tensor)), 'a factor is one of the whole image'
    return [tensor.detach()[:, 0, 0, 0] for tensor in (output, *grads)]


def test_shake_shake_draws_other_shares_for_each_image_and_each_pass():
    ones, zeros = torch.ones(IMAGES, 2, 2, 2), torch.zeros(IMAGES, 2, 2, 2)
    torch.manual_seed(0)
    alpha, beta, other_beta = factors(ShakeShake(), ones, zeros)
    torch.manual_seed(0)
    other_alpha, *_ = factors(ShakeShake(), zeros, ones)
    torch.testing.assert_close(alpha + other_alpha, torch.ones(IMAGES))
    torch.testing.assert_close(beta + other_beta, torch.ones(IMAGES))
    for share in (alpha, beta):
        assert share.unique().numel() > 0.99 * IMAGES and 0 <= share.min() < 0.01 and 0.99 < share.max() <= 1
        assert abs(share.mean() - 1 / 2) < 0.02 and abs(share.var() - 1 / 12) < 0.005
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.05


def test_shake_shake_in_eval_is_its_mean_and_has_its_own_gradient():
    a, b = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64).expand(2, IMAGES, 3, 2, 2)
    shake = ShakeShake()
    mean = shake(a, b).mean(0)
    assert (mean - shake.eval()(a, b)[0]).abs().max() < 0.03 * (a - b).abs().max()
    for factor in factors(shake, torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)):
        assert factor.tolist() == [0.5, 0.5]


@pytest.mark.parametrize('drop_prob', [0., 0.3, 1.])
def test_shake_drop_keeps_an_image_or_draws_other_factors_for_each_pass(drop_prob):
    alpha, beta = factors(ShakeDrop(drop_prob), torch.ones(IMAGES, 2, 2, 2))
    kept = alpha == 1
    assert torch.equal(kept, beta == 1) and abs(kept.double().mean() - (1 - drop_prob)) < 0.02
    assert abs(alpha.mean() - (1 - drop_prob)) < 0.03
    alpha, beta = alpha[~kept], beta[~kept]
    if drop_prob:
        assert -1 <= alpha.min() < -0.99 and 0.99 < alpha.max() < 1 and 0 <= beta.min() < 0.01 and 0.99 < beta.max() < 1
        assert abs(alpha.mean()) < 0.05 and abs(alpha.var() - 1 / 3) < 0.02
        assert abs(beta.mean() - 1 / 2) < 0.03 and abs(beta.var() - 1 / 12) < 0.01
        assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.08
    for factor in factors(ShakeDrop(drop_prob).eval(), torch.ones(2, 1, 1, 1)):
        torch.testing.assert_close(factor, torch.full((2,), 1 - drop_prob))


def test_the_chance_of_shake_drop_grows_evenly_up_to_the_last_block():
    with torch.device('meta'):
        model = timm.create_model('pyramidnet272_a200_shakedrop')
    chances = [module.drop_prob for module in model.modules() if isinstance(module, ShakeDrop)]
    assert chances == pytest.approx([0.5 * block / 90 for block in range(1, 91)])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_shaking_keeps_dtype_and_memory_format(dtype):
    a, b = torch.randn(2, 4, 3, 5, 5, dtype=dtype)
    a, b = (x.to(memory_format=torch.channels_last).requires_grad_() for x in (a, b))
    for output in (ShakeShake()(a, b), ShakeDrop(0.5)(a)):
        assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
        grad, = torch.autograd.grad(output.square().sum(), a)
        assert grad.dtype == dtype and grad.is_contiguous(memory_format=torch.channels_last)

"""Loss: values equal a NumPy rewrite in float64, gradients equal those of the rewrite with a frozen teacher."""
import itertools
import math

import numpy as np
import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from a2aug_timm import A2AugLoss, MultiPolicyRandAugment, convert_multi_branch_bn
from a2aug_timm.loss import distillation_kl, ensemble_logits, teacher_scale

N, B, K = 3, 5, 7


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(logits, target, mu_logits, *, kl_weight, ensemble_weight, logit_norm, logit_scale, reduction,
              teacher=None):
    """Eq. 5, 7 and 8 in NumPy float64 for as many views as there are weights; ``teacher`` replaces Q_ens in the KL."""
    num_views = len(mu_logits)
    logits = np.asarray(logits, dtype=np.float64).reshape(num_views, B, K)
    soft = np.eye(K)[target] if np.ndim(target) == 1 else np.asarray(target, dtype=np.float64)
    weights = np.exp(mu_logits) / np.exp(mu_logits).sum()
    ensemble = sum(weights[i] * logits[i] for i in range(num_views))
    ce = np.array([-(soft * log_softmax(logits[i])).sum(-1).mean() for i in range(num_views)])
    ensemble_ce = -(soft * log_softmax(ensemble)).sum(-1).mean()
    teacher = ensemble if teacher is None else teacher
    kl = []
    for i in range(num_views):
        t, s = teacher, logits[i]
        if logit_norm:
            norm = np.linalg.norm(teacher, axis=-1, keepdims=True)
            scale = {'capped': np.minimum(norm, 2 * math.sqrt(K)), 'teacher-norm': norm, 'literal': 1.}.get(
                logit_scale, logit_scale)
            t, s = scale * t / norm, scale * s / np.linalg.norm(s, axis=-1, keepdims=True)
        p = np.exp(log_softmax(t))
        kl.append((p * (log_softmax(t) - log_softmax(s))).sum(-1).mean())
    kl = np.array(kl)
    reduce = np.sum if reduction == 'sum' else np.mean
    return dict(loss=reduce(ce) + ensemble_weight * ensemble_ce + kl_weight * reduce(kl), ce=ce,
                ensemble_ce=ensemble_ce, kl=kl, ensemble=ensemble)


def settings(**changes):
    return {**dict(kl_weight=1., ensemble_weight=1., logit_norm=True, logit_scale='capped', reduction='sum'), **changes}


def build(mu_logits=(0.3, -0.2, 0.5), criterion=None, **kwargs):
    loss = A2AugLoss(N, criterion or nn.CrossEntropyLoss(), **settings(**kwargs)).double()
    with torch.no_grad():
        loss.mu_logits.copy_(torch.tensor(mu_logits))
    return loss


def batch(scale=3.):
    return scale * torch.randn(N * B, K, dtype=torch.float64), torch.randint(K, (B,))


def numeric_gradient(function, values, step=1e-6):
    values = np.array(values, dtype=np.float64)
    gradient = np.zeros_like(values)
    for index in np.ndindex(*values.shape):
        for sign in (1, -1):
            values[index] += sign * step
            gradient[index] += sign * function(values) / (2 * step)
            values[index] -= sign * step
    return gradient


@pytest.mark.parametrize('reduction, scale, norm, weights', [
    *itertools.product(['sum', 'mean'], ['capped', 'literal', 'teacher-norm', 6.], [True], [(1., 1.), (0.3, 2.)]),
    ('sum', 'capped', False, (1., 1.)), ('sum', 'capped', True, (0., 0.))])
@pytest.mark.parametrize('magnitude', [0.1, 3., 30.])
def test_every_term_equals_the_numpy_rewrite(reduction, scale, norm, weights, magnitude):
    logits, target = batch(magnitude)
    options = dict(kl_weight=weights[0], ensemble_weight=weights[1], logit_norm=norm, logit_scale=scale,
                   reduction=reduction)
    loss = build(**options)
    result = loss(logits, target)
    expected = reference(logits.numpy(), target.numpy(), loss.mu_logits.detach().numpy(), **options)
    for name in ('loss', 'ce', 'ensemble_ce', 'kl'):
        np.testing.assert_allclose(result[name].detach().numpy(), expected[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize('scale, norm', [('capped', True), ('literal', True), ('teacher-norm', True), (8., True),
                                         ('capped', False)])
def test_logits_get_the_gradient_of_a_fixed_teacher_and_only_mu_gets_that_of_the_ensemble(scale, norm):
    logits, target = batch()
    options = settings(kl_weight=0.7, ensemble_weight=1.3, logit_norm=norm, logit_scale=scale)
    loss = build(**options)
    logits.requires_grad_()
    loss(logits, target)['loss'].backward()
    mu_logits = loss.mu_logits.detach().numpy()
    fixed = reference(logits.detach().numpy(), target.numpy(), mu_logits, **options)['ensemble']

    # Students and CE see the logits; the ensemble term is constant in them, the teacher is frozen.
    def of_logits(values):
        terms = reference(values, target.numpy(), mu_logits, **{**options, 'ensemble_weight': 0.}, teacher=fixed)
        return terms['loss']

    def of_mu(values):
        return options['ensemble_weight'] * reference(
            logits.detach().numpy(), target.numpy(), values, **options)['ensemble_ce']

    np.testing.assert_allclose(
        logits.grad.numpy(), numeric_gradient(of_logits, logits.detach().numpy()), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss.mu_logits.grad.numpy(), numeric_gradient(of_mu, mu_logits), rtol=1e-5, atol=1e-7)
    assert loss.mu_logits.grad.abs().min() > 1e-5


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('drawn', [(0, 1), (0, 2), (1, 2)])
def test_terms_and_gradients_of_drawn_views_equal_the_formula_over_these_views(drawn, reduction):
    logits, target = 3 * torch.randn(len(drawn) * B, K, dtype=torch.float64), torch.randint(K, (B,))
    options = settings(kl_weight=0.7, ensemble_weight=1.3, reduction=reduction)
    loss = build(**options)
    logits.requires_grad_()
    result = loss(logits, target, drawn)
    result['loss'].backward()
    places, mu_logits = list(drawn), loss.mu_logits.detach().numpy()
    expected = reference(logits.detach().numpy(), target.numpy(), mu_logits[places], **options)
    for name in ('loss', 'ensemble_ce'):
        np.testing.assert_allclose(result[name].item(), expected[name], rtol=1e-9)
    for name in ('ce', 'kl'):
        full = np.full(N, np.nan)
        full[places] = expected[name]
        np.testing.assert_allclose(result[name].detach().numpy(), full, rtol=1e-9)

    def of_logits(values):
        terms = reference(values, target.numpy(), mu_logits[places], **{**options, 'ensemble_weight': 0.},
                          teacher=expected['ensemble'])
        return terms['loss']

    def of_mu(values):
        return 1.3 * reference(
            logits.detach().numpy(), target.numpy(), values[places], **options)['ensemble_ce']

    np.testing.assert_allclose(
        logits.grad.numpy(), numeric_gradient(of_logits, logits.detach().numpy()), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss.mu_logits.grad.numpy(), numeric_gradient(of_mu, mu_logits), rtol=1e-5, atol=1e-7)
    undrawn = set(range(N)) - set(drawn)
    assert all(loss.mu_logits.grad[i] == 0 for i in undrawn) and loss.mu_logits.grad[places].abs().min() > 1e-6


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('drawn', range(N))
def test_the_loss_of_one_view_is_its_cross_entropy_alone(drawn, reduction):
    logits, target = torch.randn(B, K, requires_grad=True), torch.randint(K, (B,))
    loss = A2AugLoss(N, nn.CrossEntropyLoss(), reduction=reduction)
    result = loss(logits, target, (drawn,))
    expected = nn.functional.cross_entropy(logits, target)
    assert torch.equal(result['loss'], expected) and torch.equal(result['ce'][drawn], expected)
    assert result['ce'].isnan().sum() == N - 1 and result['kl'].isnan().all() and result['ensemble_ce'].isnan()
    result['loss'].backward()
    assert loss.mu_logits.grad is None and logits.grad.isfinite().all()


def test_without_a_draw_the_loss_equals_the_published_formula_bit_for_bit():
    logits, target = torch.randn(N * B, K, requires_grad=True), torch.randint(K, (B,))
    results = []
    for branches in (None, (0, 1, 2)):
        loss = A2AugLoss(N, nn.CrossEntropyLoss(), kl_weight=0.7)
        results.append(loss(logits, target, branches))
        results[-1]['grads'] = torch.autograd.grad(results[-1]['loss'], [logits, loss.mu_logits])
    mu_logits = torch.zeros(N, requires_grad=True)
    views = logits.unflatten(0, (N, B))
    teacher = ensemble_logits(views.detach(), mu_logits.softmax(0))
    ce = torch.stack([nn.functional.cross_entropy(view, target) for view in views])
    kl = distillation_kl(views, teacher, teacher_scale(teacher.detach(), 'capped'))
    ensemble_ce = nn.functional.cross_entropy(teacher, target)
    total = ce.sum() + 1. * ensemble_ce + 0.7 * kl.sum()
    for result in results:
        for one, other in ((result['loss'], total), (result['ce'], ce), (result['kl'], kl),
                           (result['ensemble_ce'], ensemble_ce)):
            assert torch.equal(one, other)
        for one, other in zip(result['grads'], torch.autograd.grad(total, [logits, mu_logits], retain_graph=True),
                              strict=True):
            assert torch.equal(one, other)


def test_soft_and_smoothed_targets_work():
    logits, target = batch()
    soft = torch.rand(B, K, dtype=torch.float64).softmax(-1)
    result = build(criterion=SoftTargetCrossEntropy())(logits, soft)
    expected = reference(logits.numpy(), soft.numpy(), np.array([0.3, -0.2, 0.5]), **settings())
    np.testing.assert_allclose(result['loss'].item(), expected['loss'], rtol=1e-6)
    smoothed = 0.1 / K + 0.9 * np.eye(K)[target]
    result = build(criterion=LabelSmoothingCrossEntropy(0.1))(logits, target)
    expected = reference(logits.numpy(), smoothed, np.array([0.3, -0.2, 0.5]), **settings())
    np.testing.assert_allclose(result['loss'].item(), expected['loss'], rtol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32_even_under_autocast(dtype):
    logits, target = batch()
    logits = logits.to(dtype)
    loss = A2AugLoss(N, nn.CrossEntropyLoss())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = loss(logits, target)
    expected = loss(logits.float(), target)
    for name, value in result.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize('scale', ['capped', 'literal', 'teacher-norm', 8.])
def test_zero_and_tiny_half_precision_logits_give_finite_gradients(scale):
    for size in (0., 1e-7, 1e-3):
        logits = (size * torch.randn(N * B, K)).half().requires_grad_()
        A2AugLoss(N, nn.CrossEntropyLoss(), logit_scale=scale)(logits, torch.randint(K, (B,)))['loss'].backward()
        assert logits.grad.isfinite().all()


def test_average_ensemble_has_no_parameter_and_equal_weights():
    loss = A2AugLoss(N, nn.CrossEntropyLoss(), ensemble='average')
    assert not list(loss.parameters())
    torch.testing.assert_close(loss.mu, torch.full((N,), 1 / N))
    adaptive = A2AugLoss(N, nn.CrossEntropyLoss())
    torch.testing.assert_close(adaptive.mu, torch.full((N,), 1 / N))
    logits, target = batch()
    torch.testing.assert_close(loss(logits, target), adaptive(logits, target))


@pytest.mark.parametrize('kwargs', [
    dict(ensemble='mean'), dict(reduction='none'), dict(logit_scale='big'), dict(logit_scale=0.),
    dict(logit_scale=math.inf), dict(num_branches=1)])
def test_arguments_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError):
        A2AugLoss(**{'num_branches': N, 'criterion': nn.CrossEntropyLoss(), **kwargs})


def test_rows_that_are_not_n_times_the_targets_are_refused():
    with pytest.raises(ValueError, match='15 rows'):
        A2AugLoss(N, nn.CrossEntropyLoss())(torch.randn(14, K), torch.zeros(B, dtype=torch.int64))


def small_net():
    layers, width = [], 1
    for out in (16, 32, 64):
        layers += [nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@pytest.mark.parametrize('num_seeds', [2, pytest.param(10, marks=pytest.mark.slow)])
def test_no_seed_diverges_in_200_steps_at_a_learning_rate_of_one_tenth(num_seeds):
    from a2aug_timm.data.datasets import DigitsDataset
    digits = DigitsDataset('train')
    policies = MultiPolicyRandAugment(
        ['rand-m9-n2-p1.0-mmax30-tpublished', 'rand-m5-n1-p1.0-mmax30-tpublished',
         'rand-m15-n3-p1.0-mmax30-tpublished'], img_size=8, mean=(0.3,))
    views = torch.stack([
        torch.stack([torch.from_numpy(np.array(view)) for view in policies(digits[i][0])]) for i in range(1280)], dim=1)
    views = (views.float().div(255) - 0.3).div(0.35).unsqueeze(2)  # [N, 1280, 1, 8, 8]
    targets = torch.tensor(digits.targets[:1280])
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        model, loss = convert_multi_branch_bn(small_net(), N), A2AugLoss(N, nn.CrossEntropyLoss())
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(200):
            rows = torch.randint(1280, (64,))
            result = loss(model(views[:, rows].flatten(0, 1)), targets[rows])
            optimizer.zero_grad()
            result['loss'].backward()
            optimizer.step()
        assert result['loss'].isfinite()
        # Collapse is a cross-entropy at or above chance, log 10 = 2.3, in any branch.
        assert result['ce'].max() < 1.5, f'seed {seed}: {result["ce"]}'

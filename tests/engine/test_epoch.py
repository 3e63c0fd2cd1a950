"""Engine: accumulation, evaluation and the guard against a loss that is not finite."""
import pytest
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from torch import nn

from a2aug_timm.engine.epoch import Hooks, OptimizerStep, evaluate, train_one_epoch
from a2aug_timm.engine.meters import Averages

CPU = torch.device('cpu')


def linear_task():
    torch.manual_seed(0)
    return ClassificationTask(nn.Linear(4, 3), nn.CrossEntropyLoss(), verbose=False)


def data(num_batches, size=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
            for _ in range(num_batches)]


def train(loader, loss_scale=None, **kwargs):
    task = linear_task()
    step = OptimizerStep(task, torch.optim.SGD(task.parameters(), lr=0.1), loss_scale=loss_scale)
    trained = train_one_epoch(step, loader, epoch=0, device=CPU, **kwargs)
    assert trained.num_images == sum(len(target) for _, target in loader) and trained.seconds > 0
    return task, trained.terms


def test_accumulating_batches_is_one_step_on_all_of_them():
    batches = data(5)
    accumulated, _ = train(batches, grad_accum_steps=2)
    joined = [tuple(torch.cat(part) for part in zip(*batches[i:i + 2], strict=True)) for i in (0, 2, 4)]
    whole, _ = train(joined)
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict())


def test_terms_are_means_over_images_and_log_steps_alone_report_them():
    batches = [*data(3), *data(1, size=2)]
    seen = []
    task, terms = train(batches, hooks=Hooks(seen.append, log_interval=2))
    assert [update.number for update in seen] == [0, 1, 2, 3]
    assert [update.terms is not None for update in seen] == [True, False, True, True]
    reference = linear_task()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    total = 0.
    for images, target in batches:
        loss = reference(images, target)['loss']
        total += loss.item() * len(target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms['loss'] == pytest.approx(total / 14)
    torch.testing.assert_close(task.state_dict(), reference.state_dict())


def test_a_batch_weighs_what_its_size_says_and_the_terms_do_not():
    batches = [*data(1), *data(1, size=2)]
    plain, terms = train(batches[1:])
    scaled, scaled_terms = train(batches[1:], loss_scale=lambda size: size / 4)
    start = linear_task()
    for before, one, other in zip(start.parameters(), plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close((other - before), (one - before) / 2)
    assert terms == scaled_terms


def test_recovery_steps_come_after_the_update_and_never_with_a_bad_loss():
    kept = []
    batches = data(6)
    train(batches, grad_accum_steps=2, hooks=Hooks(on_recovery=kept.append, recovery_interval=2, log_interval=50))
    assert kept == [1]
    batches[0][0][0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='step 0'):
        train(batches, hooks=Hooks(on_recovery=kept.append, recovery_interval=2, log_interval=50))
    assert kept == [1]


def test_vector_terms_are_reported_one_by_one():
    averages = Averages()
    averages.update({'ce': torch.tensor([1., 2.])}, 1)
    averages.update({'ce': torch.tensor([4., 8.])}, 2)
    assert averages.read() == pytest.approx({'ce_0': 3., 'ce_1': 6.})


def test_values_that_a_batch_does_not_have_are_left_out_of_their_means():
    averages, nan = Averages(), float('nan')
    for ce, ensemble, count in (([1., nan, nan], nan, 2), ([4., 8., nan], 3., 1), ([nan, 2., nan], 6., 4)):
        averages.update({'ce': torch.tensor(ce), 'ensemble_ce': torch.tensor(ensemble), 'loss': torch.ones(())}, count)
    assert averages.read() == pytest.approx(
        {'ce_0': (2 * 1 + 4) / 3, 'ce_1': (8 + 4 * 2) / 5, 'ensemble_ce': (3 + 4 * 6) / 5, 'loss': 1.})


def test_each_batch_is_announced_before_it_is_computed():
    order, task = [], linear_task()
    compute = task.forward
    task.forward = lambda images, target: order.append('computed') or compute(images, target)
    step = OptimizerStep(task, torch.optim.SGD(task.parameters(), lr=0.1))
    train_one_epoch(step, data(3), epoch=0, device=CPU, grad_accum_steps=2, hooks=Hooks(on_batch=order.append))
    assert order == [0, 'computed', 1, 'computed', 2, 'computed']


class Padded(list):
    """Batches of a rank whose sampler repeats images after its own."""

    def __init__(self, batches, num_own):
        super().__init__(batches)
        self.sampler = self
        self.num_valid_samples = num_own


@pytest.mark.parametrize('num_own', [1, 4, 5, 8])
def test_images_that_a_sampler_repeats_are_not_counted(num_own):
    torch.manual_seed(0)
    weight, images, targets = torch.randn(4, 7), torch.randn(8, 4), torch.randint(7, (8,))
    loader = Padded([(images[:4], targets[:4]), (images[4:], targets[4:])], num_own)
    result, = evaluate(lambda x: (x @ weight)[None], torch.ones(1), loader, device=CPU)
    own = images[:num_own] @ weight
    assert result['loss'] == pytest.approx(F.cross_entropy(own, targets[:num_own]).item(), rel=1e-5)
    assert result['top1'] == pytest.approx(100 * (own.argmax(1) == targets[:num_own]).float().mean().item(), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_and_names_its_step():
    batches = data(6)
    batches[3][0][0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='epoch 0, step 3'):
        train(batches, hooks=Hooks(log_interval=5))


def test_evaluation_is_each_branch_alone_and_the_weighted_ensemble():
    torch.manual_seed(0)
    weights = torch.randn(2, 4, 7)
    mu = torch.tensor([0.8, 0.2])
    images, targets = torch.randn(10, 4), torch.randint(7, (10,))
    loader = [(images[:6], targets[:6]), (images[6:], targets[6:])]
    results = evaluate(lambda x: torch.einsum('bd,ndk->nbk', x, weights), mu, loader, device=CPU)

    logits = [images @ weight for weight in weights]
    logits.append(0.8 * logits[0] + 0.2 * logits[1])
    assert len(results) == 3
    for one, result in zip(logits, results, strict=True):
        assert result['loss'] == pytest.approx(F.cross_entropy(one, targets).item(), rel=1e-5)
        for k in (1, 5):
            hits = (one.topk(k).indices == targets[:, None]).any(1).float().mean()
            assert result[f'top{k}'] == pytest.approx(100 * hits.item(), rel=1e-5)
    assert len(evaluate(lambda x: (x @ weights[0])[None], torch.ones(1), loader, device=CPU)) == 1

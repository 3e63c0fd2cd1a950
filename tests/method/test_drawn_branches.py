"""Steps that train V of N branches: comparison with plain steps, undrawn branches, late branches, two ranks."""
import copy
from itertools import combinations

import pytest
import timm
import torch
import torch.multiprocessing as mp
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, DistillationTeacher, LogitDistillationTask
from timm.utils import unwrap_model
from torch import distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from a2aug_timm import A2AugTask, convert_multi_branch_bn, extract_branch, select_branch
from a2aug_timm.branches import create_branches, draw_branches, networks_of, synchronize_branches
from a2aug_timm.engine.epoch import Hooks, OptimizerStep, train_one_epoch
from a2aug_timm.task import A2AugDistillationTask

N, B, K = 3, 4, 5
CPU = torch.device('cpu')


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, K)).double()


def resnet():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=K, in_chans=1).double()


def make_branches_differ(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if '.branches.' in f'.{name}' and tensor.is_floating_point():
                tensor += 0.3 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)


def build(create=plain_net, own='bn', differ=True, **kwargs):
    model = create_branches(create, N, own)
    if differ:
        make_branches_differ(model)
    return A2AugTask(model, nn.CrossEntropyLoss(), N, dtype=torch.float64, verbose=False, **kwargs).double().train()


def batch(num_views, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_views * B, 1, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(K, (B,), generator=generator)


def assert_equal(own, other):
    assert own.keys() == other.keys()
    for key, value in own.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize('opt', ['momentum', 'adamw'])
@pytest.mark.parametrize('create, size', [(plain_net, 8), (resnet, 32)])
def test_a_step_of_one_view_equals_a_step_of_the_plain_model_of_its_branch(create, size, opt):
    task = build(create, num_views=1)
    plain = ClassificationTask(extract_branch(task.get_eval_model(), 1), nn.CrossEntropyLoss(), verbose=False)
    optimizers = [create_optimizer_v2(one.get_trainable_module(), opt, lr=0.1, weight_decay=0.01)
                  for one in (task, plain)]
    task.draw_branches((1,))
    for seed in range(3):
        images, target = batch(1, seed, size)
        terms, expected = task(images, target), plain(images, target)
        assert torch.equal(terms['loss'], expected['loss']) and torch.equal(terms['output'], expected['output'])
        for optimizer, one in zip(optimizers, (terms, expected), strict=True):
            optimizer.zero_grad()
            one['loss'].backward()
            optimizer.step()
    assert_equal(extract_branch(task.get_eval_model(), 1).state_dict(), plain.get_eval_model().state_dict())
    assert task.mu_logits.grad is None and torch.equal(task.mu(), torch.full((N,), 1 / N, dtype=torch.float64))


@pytest.mark.parametrize('drawn', [(0, 2), (1, 2), (2,)])
@pytest.mark.parametrize('own', ['bn', 'norms', 'network'])
def test_branches_that_are_not_drawn_do_not_change(own, drawn):
    task = build(own=own, num_views=len(drawn))
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'adamw', lr=0.1, weight_decay=0.1)
    task(*batch(N))['loss'].backward()  # creates the optimizer state
    optimizer.step()
    model = task.get_eval_model()
    undrawn = [i for i in range(N) if i not in drawn]
    parameters = {name: p for name, p in model.named_parameters() if any(f'branches.{i}.' in name for i in undrawn)}
    state = copy.deepcopy({name: optimizer.state[p] for name, p in parameters.items()})
    before = copy.deepcopy(model.state_dict())

    task.draw_branches(drawn)
    for seed in range(3):
        optimizer.zero_grad()
        task(*batch(len(drawn), seed))['loss'].backward()
        assert all(p.grad is None for p in parameters.values())
        optimizer.step()
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {f'branches.{i}.' for i in range(N) for key in moved if f'branches.{i}.' in key} == {
        f'branches.{i}.' for i in drawn}
    assert all(any('running_mean' in key and f'branches.{i}.' in key for key in moved) for i in drawn)
    for name, p in parameters.items():
        assert_equal(optimizer.state[p], state[name])
    task.draw_branches(None)
    assert task(*batch(N))['output'].shape == (N * B, K)


@pytest.mark.parametrize('own', ['bn', 'network'])
@pytest.mark.parametrize('drawn', list(combinations(range(N), 2)))
def test_a_drawn_view_goes_through_its_branch(own, drawn):
    task = build(resnet, own=own)
    images, target = batch(2, size=32)
    expected = torch.cat([extract_branch(task.get_eval_model(), branch)(view)
                          for branch, view in zip(drawn, images.chunk(2), strict=True)])
    task.draw_branches(drawn)
    terms = task(images, target)
    torch.testing.assert_close(terms['output'], expected)
    measured = torch.tensor([i in drawn for i in range(N)])
    assert torch.equal(terms['ce'].isfinite(), measured) and torch.equal(terms['kl'].isfinite(), measured)


def test_drawing_all_branches_equals_no_draw():
    steps = []
    for drawn in (None, range(N)):
        task = build()
        task.draw_branches(drawn)
        terms = task(*batch(N))
        terms['loss'].backward()
        steps.append({**terms, **task.state_dict(), **{
            f'{name}.grad': parameter.grad for name, parameter in task.named_parameters()}})
    assert_equal(*steps)


@pytest.mark.parametrize('wrong', [(), (1, 0), (0, 0), (0, 3), (-1, 1)])
def test_a_draw_of_wrong_branches_is_refused(wrong):
    task = build()
    for draw in (task.draw_branches, lambda branches: draw_branches(task.get_eval_model(), branches)):
        with pytest.raises(ValueError, match='ascending'):
            draw(wrong)
    with pytest.raises(ValueError, match='no branches'):
        draw_branches(plain_net(), (0,))
    with pytest.raises(ValueError, match='1 to 3'):
        build(num_views=4)
    task.draw_branches((0, 1))
    with pytest.raises(ValueError, match='2 views'):
        task(torch.zeros(3, 1, 8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match='choose one'):  # a draw selects no branch for eval
        task.get_eval_model().eval()(torch.zeros(2, 1, 8, 8, dtype=torch.float64))


def test_a_network_with_shared_batch_norm_trains_on_the_drawn_views():
    task = build(own='nothing', differ=False, num_views=2)
    task.draw_branches((1, 2))
    images, target = batch(2)
    reference = copy.deepcopy(task.get_eval_model())
    terms = task(images, target)
    assert torch.equal(terms['output'], reference(images))
    assert terms['ce'].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize('own', ['bn', 'network'])
@pytest.mark.parametrize('drawn', [(1,), (0, 2)])
@pytest.mark.parametrize('sizes, grad_checkpointing, is_sequential', [
    (None, False, True), (None, True, True), (None, True, False), ([32, 24, 28], True, True),
    ([32, 24, 28], False, False)])
def test_sequential_drawn_branches_give_the_joint_step(own, drawn, sizes, grad_checkpointing, is_sequential):
    model = create_branches(resnet, N, own)
    make_branches_differ(model)
    joint, sequential = (A2AugTask(
        copy.deepcopy(model), nn.CrossEntropyLoss(), N, branch_sizes=sizes, sequential=one, verbose=False).double()
        for one in (False, is_sequential))
    for network in networks_of(sequential.get_eval_model()):
        network.set_grad_checkpointing(grad_checkpointing)
    images, target = batch(len(drawn), size=32)
    for task in (joint, sequential):
        task.draw_branches(drawn)
        for _ in range(2):
            terms = task(images, target)
            terms['loss'].backward()
    for name, parameter in joint.named_parameters():
        torch.testing.assert_close(sequential.get_parameter(name).grad, parameter.grad)
    if sizes is not None:
        with select_branch(model, drawn[0]):
            view = nn.functional.interpolate(images[:B], (sizes[drawn[0]],) * 2, mode='bilinear', antialias=True)
            torch.testing.assert_close(terms['output'][:B], model(view))
    if own == 'network' and grad_checkpointing:
        return  # timm's own networks update their statistics twice
    torch.testing.assert_close(sequential.state_dict(), joint.state_dict())


@pytest.mark.parametrize('num_branches, num_views', [
    (3, 1), (4, 2), pytest.param(6, 3, marks=pytest.mark.slow)])
def test_a_compiled_task_has_one_graph_per_draw_and_recompiles_none(num_branches, num_views):
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    count = CompileCounterWithBackend('eager')
    eager = A2AugTask(convert_multi_branch_bn(plain_net(), num_branches), nn.CrossEntropyLoss(), num_branches,
                      num_views=num_views, starts_late=True, verbose=False).double()
    task = copy.deepcopy(eager)
    task.compile(backend=count, fullgraph=True)
    draws = [(0,), *combinations(range(num_branches), num_views)]
    try:
        for _ in range(2):
            for drawn in draws:
                images, target = batch(len(drawn))
                for one in (eager, task):
                    one.draw_branches(drawn)
                expected, terms = eager(images, target), task(images, target)
                torch.testing.assert_close(terms, expected, equal_nan=True)
            assert count.frame_count == len(set(draws))
    finally:
        torch._dynamo.config.recompile_limit = limit
    torch.testing.assert_close(task.get_checkpoint_state(), eager.get_checkpoint_state())


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('drawn', [(0, 2), (1,)])
def test_an_external_teacher_teaches_only_the_drawn_branches(drawn, reduction):
    plain = build(loss_kwargs={'reduction': reduction})
    model = plain.get_eval_model()
    model.pretrained_cfg = {'mean': (0.3,), 'std': (0.2,)}
    teacher = DistillationTeacher(nn.Sequential(nn.Flatten(), nn.Linear(64, K)).double())
    teacher.mean_kd, teacher.std_kd = torch.full((2, 1, 1, 1, 1), 0.5, dtype=torch.float64)
    task = A2AugDistillationTask(model, teacher, nn.CrossEntropyLoss(), N, temperature=2., verbose=False,
                                 loss_kwargs={'reduction': reduction}, dtype=torch.float64).double()
    images, target = batch(len(drawn))
    for one in (task, plain):
        one.draw_branches(drawn)
    terms, without = task(images, target), plain(images, target)
    kd = []
    for branch, view in zip(drawn, images.chunk(len(drawn)), strict=True):
        alone = LogitDistillationTask(model, teacher, nn.CrossEntropyLoss(), temperature=2., verbose=False)
        with select_branch(model, branch):
            kd.append(alone(view, target)['kd_loss'])
    torch.testing.assert_close(terms['kd'][list(drawn)], torch.stack(kd))
    assert torch.equal(terms['kd'].isnan(), torch.tensor([i not in drawn for i in range(N)]))
    torch.testing.assert_close(terms['loss'], without['loss'] + getattr(torch.stack(kd), reduction)())


def train(task, optimizer, num_views, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        task(*batch(num_views, seed))['loss'].backward()
        optimizer.step()
        task.update_ema()


@pytest.mark.parametrize('own', ['bn', 'norms', 'network'])
@pytest.mark.parametrize('opt', ['momentum', 'adamw', 'lookahead_momentum'])
def test_late_branches_equal_a_plain_run_that_is_converted_by_hand(own, opt):
    late = build(own=own, differ=False, num_views=1, starts_late=True)
    if own == 'network':  # as after the conversion of one network, whose copies are equal
        synchronize_branches(late.get_eval_model())
    plain = ClassificationTask(extract_branch(late.get_eval_model(), 0), nn.CrossEntropyLoss(), verbose=False)
    settings = dict(opt=opt, lr=0.05, weight_decay=0.01)
    optimizer = create_optimizer_v2(late.get_trainable_module(), **settings)
    plain_optimizer = create_optimizer_v2(plain.get_trainable_module(), **settings)
    late.setup_ema(decay=0.9)
    plain.setup_ema(decay=0.9)
    late.draw_branches((0,))
    train(late, optimizer, 1, range(4))
    train(plain, plain_optimizer, 1, range(4))
    late.synchronize_branches(optimizer)
    for branch in range(N):
        for ema in (False, True):
            assert_equal(extract_branch(late.get_eval_model(ema=ema), branch).state_dict(),
                         unwrap_model(plain.get_eval_model(ema=ema)).state_dict())

    # Convert the plain run: every branch gets the weights, statistics and optimizer state of the plain model.
    by_hand = build(own=own, differ=False)
    names = dict(by_hand.get_eval_model().named_parameters())
    by_hand_optimizer = create_optimizer_v2(by_hand.get_trainable_module(), **settings)
    state = getattr(plain_optimizer, '_base_optimizer', plain_optimizer).state
    copied = getattr(by_hand_optimizer, '_base_optimizer', by_hand_optimizer).state
    weights = plain.get_eval_model().state_dict()
    with torch.no_grad():
        for name, tensor in by_hand.get_eval_model().state_dict(keep_vars=True).items():
            key = name
            for branch in range(N):
                key = key.replace(f'branches.{branch}.', '')
            tensor.copy_(weights[key])
            if name in names:
                copied[tensor] = copy.deepcopy(state[plain.get_eval_model().get_parameter(key)])
    for one, two in zip(plain_optimizer.param_groups, by_hand_optimizer.param_groups, strict=False):
        two.update({name: value for name, value in one.items() if name != 'params'})
    late.draw_branches(None)
    train(late, optimizer, N, range(4, 7))
    train(by_hand, by_hand_optimizer, N, range(4, 7))
    assert_equal(late.get_eval_model().state_dict(), by_hand.get_eval_model().state_dict())
    assert torch.equal(late.mu(), by_hand.mu()) and late.mu().std() > 0


def test_a_model_without_branches_has_nothing_to_synchronize_and_the_source_must_exist():
    model = plain_net()
    before = copy.deepcopy(model.state_dict())
    synchronize_branches(model)
    assert_equal(model.state_dict(), before)
    with pytest.raises(ValueError, match='no branch 3'):
        synchronize_branches(convert_multi_branch_bn(model, N), source=3)


def test_a_task_keeps_the_device_of_its_model_unless_it_is_given_one():
    with torch.device('meta'):
        model = convert_multi_branch_bn(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), N)
    task = A2AugTask(model, nn.CrossEntropyLoss(), N, verbose=False)
    assert {p.device.type for p in task.parameters()} == {'meta'} and task.device.type == 'meta'
    task = A2AugTask(convert_multi_branch_bn(plain_net(), N), nn.CrossEntropyLoss(), N, device=torch.device('meta'))
    assert {p.device.type for p in task.parameters()} == {'meta'}


def test_the_engine_calls_on_batch_before_each_batch():
    draws = [(0, 1), (2,), (0, 2), (1,)]
    task = build(num_views=2, starts_late=True)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    numbers = []

    def on_batch(number):
        numbers.append(number)
        task.draw_branches(draws[number])

    loader = [batch(len(drawn), seed) for seed, drawn in enumerate(draws)]
    trained = train_one_epoch(OptimizerStep(task, optimizer), loader, epoch=0, device=CPU, grad_accum_steps=3,
                              hooks=Hooks(on_batch=on_batch))
    assert numbers == [0, 1, 2, 3]
    assert trained.terms.keys() == {'loss', 'ensemble_ce', *(f'{name}_{i}' for name in ('ce', 'kl') for i in range(N))}


def train_rank(rank, store, results):
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    torch.set_num_threads(1)
    task = build(num_views=2, starts_late=True)
    task.prepare_distributed()
    optimizer = create_optimizer_v2(task.get_trainable_module(), 'momentum', lr=0.1, weight_decay=0.01)
    states = []
    for step, draws in enumerate(DRAWS_OF_UPDATES):
        optimizer.zero_grad()
        for number, drawn in enumerate(draws):
            task.draw_branches(drawn)
            images, target = batch(len(drawn), seed=10 * step + 2 * number + rank)
            if number < len(draws) - 1:
                with task.no_sync():
                    task(images, target)['loss'].backward()
            else:
                task(images, target)['loss'].backward()
        optimizer.step()
        states.append({name: p.detach().tolist() for name, p in task._module().named_parameters()})
    results[rank] = states
    dist.destroy_process_group()


# Updates of one batch, and of two batches with different draws.
DRAWS_OF_UPDATES = [[(0,)], [(0, 1)], [(1, 2)], [(0,), (1, 2)], [(2,)]]


def test_two_ranks_agree_and_average_the_gradients_of_the_drawn_branches(tmp_path):
    results = mp.get_context('spawn').Manager().dict()
    mp.spawn(train_rank, args=(tmp_path / 'store', results), nprocs=2)
    assert results[0] == results[1]

    # One process that averages the gradients of two replicas by hand.
    replicas = [build(num_views=2) for _ in range(2)]
    optimizer = create_optimizer_v2(replicas[0].get_trainable_module(), 'momentum', lr=0.1, weight_decay=0.01)
    for step, draws in enumerate(DRAWS_OF_UPDATES):
        for rank, task in enumerate(replicas):
            task.zero_grad()
            for number, drawn in enumerate(draws):
                task.draw_branches(drawn)
                task(*batch(len(drawn), seed=10 * step + 2 * number + rank))['loss'].backward()
        for one, other in zip(*(task.parameters() for task in replicas), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                one.grad = (one.grad + other.grad) / 2
        optimizer.step()
        replicas[1]._module().load_state_dict(
            {**replicas[1]._module().state_dict(), **dict(replicas[0]._module().named_parameters())})
        for name, parameter in replicas[0]._module().named_parameters():
            torch.testing.assert_close(torch.tensor(results[0][step][name], dtype=torch.float64), parameter.detach())

"""Task: μ in optimizers, EMA, clipping and checkpoints, compilation, sequential branches, two ranks."""
import copy
import re
import weakref

import pytest
import timm
import torch
import torch.multiprocessing as mp
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from timm.task import DistillationTeacher, LogitDistillationTask
from timm.utils import NativeScaler
from torch import distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from a2aug_timm import A2AugLoss, A2AugTask, MultiBranchNetwork, convert_multi_branch_bn, select_branch
from a2aug_timm.branches import create_branches, networks_of
from a2aug_timm.engine.epoch import OptimizerStep
from a2aug_timm.logits import branch_logits
from a2aug_timm.task import A2AugDistillationTask

N, B = 2, 4


def build(seed=0, **loss_kwargs):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return A2AugTask(convert_multi_branch_bn(model, N), nn.CrossEntropyLoss(), N, loss_kwargs=loss_kwargs,
                     verbose=False)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(N * B, 1, 6, 6, generator=generator)
    images[B:] *= 3
    return images, torch.randint(3, (B,), generator=generator)


def test_a_task_returns_the_losses_of_its_logits_and_the_logits():
    task = build(kl_weight=0.5)
    images, target = batch()
    result = task(images, target)
    expected = A2AugLoss(N, nn.CrossEntropyLoss(), kl_weight=0.5)(result['output'], target)
    assert result['output'].shape == (N * B, 3)
    for name, value in expected.items():
        assert torch.equal(result[name], value)


def test_mu_has_no_weight_decay_and_belongs_to_the_head_in_gradient_clipping():
    task = build()
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='sgd', lr=0.1, weight_decay=0.5)
    mu = task.trainable_module.loss.mu_logits
    groups = [group for group in optimizer.param_groups if any(p is mu for p in group['params'])]
    assert len(groups) == 1 and groups[0]['weight_decay'] == 0
    head = task.get_eval_model()[-1]
    body, everything = task.get_clip_parameters(exclude_head=True), task.get_clip_parameters()
    rest = [p for p in everything if not any(p is q for q in body)]
    assert len(rest) == 3 and all(any(p is q for q in rest) for p in (mu, *head.parameters()))


def test_ema_tracks_mu_and_a_checkpoint_holds_both():
    task = build()
    task.setup_ema(decay=0.75)
    with torch.no_grad():
        task.trainable_module.loss.mu_logits.copy_(torch.tensor([1., -1.]))
    task.update_ema()
    torch.testing.assert_close(task.mu(ema=True), torch.tensor([0.25, -0.25]).softmax(0))
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    assert state['state_dict'].keys() == task.get_eval_model().state_dict().keys()
    assert not any('mu' in key for key in state['state_dict'])

    other = build(seed=1)
    other.setup_ema()
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    other.load_checkpoint_state(state['state_dict_ema'], state['task_state_ema'], ema=True)
    for ema in (False, True):
        torch.testing.assert_close(other.mu(ema), task.mu(ema))
        torch.testing.assert_close(
            other.get_eval_model(ema=ema).state_dict(), task.get_eval_model(ema=ema).state_dict())


def _train_rank(rank, store, results):
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    task = build(seed=rank)  # DDP must overwrite the second rank's weights
    task.prepare_distributed()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5)
    for step in range(5):
        optimizer.zero_grad()
        task(*batch(seed=10 * step + rank))['loss'].backward()
        optimizer.step()
    results[rank] = (task.mu().tolist(), [p.detach().sum().item() for p in task.parameters()])
    dist.destroy_process_group()


def test_two_ranks_train_to_the_same_mu_by_the_mean_of_their_gradients(tmp_path):
    results = mp.get_context('spawn').Manager().dict()
    mp.spawn(_train_rank, args=(tmp_path / 'store', results), nprocs=2)
    assert results[0] == results[1]

    # One process that averages the two ranks' gradients of μ by hand.
    replicas = [build(), build()]
    for step in range(5):
        for rank, task in enumerate(replicas):
            task.zero_grad()
            task(*batch(seed=10 * step + rank))['loss'].backward()
        with torch.no_grad():
            for one, other in zip(*(task.parameters() for task in replicas), strict=True):
                mean = (one.grad + other.grad) / 2
                one -= 0.5 * mean
                other -= 0.5 * mean
    torch.testing.assert_close(torch.tensor(results[0][0]), replicas[0].mu())
    assert abs(results[0][0][0] - 0.5) > 1e-3


def test_a_compiled_task_has_one_graph_for_training_and_one_per_branch_for_eval():
    torch._dynamo.reset()
    eager = build()
    task = build()
    count = CompileCounterWithBackend('eager')
    task.compile(backend=count, fullgraph=True)
    images, target = batch()
    for _ in range(2):
        expected, terms = (one(images, target) for one in (eager, task))
        for one in (expected, terms):
            one['loss'].backward()
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value)
    for one, other in zip(eager.parameters(), task.trainable_module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert count.frame_count == 1
    assert task.get_checkpoint_state()['state_dict'].keys() == eager.get_checkpoint_state()['state_dict'].keys()

    eager, compiled = eager.get_eval_model().eval(), task.get_eval_model().eval()
    with torch.inference_mode():
        for some in (images, images, images[:5]):
            torch.testing.assert_close(branch_logits(compiled, some), branch_logits(eager, some))
    assert count.frame_count == 1 + N


def test_compiled_branches_may_reuse_the_memory_of_their_outputs_and_be_more_than_eight():
    """CUDA graphs reuse the memory of their outputs; dynamo recompiles a function at most eight times."""
    memory = {}

    def overwriting(graph, _):
        def call(*args):
            (logits,) = graph(*args)
            return (memory.setdefault(logits.shape, torch.empty_like(logits)).copy_(logits),)
        return call

    torch._dynamo.reset()
    model = convert_multi_branch_bn(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), 10)
    for i, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.1 + i / 1000)
    task = A2AugTask(model, nn.CrossEntropyLoss(), 10, verbose=False)
    count = CompileCounterWithBackend(overwriting)
    task.compile(backend=count)
    with torch.inference_mode():
        images = torch.randn(4, 1, 8, 8)
        torch.testing.assert_close(
            branch_logits(task.get_eval_model().eval(), images), branch_logits(model.eval(), images))
    assert count.frame_count == 10


def test_views_of_different_sizes_are_compiled_to_one_graph():
    torch._dynamo.reset()
    count = CompileCounterWithBackend('eager')
    model = convert_multi_branch_bn(timm.create_model('test_resnet', num_classes=3, in_chans=1), N)
    eager, task = (A2AugTask(copy.deepcopy(model), nn.CrossEntropyLoss(), N, branch_sizes=[32, 24], verbose=False)
                   for _ in range(2))
    task.compile(backend=count, fullgraph=True)
    images, target = torch.randn(N * B, 1, 32, 32), torch.randint(3, (B,))
    for _ in range(2):
        torch.testing.assert_close(task(images, target)['loss'], eager(images, target)['loss'])
    torch.testing.assert_close(task.get_checkpoint_state(), eager.get_checkpoint_state())
    assert count.frame_count == 1


@pytest.mark.parametrize('own', ['bn', 'norms', 'network'])
@pytest.mark.parametrize('sizes, grad_checkpointing, is_sequential', [
    (None, False, True), (None, True, True), ([32, 24], True, True), ([32, 24], True, False)])
def test_sequential_branches_give_the_gradients_and_statistics_of_the_joint_step(
        own, sizes, grad_checkpointing, is_sequential):
    torch.manual_seed(0)
    model = create_branches(lambda: timm.create_model('test_resnet', num_classes=3, in_chans=1), N, own).double()
    joint, sequential = (A2AugTask(
        copy.deepcopy(model), nn.CrossEntropyLoss(), N, branch_sizes=sizes, sequential=one, verbose=False).double()
        for one in (False, is_sequential))
    for network in networks_of(sequential.get_eval_model()):
        network.set_grad_checkpointing(grad_checkpointing)
    images, target = torch.randn(N * B, 1, 32, 32, dtype=torch.float64), torch.randint(3, (B,))
    for _ in range(2):
        terms = [task(images, target) for task in (joint, sequential)]
        for one in terms:
            one['loss'].backward()
        torch.testing.assert_close(terms[1], terms[0])
        with pytest.raises(RuntimeError, match='choose one'):  # no branch stays selected
            sequential.get_eval_model().eval()(images)
        sequential.train()
    for name, parameter in joint.named_parameters():
        torch.testing.assert_close(sequential.get_parameter(name).grad, parameter.grad)
    if own == 'network' and grad_checkpointing:
        return  # timm's own networks update their statistics twice
    torch.testing.assert_close(sequential.state_dict(), joint.state_dict())


def test_sequential_branches_repeat_the_dropout_of_their_first_pass():
    model = convert_multi_branch_bn(timm.create_model('test_resnet', num_classes=3, in_chans=1, drop_rate=0.5), N)
    images, target = torch.randn(N * B, 1, 32, 32), torch.randint(3, (B,))
    grads = []
    for sequential in (False, True):  # with sizes, branches run one by one in both cases
        task = A2AugTask(copy.deepcopy(model), nn.CrossEntropyLoss(), N, branch_sizes=[32] * N, sequential=sequential,
                         verbose=False)
        torch.manual_seed(1)
        task(images, target)['loss'].backward()
        grads.append({name: parameter.grad for name, parameter in task.named_parameters()})
    torch.testing.assert_close(grads[1], grads[0])


def test_sequential_branches_keep_the_activations_of_one_branch_at_a_time():
    held, alive = [], []

    class Counting(nn.Module):
        def forward(self, x):
            out = x * 1.5
            alive.append(sum(reference() is not None for reference in held))
            held.append(weakref.ref(out))
            return out

    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Counting(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3))
    task = A2AugTask(convert_multi_branch_bn(model, N), nn.CrossEntropyLoss(), N, sequential=True, verbose=False)
    task(*batch())['loss'].backward()
    # No activation of another branch is alive in the forward passes or in those repeated for the backward passes; the
    # last branch needs no repetition.
    assert alive == [0] * (2 * N - 1)


def test_separate_networks_keep_their_heads_layers_and_parameters_without_decay():
    networks = [timm.create_model('test_vit', num_classes=3, in_chans=1, img_size=32) for _ in range(N)]
    task = A2AugTask(MultiBranchNetwork(networks), nn.CrossEntropyLoss(), N, verbose=False)
    rest = {id(p) for p in task.get_clip_parameters()} - {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    heads = [p for network in networks for p in network.head.parameters()]
    assert rest == {id(p) for p in (*heads, task.trainable_module.loss.mu_logits)}
    for branch in range(N):
        assert f'model.branches.{branch}.pos_embed' in task.trainable_module.no_weight_decay()
    layer_of = task.trainable_module.group_matcher()
    names = [f'model.branches.{branch}.blocks.1.attn.qkv.weight' for branch in range(N)]
    assert layer_of(names[0]) == layer_of(names[1]) > layer_of('model.branches.1.pos_embed')


@pytest.mark.parametrize('weights', [{}, {'task_loss_weight': 0.3}, {'distill_loss_weight': 2.}])
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_an_external_teacher_adds_timms_distillation_to_each_branch(weights, reduction):
    task = build(reduction=reduction)
    model = task.get_eval_model()
    model.pretrained_cfg = {'mean': (0.3,), 'std': (0.2,)}
    teacher = DistillationTeacher(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    teacher.mean_kd, teacher.std_kd = torch.full((2, 1, 1, 1, 1), 0.5)
    joint = A2AugDistillationTask(
        model, teacher, nn.CrossEntropyLoss(), N, temperature=3., loss_kwargs={'reduction': reduction}, **weights)
    images, target = batch()
    terms = joint(images, target)

    kd = []
    for branch, view in enumerate(images.chunk(N)):
        alone = LogitDistillationTask(
            model, teacher, nn.CrossEntropyLoss(), temperature=3., verbose=False, **weights)
        with select_branch(model, branch):
            kd.append(alone(view, target)['kd_loss'])
    kd = torch.stack(kd)
    torch.testing.assert_close(terms['kd'], kd)
    expected = alone.task_loss_weight * task(images, target)['loss'] + alone.distill_loss_weight * getattr(
        kd, reduction)()
    torch.testing.assert_close(terms['loss'], expected)
    terms['loss'].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in joint.trainable_module.parameters())
    assert not joint.train().teacher.training


def test_layer_decay_gives_a_branch_the_layer_of_the_norm_that_it_replaces():
    plain = timm.create_model('test_resnet', num_classes=3)
    model = convert_multi_branch_bn(copy.deepcopy(plain), N)
    task = A2AugTask(model, nn.CrossEntropyLoss(), N, verbose=False)
    layers = group_parameters(plain, plain.group_matcher(), reverse=True)
    own = group_parameters(task.trainable_module, task.trainable_module.group_matcher(), reverse=True)
    assert own['loss.mu_logits'] == layers['fc.weight'] == max(layers.values())
    for name, layer in own.items():
        if name != 'loss.mu_logits':
            assert layer == layers[re.sub(r'branches\.\d+\.', '', name.removeprefix('model.'))]
    optimizer = create_optimizer_v2(task.trainable_module, 'sgd', lr=1., layer_decay=0.5, weight_decay=0.1)
    first = {id(p) for p in model.bn1.parameters()}
    scales = {group['lr_scale'] for group in optimizer.param_groups if first & {id(p) for p in group['params']}}
    assert scales == {min(group['lr_scale'] for group in optimizer.param_groups)}


NEEDS_A_GPU = ('bnb', 'fused')


@pytest.mark.filterwarnings('ignore:Using backward.. with create_graph', 'ignore:It is highly recommended')
@pytest.mark.parametrize('name', [name for name in list_optimizers() if not name.startswith(NEEDS_A_GPU)])
def test_every_optimizer_of_timm_updates_the_network_all_branches_and_mu(name):
    task = build()
    task.get_eval_model()[0].bias = None  # the batch norm after it makes its gradient zero
    optimizer = create_optimizer_v2(task.get_trainable_module(), name, lr=0.01, weight_decay=0.1)
    step = OptimizerStep(task, optimizer)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    for seed in range(8):
        step.optimizer.zero_grad()
        step.accumulate(*batch(seed), accum_steps=1, need_update=True)
    for old, new in zip(before, task.parameters(), strict=True):
        assert new.isfinite().all() and not torch.equal(old, new)


@pytest.mark.parametrize('clip_mode', ['norm', 'value', 'agc'])
def test_the_scaler_of_float16_changes_no_update(clip_mode):
    tasks = []
    for scaler in (None, NativeScaler(device='cpu')):
        task = build()
        step = OptimizerStep(
            task, torch.optim.SGD(task.parameters(), lr=0.1), loss_scaler=scaler, clip_grad=0.05, clip_mode=clip_mode)
        for seed in range(4):
            step.accumulate(*batch(seed), accum_steps=2, need_update=seed % 2 == 1)
            if seed % 2:
                step.finish(seed)
        tasks.append(task)
    for one, other in zip(*(task.parameters() for task in tasks), strict=True):
        torch.testing.assert_close(one, other)
    assert step.loss_scaler.state_dict()['_growth_tracker'] == 2

"""Steps of A²-Aug against plain timm steps: time and peak memory."""
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import timm
import torch
from cost_table import Line, compare
from timm.layers import convert_splitbn_model
from timm.task import ClassificationTask
from torch import nn
from torch.profiler import ProfilerActivity, profile

from a2aug_timm import A2AugTask, convert_multi_branch_bn

CLASSES = 100


def lines(args: Any) -> Iterator[Line]:
    """All lines of this part; ``args`` are those of cost.py."""
    device = torch.device(args.device)
    for model, size in args.models:
        for channels_last in (False, True):
            for compiled in ((False, True) if device.type == 'cuda' else (False,)):
                bench = Steps(model, size, args.batch, device, channels_last, compiled, args.rounds)
                yield from bench.passes()
                yield from bench.steps()
        yield from Steps(model, size, args.batch, device, True, False, args.rounds).growth()
        yield from Steps(model, size, args.batch, device, True, False, args.rounds).memory()


class Steps:
    """One network, layout and mode. Plain training sees as many images as A²-Aug sees views, unless said otherwise."""

    def __init__(
            self,
            model: str,
            size: int,
            batch: int,
            device: torch.device,
            channels_last: bool,
            compiled: bool,
            rounds: int,
    ):
        self.model, self.size, self.batch, self.device, self.rounds = model, size, batch, device, rounds
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.compiled = compiled
        self.where = ', '.join([f'{model} at {size}', 'channels-last' if channels_last else 'contiguous',
                                *(['compiled' if compiled else 'eager'] if device.type == 'cuda' else [])])

    def passes(self, num_branches: int = 3) -> Iterator[Line]:
        """Forward and backward pass alone."""
        plain = self._network()
        joint = convert_multi_branch_bn(copy.deepcopy(plain), num_branches)
        split = convert_splitbn_model(copy.deepcopy(plain), num_branches)
        runs = {name: partial(self._pass, self._ready(network), self._images(num_branches * self.batch))
                for name, network in (('joint', joint), ('plain', plain), ('split', split))}
        ratios = compare(runs, self.rounds, self.device)
        where = f'{self.where}, N={num_branches}'
        yield Line('joint forward + backward', 'plain network', where, ratios('joint', 'plain'), at_most=1.02)
        yield Line('joint forward + backward', "timm's SplitBatchNorm2d", where, ratios('joint', 'split'), at_most=1.)

    def steps(self, num_branches: int = 3) -> Iterator[Line]:
        """Whole steps: forward, loss, μ, backward, SGD."""
        views = num_branches * self.batch
        runs = {
            'joint': self.step(num_branches, num_branches),
            'sequential': self.step(num_branches, num_branches, sequential=True),
            'plain': self.step(1, num_branches)}
        ratios = compare(runs, self.rounds, self.device)
        where = f'{self.where}, N={num_branches}'
        yield Line('joint step', f'plain step of {views} images', where, ratios('joint', 'plain'), at_most=1.03)
        yield Line('--a2aug-sequential, time', 'joint step', where, ratios('sequential', 'joint'), at_most=1.45)

    def growth(self) -> Iterator[Line]:
        """The price of a view with many branches."""
        for num_branches in (2, 4, 8):
            runs = {'joint': self.step(num_branches, num_branches), 'plain': self.step(1, 1)}
            ratios = compare(runs, self.rounds, self.device)
            yield Line(
                'joint step, time a view', 'plain step, time an image', f'{self.where}, N={num_branches}',
                [ratio / num_branches for ratio in ratios('joint', 'plain')],
                at_most=1. if num_branches == 8 else None)

    def memory(self) -> Iterator[Line]:
        """Largest sum of weights, gradients, optimizer state, images and activations during a step."""
        of_images = self.peak(self.step(1, 1))
        for num_branches in (3, 8):
            where = f'{self.where}, N={num_branches}'
            joint = self.peak(self.step(num_branches, num_branches))
            of_views = self.peak(self.step(1, num_branches))
            sequential = self.peak(self.step(num_branches, num_branches, sequential=True))
            yield Line('joint step, peak memory', f'plain step of {num_branches * self.batch} images', where,
                       [joint / of_views], at_most=1.02)
            yield Line('--a2aug-sequential, peak memory', f'plain step of {self.batch} images', where,
                       [sequential / of_images], at_most=1.15)

    def _network(self) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self.model, num_classes=CLASSES)

    def _ready(self, network: nn.Module) -> nn.Module:
        network.to(self.device, memory_format=self.format)
        return torch.compile(network) if self.compiled else network

    def _images(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, 3, self.size, self.size, device=self.device).contiguous(memory_format=self.format)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == 'cuda')

    def _pass(self, network: nn.Module, images: torch.Tensor) -> None:
        with self._autocast():
            logits = network(images)
        logits.backward(torch.ones_like(logits))
        network.zero_grad()

    def step(
            self,
            num_branches: int,
            num_views: int,
            sequential: bool = False,
            num_drawn: int | None = None,
    ) -> Callable[[], None]:
        """A step on ``num_views`` times B rows; each step draws ``num_drawn`` branches (default: all)."""
        network = self._network()
        if num_branches > 1:
            convert_multi_branch_bn(network, num_branches)
        network.to(self.device, memory_format=self.format)
        if num_branches > 1:
            task = A2AugTask(network, nn.CrossEntropyLoss(), num_branches, sequential=sequential, num_views=num_drawn,
                             device=self.device, verbose=False)
        else:
            task = ClassificationTask(network, nn.CrossEntropyLoss(), device=self.device, verbose=False)
        if self.compiled:
            task.compile()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9)
        images = self._images(num_views * self.batch)
        target = torch.randint(CLASSES, (len(images) // (num_drawn or num_branches),), device=self.device)

        def step() -> None:
            with self._autocast():
                loss = task(images, target)['loss']
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step.task = task
        step.tensors = lambda: [*task.parameters(), *task.buffers(), images, *(
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))]
        return step

    def peak(self, step: Callable[[], None]) -> float:
        """Bytes."""
        for _ in range(2):
            step()
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            peak = torch.cuda.max_memory_allocated() - before
        else:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                step()
            held = peak = 0
            for event in profiler.profiler.kineto_results.events():
                if event.name() == '[memory]':
                    held += event.nbytes()
                    peak = max(peak, held)
        return peak + sum(tensor.nbytes for tensor in step.tensors())

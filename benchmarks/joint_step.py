#!/usr/bin/env python3
"""What a joint step costs: forward, backward, loss and update, against plain timm steps, alternately in one process.

    python benchmarks/joint_step.py [--model resnet18 --size 96 --batch 16 --branches 2 3 4 --rounds 15]

Prints a Markdown table: a joint step on N views of B images over a plain step on N*B images (as many as there are
views), and over a plain step on B images. Medians of the ratios of neighbouring measurements, with their quartiles.
The committed result stands in joint_step.md.
"""
import argparse
import platform
import statistics
import time
from datetime import date

import timm
import torch
from timm.task import ClassificationTask
from torch import nn

from a2aug_timm import A2AugTask, convert_multi_branch_bn


def build(model, num_branches, channels_last, device):
    network = timm.create_model(model, num_classes=100)
    if num_branches > 1:
        convert_multi_branch_bn(network, num_branches)
    network.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    criterion = nn.CrossEntropyLoss()
    if num_branches > 1:
        task = A2AugTask(network, criterion, num_branches, device=device, verbose=False)
    else:
        task = ClassificationTask(network, criterion, device=device, verbose=False)
    return task, torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9)


def seconds(task, optimizer, images, target, autocast):
    start = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        loss = task(images, target)['loss']
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(args, num_branches, channels_last, device):
    """Ratios of a joint step to the plain steps on N·B and on B images."""
    def batch(rows, targets):
        images = torch.randn(rows, 3, args.size, args.size, device=device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, torch.randint(100, (targets,), device=device)

    joint, plain = (build(args.model, n, channels_last, device) for n in (num_branches, 1))
    rows = num_branches * args.batch
    runs = ((*joint, *batch(rows, args.batch)), (*plain, *batch(rows, rows)), (*plain, *batch(args.batch, args.batch)))
    of_views, of_images = [], []
    for round_ in range(args.rounds + 2):
        joint_time, views_time, images_time = (seconds(*run, args.amp) for run in runs)
        if round_ >= 2:  # warm-up
            of_views.append(joint_time / views_time)
            of_images.append(joint_time / images_time)
    return of_views, of_images


def cell(ratios):
    low, median, high = statistics.quantiles(ratios, n=4)
    return f'{median:.3f} ({low:.3f} to {high:.3f})'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--branches', type=int, nargs='+', default=[2, 3, 4])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', action='store_true')
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'{args.model}, {args.size} px, B={args.batch}, {name}, {platform.machine()}, torch {torch.__version__}, '
          f'timm {timm.__version__}, {date.today()}{", bfloat16 autocast" if args.amp else ""}\n')
    print('| N | layout | joint step / plain step of N·B images | joint step / plain step of B images |')
    print('|---|---|---|---|')
    for num_branches in args.branches:
        for channels_last in (False, True):
            of_views, of_images = measure(args, num_branches, channels_last, device)
            layout = 'channels-last' if channels_last else 'contiguous'
            print(f'| {num_branches} | {layout} | {cell(of_views)} | {cell(of_images)} |', flush=True)


if __name__ == '__main__':
    main()

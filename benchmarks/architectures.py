#!/usr/bin/env python3
"""Which of timm's architectures train jointly as N plain models would, and come out again as timm built them.

    python benchmarks/architectures.py --norm bn|all [--only 'resnet*'] [-o FILE.md]

`bn` takes every architecture that has a batch norm and gives each branch its own; `all` takes every architecture with
another norm layer and gives each branch its own norms of all kinds. Each becomes a row of a Markdown table, written at
once: started again with the same file, the script goes on with the rows that are missing. Delete a row to repeat it.
The committed results stand in architectures_bn.md and architectures_all.md.
"""
import argparse
import collections
import contextlib
import copy
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from pathlib import Path

import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
from joint_and_separate import N, create, differences, make_branches_differ, separate_models, tensors

from a2aug_timm import (
    MultiBranchNorm,
    convert_multi_branch_bn,
    convert_multi_branch_norm,
    export_branch,
    extract_branch,
    select_branch,
)
from a2aug_timm.engine.files import atomic_write

CONVERT = {'bn': convert_multi_branch_bn, 'all': convert_multi_branch_norm}
COLUMNS = ('architecture', 'norm layers', 'with branches', 'M parameters', 'checked', 'image', 'joint = separate',
           'statistics', 'gradients', 'exported logits equal', 'remark')
# A network of more parameters than the first limit is checked with fewer blocks of the same kinds where it takes such
# an argument and has less than the second then; else on the meta device, which has shapes but no numbers.
LARGE, TOO_LARGE = 10e6, 15e6
FEWER_BLOCKS = ({'depth': 2}, {'depths': (2, 2, 2, 2)}, {'layers': (2, 2, 2, 2)})
SIZES = (64, 56, 128)
TOLERANCE = {'outputs': 1e-6, 'statistics': 1e-6, 'gradients': 1e-4}
GIGABYTES = 16


def timms_models(pattern):
    """timm's own architectures, not those that importing us registers."""
    return [arch for arch in timm.list_models(pattern) if timm.model_entrypoint(arch).__module__.startswith('timm.')]


def is_norm(module):
    """By name, and not by what branches.py takes for a norm."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    name = type(module).__name__.lower()
    return bool(own) and ('affine' in name or ('norm' in name and 'normfree' not in name))


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(arch, **kwargs):
    with torch.device('meta'):
        return create(arch, **kwargs)


def check(arch, norm):
    """The row of an architecture, or None if it is not one for this table."""
    torch.manual_seed(0)
    plain = on_meta(arch)
    norms = [module for module in plain.modules() if is_norm(module)]
    if not any(isinstance(module, _BatchNorm) is (norm == 'bn') for module in norms):
        return None if norm == 'bn' or norms else [arch, 0, 0, f'{num_parameters(plain) / 1e6:.1f}', *[''] * 6,
                                                   'not applicable: has no norm layer']
    row = [arch, len(norms), 0, f'{num_parameters(plain) / 1e6:.1f}']
    try:
        model = CONVERT[norm](copy.deepcopy(plain), N)
        branched = {name for name, module in model.named_modules() if isinstance(module, MultiBranchNorm)}
        row[2] = len(branched)
        left = collections.Counter(
            type(module).__name__ for name, module in plain.named_modules() if is_norm(module) and name not in branched
            and not any(name.startswith(f'{layer}.') for layer in branched))
        remark = '; '.join(f'{count} {name} left' for name, count in left.items()) if norm == 'all' else ''
        return [*row, *check_numbers(arch, norm, plain, model), remark]
    except Exception as e:
        text = ' '.join(str(e).split()).replace('|', '/')
        return [*row, *[''] * 6, f'FAILS: {type(e).__name__} {text[:150]}']


def check_numbers(arch, norm, plain, model):
    """Cells from `checked` to `exported logits equal`."""
    channels, *full = plain.pretrained_cfg.get('input_size', (3, 224, 224))
    for kwargs in settings(arch, num_parameters(plain)):
        numbers = None
        for side in [*SIZES, full[0]]:
            size = (channels, side, side)
            both = next((both for both in ({**kwargs, 'img_size': side}, kwargs) if runs(arch, both, size)), None)
            if both is None:
                continue
            numbers, exported = differences_and_export(arch, norm, both, size)
            if all(numbers[key] < limit for key, limit in TOLERANCE.items()):
                checked = ', '.join(f'{key}={value}' for key, value in kwargs.items()) or 'as it is'
                return [checked, f'{side} px', *(f'{numbers[key]:.0e}' for key in TOLERANCE), exported]
            # With few values a channel a norm may divide by almost nothing, which magnifies rounding: a larger image.
        if numbers is not None:
            raise ArithmeticError(f'joint is not separate: {numbers}')
    return check_shapes(plain, model, (channels, *full))


def settings(arch, parameters):
    """Arguments with which an architecture is small enough for numbers, the best first."""
    if parameters <= LARGE:
        yield {}
        return
    for kwargs in FEWER_BLOCKS:
        with contextlib.suppress(Exception):  # whatever an architecture makes of an argument that it lacks
            if num_parameters(on_meta(arch, **kwargs)) <= TOO_LARGE:
                yield kwargs


def runs(arch, kwargs, size):
    with contextlib.suppress(Exception):  # whatever an architecture makes of a size that it cannot take
        on_meta(arch, **kwargs)(torch.zeros(2, *size, device='meta'))
        return True
    return False


def differences_and_export(arch, norm, kwargs, size):
    plain = create(arch, **kwargs).double()
    joint = CONVERT[norm](copy.deepcopy(plain), N)
    make_branches_differ(joint)
    images = torch.randn(2 * N, *size, dtype=torch.float64)
    numbers = differences(separate_models(plain, joint), joint, images)
    joint.float().eval().zero_grad()
    check_extracted(joint, plain)
    with torch.no_grad(), select_branch(joint, 1):
        expected = list(tensors(joint(images[2:].float())))
    with tempfile.TemporaryDirectory() as folder:
        export_branch(joint, 1, folder)
        try:
            model, remark = timm.create_model(f'local-dir:{folder}', pretrained=True), 'yes'
        except FileNotFoundError:
            # timm fetches the backbone of some hybrids from the hub for any `pretrained=True`.
            model = timm.create_model(arch, num_classes=plain.num_classes, **kwargs,
                                      checkpoint_path=f'{folder}/checkpoint.pth.tar')
            remark = 'yes, by checkpoint_path'
    with torch.no_grad():
        logits = list(tensors(model.eval()(images[2:].float())))
    equal = len(logits) == len(expected) and all(map(torch.equal, logits, expected))
    assert equal, 'exported logits differ'
    return numbers, remark


def check_extracted(joint, plain):
    extracted = extract_branch(joint, 1)
    names = [[(name, type(module)) for name, module in model.named_modules(remove_duplicate=False)]
             for model in (extracted, plain)]
    assert names[0] == names[1], 'an extracted branch has other modules than timm built'
    assert list(extracted.state_dict()) == list(plain.state_dict()), 'an extracted branch has other keys'


def check_shapes(plain, model, size):
    """Without numbers: the joint step's shapes, and what a branch is as a plain model."""
    rows = collections.defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, MultiBranchNorm):
            module.register_forward_hook(lambda _, inputs, output, name=name: rows[name].append(len(inputs[0])))
    for num_images in (2 * N, 4 * N):
        images = torch.zeros(num_images, *size, device='meta')
        joint, expected = ([output.shape for output in tensors(one(images))] for one in (model, plain))
        assert joint == expected, f'the joint batch gives {joint} and not {expected}'
    # What has as many rows for twice the images is no batch: its halves would not be views.
    fixed = [name for name, calls in rows.items()
             if [2 * call for call in calls[:len(calls) // 2]] != calls[len(calls) // 2:]]
    assert not fixed, f'{fixed[0]} has rows that are no images'
    check_extracted(model, plain)
    with select_branch(model.eval(), 1):
        list(tensors(model(images)))
    return ['meta', f'{size[1]} px', 'shapes', '', '', 'keys and types']


def start():
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30,) * 2)


def read_rows(path):
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    cells = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('| '))
    return {row[0]: row for row in cells if row[0] != COLUMNS[0]}


def write(path, rows, norm):
    """The whole table; a kill leaves the table of before."""
    failed = [row for row in rows.values() if 'FAILS' in row[-1]]
    none = [row for row in rows.values() if row[-1].startswith('not applicable')]
    how = collections.Counter(
        row[4] if row[4] in ('as it is', 'meta') else 'with fewer blocks' for row in rows.values() if row[4])
    counts = ', '.join(f'{count} {name}' for name, count in how.most_common())
    lines = [
        f'# Architectures of timm with branches of {"batch norms" if norm == "bn" else "all norms"}', '',
        f'    python benchmarks/architectures.py --norm {norm}', '',
        f'2 CPU cores, Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, '
        f'{date.today()}', '',
        f'{len(rows)} architectures: {sum(how.values())} ok ({counts}), {len(failed)} not'
        f'{": " if failed else ""}{", ".join(row[0] for row in failed)}; {len(none)} have no norm layer.', '',
        f'A joint step of N={N} views of 2 images, in float64, against {N} plain models apart: largest relative',
        'differences of outputs, running statistics and gradients. Exported: a branch, written to a folder and loaded',
        'by timm, gives its logits to the bit. The meta device has no numbers: shapes, modules and keys are compared.',
        '',
        f'| {" | ".join(COLUMNS)} |', f'|{"---|" * len(COLUMNS)}',
        *(f'| {" | ".join(map(str, row))} |' for row in sorted(rows.values())), '']
    with atomic_write(path) as temporary:
        temporary.write_text('\n'.join(lines), encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--norm', choices=CONVERT, required=True)
    parser.add_argument('--only', metavar='PATTERN', default='', help='architectures like this alone, such as resnet*')
    parser.add_argument('-o', '--output', type=Path, metavar='FILE', help='default: architectures_<norm>.md beside me')
    args = parser.parse_args()
    path = args.output or Path(__file__).with_name(f'architectures_{args.norm}.md')
    # Giving memory back to the system and taking it again would take longer than the arithmetic.
    os.environ.update(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000', MALLOC_TOP_PAD_='268435456')
    context = multiprocessing.get_context('spawn')
    rows, pool = read_rows(path), None
    for number, arch in enumerate(arch for arch in timms_models(args.only) if arch not in rows):
        if pool is not None and number % 100 == 0:  # memory that is kept is torn into pieces in the end
            pool.shutdown()
            pool = None
        pool = pool or ProcessPoolExecutor(1, context, start)
        try:
            row = pool.submit(check, arch, args.norm).result()
        except BrokenProcessPool:
            row, pool = [arch, *[''] * 9, f'FAILS: the process died, with {GIGABYTES} GB of memory'], None
        if row is not None:
            rows[arch] = [str(cell) for cell in row]
            write(path, rows, args.norm)
            print(*row, flush=True)


if __name__ == '__main__':
    main()

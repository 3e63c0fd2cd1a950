#!/usr/bin/env python3
"""Write a recipe for each cell of the paper's tables that can be trained: hparams/{cifar10,cifar100,imagenet}/*.yaml.

    python docs/recipes.py

This script is the only place where the headers' claims are written. Training reads the YAML files alone.
"""
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / 'hparams'

# Settings that a data set's recipes share, and where they come from.
SHARED = {
    'cifar10': dict(
        dataset='torch/cifar10', num_classes=10, mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616]),
    'cifar100': dict(
        dataset='torch/cifar100', num_classes=100, mean=[0.5071, 0.4865, 0.4409], std=[0.2673, 0.2564, 0.2762]),
    'imagenet': dict(num_classes=1000),
}
CIFAR = dict(
    input_size=[3, 32, 32], train_crop_mode='pad', crop_padding=4, crop_pct=1.0, interpolation='bilinear',
    train_interpolation='bilinear', opt='sgd', momentum=0.9, sched='cosine', sched_on_updates=True, warmup_epochs=0,
    clip_grad=5.0, smoothing=0.0, workers=8, pin_mem=True, channels_last=True)
IMAGENET = dict(
    batch_size=128, opt='momentum', lr=0.4, sched='cosine', warmup_epochs=5, weight_decay=1e-4, smoothing=0.0, amp=True,
    crop_pct=0.875, interpolation='bicubic', channels_last=True, workers=8, pin_mem=True, epochs=120)
CIFAR_SOURCES = [
    'SGD with nesterov, momentum 0.9, cosine to 0, gradients clipped to norm 5, pad 4 and crop, flip, Cutout 16: the '
    'published code of AutoAugment (arXiv:1805.09501) and PBA (arXiv:1905.05393). Mean and standard deviation are the '
    "training pixels'. timm's weight decay leaves norms and biases out.",
    'Conflict: that code crops and flips after the policy; here the crop comes first, so that the views of an image '
    'share it.',
]
IMAGENET_SOURCES = [
    "120 epochs and a batch of 1,024 are the paper's. It prints no other setting; the rest is that of RS-Nets "
    '(arXiv:2007.09558), whose loss is the nearest published one: learning rate 0.1 for a batch of 256, hence 0.4, '
    "cosine, weight decay 1e-4, no nesterov (timm's `momentum`, not its `sgd`), and 5 epochs of warm-up. Images are "
    'judged by their middle 0.875, as usual for 224 pixels; timm would take what each network was published with.',
]


@dataclass
class Row:
    """A network on a data set: a row of Table 2 or 3.

    Attributes:
        title: As the paper writes it.
        settings: Beside the data set's.
        sources: Where they come from, and where sources disagree.
        expected: The paper's top-1 of each method, in percent; a method without one has no recipe.
        rand_augment: RandAugment's own choice of (layers, magnitude), and where it stands.
    """
    title: str
    model: str
    settings: dict[str, Any]
    sources: list[str]
    expected: dict[str, str]
    rand_augment: tuple[int, int, str] | None = None


SETTINGS = 'Epochs, batch, learning rate, weight decay'
WIDE = dict(epochs=200, batch_size=128, lr=0.1)
PYRAMID = dict(epochs=1800, batch_size=64, lr=0.05)
SHAKE = dict(epochs=1800, batch_size=128, lr=0.01)
RA_APPENDIX = "RandAugment's appendix (arXiv:1909.13719)"
ROWS = {
    'cifar10': [
        Row('WRN-40-2', 'wide_resnet40_2', dict(WIDE, weight_decay=2e-4), [
            f'{SETTINGS}: Fast AutoAugment (arXiv:1905.00397) and DADA (arXiv:2003.03780).',
            'Conflict: TrivialAugment (arXiv:2103.10158) decays by 5e-4.'],
            dict(baseline='94.4', cutout='95.9', aa='96.3', fastaa='96.4', dada='96.4', a2aug='96.7 ± 0.2')),
        Row('WRN-28-10', 'wide_resnet28_10', dict(WIDE, weight_decay=5e-4), [
            f'{SETTINGS}: AutoAugment, RandAugment, PBA, Fast AutoAugment.'],
            dict(baseline='96.1', cutout='96.9', aa='97.4', fastaa='97.3', dada='97.3',
                 ra='97.3', a2aug='98.0 ± 0.3'), (3, 5, RA_APPENDIX)),
        Row('Shake-Shake (26 2x32d)', 'shake_shake26_2x32d', dict(SHAKE, weight_decay=1e-3), [
            f'{SETTINGS}: AutoAugment, PBA, Fast AutoAugment.'],
            dict(baseline='96.4', cutout='97.0', aa='97.5', fastaa='97.5', dada='97.3', a2aug='97.7 ± 0.1')),
        Row('Shake-Shake (26 2x96d)', 'shake_shake26_2x96d', dict(SHAKE, weight_decay=1e-3), [
            f'{SETTINGS}: AutoAugment, RandAugment, PBA, Fast AutoAugment.'],
            dict(baseline='97.1', cutout='97.4', aa='98.0', fastaa='98.0', dada='98.0',
                 ra='98.0', a2aug='98.5 ± 0.1'), (3, 9, RA_APPENDIX)),
        Row('PyramidNet', 'pyramidnet272_a200_shakedrop', dict(PYRAMID, weight_decay=5e-5), [
            f'{SETTINGS}: AutoAugment, RandAugment, PBA, Fast AutoAugment. PyramidNet-272 with α 200 '
            'and ShakeDrop, p_L 0.5 (arXiv:1802.02375).'],
            dict(baseline='97.3', aa='98.5', fastaa='98.3', dada='98.3', ra='98.5', a2aug='98.9 ± 0.2'),
            (3, 7, f'{RA_APPENDIX}; conflict: the reimplementation ildoonet/pytorch-randaugment has magnitude 9')),
    ],
    'cifar100': [
        Row('WRN-40-2', 'wide_resnet40_2', dict(WIDE, weight_decay=5e-4), [
            f'{SETTINGS}: DADA (arXiv:2003.03780) and TrivialAugment (arXiv:2103.10158).',
            'Conflict: Fast AutoAugment (arXiv:1905.00397) decays by 2e-4.'],
            dict(baseline='74.0', cutout='74.8', aa='79.3', fastaa='79.4', dada='79.1', a2aug='81.3 ± 0.3')),
        Row('WRN-28-10', 'wide_resnet28_10', dict(WIDE, weight_decay=5e-4), [
            f'{SETTINGS}: RandAugment, PBA, Fast AutoAugment.'],
            dict(baseline='81.2', cutout='81.6', aa='82.9', fastaa='82.7', dada='82.5',
                 ra='83.3', a2aug='85.2 ± 0.4'), (2, 14, RA_APPENDIX)),
        Row('Shake-Shake (26 2x96d)', 'shake_shake26_2x96d', dict(SHAKE, weight_decay=2.5e-3), [
            f'{SETTINGS}: PBA, DADA (arXiv:2003.03780).',
            'Conflict: Fast AutoAugment (arXiv:1905.00397) decays by 1e-3.'],
            dict(baseline='82.9', cutout='84.0', aa='85.7', fastaa='85.4', dada='84.7', a2aug='86.8 ± 0.3')),
    ],
    'imagenet': [
        Row('ResNet-50', 'resnet50', {}, [], dict(baseline='76.3', aa='77.6', fastaa='77.6', dada='77.5',
                                                  ra='77.6', a2aug='79.2 ± 0.4'),
            (2, 9, "RandAugment's paper (arXiv:1909.13719)")),
        Row('ResNet-200', 'resnet200', {}, [
            'Conflict: Fast AutoAugment trains it with 64 images a GPU, and its 80.6 in Table 3 is at 320 pixels.'],
            dict(baseline='78.5', aa='80.0', fastaa='80.6', a2aug='81.5 ± 0.5')),
    ],
}
NAMES = {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100', 'imagenet': 'ImageNet'}
METHODS = {
    'baseline': 'baseline', 'cutout': 'Cutout', 'aa': 'AutoAugment', 'fastaa': 'Fast AutoAugment', 'dada': 'DADA',
    'ra': 'RandAugment', 'a2aug': 'A²-Aug'}
# Policies of hparams/policies/ for each data set.
POLICIES = {
    'fastaa': {'cifar10': 'fast_autoaugment_cifar10', 'cifar100': 'fast_autoaugment_cifar10',
               'imagenet': 'fast_autoaugment_imagenet'},
    'dada': {name: f'dada_{name}' for name in NAMES},
}
# Top-1 of the published policy by Fast AutoAugment's README, where the paper has the figure of another setting.
FASTAA_REPORTS = {
    'cifar10': {'shake_shake26_2x32d': '97.3', 'pyramidnet272_a200_shakedrop': '98.2'},
    'cifar100': {'wide_resnet40_2': '79.3', 'shake_shake26_2x96d': '85.1'},
    'imagenet': {'resnet200': '80.0'},
}


@dataclass
class Recipe:
    """One file. The fields are what its header says, and its settings."""
    path: str
    title: str
    settings: dict[str, Any]
    sources: list[str]
    expected: str
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The file, header first."""
        data_set = self.path.partition('/')[0]
        command = f'./distributed_train.sh 8 -c hparams/{self.path} --data-dir /data/imagenet'
        if data_set != 'imagenet':
            command = f'python train.py -c hparams/{self.path} --data-dir data --dataset-download'
        lines = [f'{self.title}. Not run by this project.', f'  {command}']
        if data_set == 'imagenet':
            lines.append("  (8 GPUs x 128 images = the paper's batch of 1,024; on other hardware keep the product)")
        for paragraph in (*self.sources, *self.notes, f'Expected, figure of the paper: {self.expected}.'):
            lines += textwrap.wrap(paragraph, 117, break_on_hyphens=False)
        return ''.join(f'# {line}\n' for line in lines) + yaml.dump(
            self.settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200)


class _Dumper(yaml.SafeDumper):
    """Block mappings with lists in one line, and numbers as YAML 1.1 reads them."""


_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence('tag:yaml.org,2002:seq', value, True))


def recipes() -> list[Recipe]:
    """All recipes that this script writes."""
    cells = [_cell(data_set, row, method) for data_set, rows in ROWS.items() for row in rows for method in row.expected]
    return cells + _ablations()


def _cell(data_set: str, row: Row, method: str) -> Recipe:
    """A cell of Table 2 or 3."""
    is_imagenet = data_set == 'imagenet'
    settings = {**SHARED[data_set], 'model': row.model, **(IMAGENET if is_imagenet else CIFAR), **row.settings}
    notes = []
    if not is_imagenet and method != 'baseline':
        settings['cutout'] = 16
    if method in ('baseline', 'cutout'):
        settings['color_jitter'] = 0.
        notes.append("No color jitter, which timm has by default where there is no policy, and the other columns have "
                     'not.')
    if method == 'ra':
        layers, magnitude, source = row.rand_augment
        settings['aa'] = f'rand-m{magnitude}-n{layers}-p1.0-mmax30-tpublished'
        notes.append(f'Layers and magnitude: {source}.')
        if is_imagenet:
            settings['epochs'] = 180
            notes.append("180 epochs are RandAugment's; conflict: it steps the learning rate down.")
    if method == 'aa':
        settings['aa'] = 'original' if is_imagenet else 'autoaugment_cifar10'
        notes.append("AutoAugment's policy for ImageNet as timm ships it." if is_imagenet else
                     "AutoAugment's policy for CIFAR-10 as torchvision ships it; its paper uses it for CIFAR-100 too.")
        if is_imagenet:
            settings['epochs'] = 200
            notes.append("200 epochs are what the paper says of AutoAugment (§5.2); conflict: AutoAugment's own paper "
                         'trains for 270 and steps the learning rate down.')
    if method in POLICIES:
        settings.update(_policy_settings(data_set, method))
        notes += _policy_notes(data_set, row, method)
    if method == 'a2aug':
        settings['a2aug_branches'] = 3 if is_imagenet else 4
        settings['a2aug_space'] = data_set
        notes.append(f"N = {settings['a2aug_branches']} policies of RandAugment's search space (the paper, §5), drawn "
                     'by --seed.')
    expected = f'{row.expected[method]} top-1'
    if method == 'a2aug':
        expected += ' (mean of 3 runs; here --seed 0, 1, 2) of the best branch, chosen on the images that it is ' \
                    'judged on; --holdout N chooses on training images instead'
    return Recipe(
        f'{data_set}/{row.model}_{method}.yaml',
        f"{METHODS[method]}, {row.title} on {NAMES[data_set]} (Table {3 if is_imagenet else 2})",
        settings, [*row.sources, *(IMAGENET_SOURCES if is_imagenet else CIFAR_SOURCES)], expected, notes)


def _policy_settings(data_set: str, method: str) -> dict[str, Any]:
    """Settings of a column whose policies are files."""
    return {'aa': f'file:{POLICIES[method][data_set]}', **(dict(epochs=270) if data_set == 'imagenet' else {})}


def _policy_notes(data_set: str, row: Row, method: str) -> list[str]:
    policy = POLICIES[method][data_set]
    notes = ["The policy that the method's authors published; source and conversion: "
             f'hparams/policies/{policy}.yaml.']
    if data_set not in policy:
        notes.append(f'They use the policy of CIFAR-10 for {NAMES[data_set]} too.')
    if data_set == 'imagenet':
        notes.append("270 epochs are those of their code; conflict: that code steps the learning rate down, and "
                     'the training cost in Table 4 is that of 180 epochs.')
        notes.append('Conflict: their code adds color jitter of 0.4 and color noise; here, as in the other columns, '
                     'there is none.')
    elif method == 'dada':
        notes.append("DADA's code crops and flips before the policy, as here.")
        if row.settings['batch_size'] == 128:
            notes.append("Conflict: DADA's code trains with 512 images and a peak learning rate 4 times as high.")
    reported = FASTAA_REPORTS[data_set].get(row.model) if method == 'fastaa' else None
    if reported and data_set == 'imagenet':
        notes.append(f"At 224 pixels, as here, Fast AutoAugment's README reports {reported}.")
    elif reported:
        notes.append("Conflict: the paper's figure is that of a policy that was found for this network and data set "
                     "('direct'); it is not published. For the published one ('transfer', found with WRN-40-2 on "
                     f'reduced CIFAR-10) the README of their code reports {reported}.')
    return notes


def _ablations() -> list[Recipe]:
    """The rows of Tables 5, 7, 8 and 9 that no other table has: A²-Aug of ResNet-50 on ImageNet with a change each."""
    whole = _cell('imagenet', ROWS['imagenet'][0], 'a2aug')

    def ablation(name: str, title: str, expected: str, *notes: str, **change: Any) -> Recipe:
        settings = {**whole.settings, **change}
        if 'a2aug_policies' in change:
            del settings['a2aug_space']
            return Recipe(f'imagenet/resnet50_{name}.yaml', title, settings, whole.sources, expected, list(notes))
        return Recipe(
            f'imagenet/resnet50_{name}.yaml', title, settings, whole.sources, expected, [*whole.notes, *notes])

    return [
        ablation('a2aug_independent', 'A²-Aug (ind.), ResNet-50 on ImageNet (Table 5)', '79.0 top-1',
                 'N networks that share nothing: about N times the memory of one for weights and optimizer.',
                 a2aug_independent=True),
        ablation('a2aug_shared_bn', 'A²-Aug w/o S-BN, ResNet-50 on ImageNet (Table 5)', '74.7 top-1',
                 a2aug_shared_bn=True),
        ablation('a2aug_average', 'A²-Aug with the average ensemble, ResNet-50 on ImageNet (Table 7)', '78.1 top-1',
                 a2aug_ensemble='average'),
        ablation('a2aug_no_kl', 'A²-Aug without KL divergence, ResNet-50 on ImageNet (Table 8)', '77.5 top-1',
                 'Without KL divergence nothing is left to normalise, though the table ticks "Logit Norm." here.',
                 a2aug_kl_weight=0.0),
        ablation('a2aug_no_logit_norm', 'A²-Aug without logit normalisation, ResNet-50 on ImageNet (Table 8)',
                 '78.8 top-1', a2aug_no_logit_norm=True),
        ablation('a2aug_multiscale', 'A²-Aug (Multi-scale), ResNet-50 on ImageNet (Table 9)', '79.1 top-1',
                 "Resolutions, and no policy, are MutualNet's (arXiv:1909.12978). Its code, apps/resnet50.yml, agrees "
                 'on 120 epochs, cosine, weight decay and learning rate (0.2 for 512 images); conflict: nesterov.',
                 a2aug_branches=4, a2aug_policies=['none'] * 4, a2aug_branch_sizes=[224, 192, 160, 128]),
    ]


def main() -> None:
    for recipe in recipes():
        path = FOLDER / recipe.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe.text(), encoding='utf-8')


if __name__ == '__main__':
    main()

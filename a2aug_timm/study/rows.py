"""Rows of each table: those of the paper, and controls with as many views."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.policies import sample_policies
from .trial import Row, Setting, as_name

MAX_BRANCHES = 6  # in Figure 4
# timm jitters colors if there is no policy; the base transform of the branches does not.
NO_POLICY = {'color_jitter': 0.}


@dataclass(frozen=True)
class Method:
    """Parts of a recipe that the rows depend on.

    Attributes:
        num_branches: N of A²-Aug. Controls of equal cost have N times the epochs, or N trials.
        num_layers: RandAugment's search space is ``num_layers`` x ``magnitudes``; used if no policies are named.
        magnitudes: See ``num_layers``.
        image_size: Side of an image, in pixels.
        cutout: Cutout of the recipe, in pixels; all trials have it, except the baseline of Table 2.
        auto_augment: AutoAugment's policy for the most similar data set.
        named: Policies that the recipe names, the same for every seed.
    """
    num_branches: int
    num_layers: Sequence[int]
    magnitudes: Sequence[int]
    image_size: int
    cutout: int = 0
    auto_augment: str = 'autoaugment_cifar10'
    named: Sequence[str] = ()

    def policies(self, num: int, seed: int) -> list[str]:
        """Policies of ``num`` branches: the first named ones, or those that ``--a2aug-branches`` draws with a seed."""
        return list(self.named[:num]) or sample_policies(num, seed, self.num_layers, self.magnitudes)

    @property
    def grid(self) -> list[str]:
        """All policies of the search space, weaker ones first."""
        return [next(policy for policy in self.policies(self.num_policies, 0) if f'-m{m}-n{n}-' in policy)
                for n in sorted(set(self.num_layers)) for m in sorted(set(self.magnitudes))]

    @property
    def num_policies(self) -> int:
        """Number of named policies, or size of the search space."""
        return len(self.named) or len(set(self.num_layers)) * len(set(self.magnitudes))

    def alone(self, policy: str, epochs: int = 1) -> Setting:
        """Setting of plain training with one policy."""
        if self.named:
            no_policy = NO_POLICY if policy == 'none' else {}
            return Setting(_longer(f'aa-{as_name(policy)}', epochs), {**no_policy, 'aa': policy}, epochs)
        _, magnitude, num_layers = policy.split('-')[:3]
        return Setting(_longer(f'ra-{num_layers}-{magnitude}', epochs), {'aa': policy}, epochs)

    def joint(self, num: int | None = None, suffix: str = '', **changes: Any) -> Row:
        """Row of A²-Aug, or of a variant of it."""
        num = num or self.num_branches
        named = {'a2aug_policies': list(self.named[:num])} if self.named else {}
        setting = Setting(f'a2aug{num}{suffix}', {'a2aug_branches': num, **named, **changes})
        return Row(f'A²-Aug, N = {num}', lambda seed: [setting])

    def baseline(self, epochs: int = 1) -> Row:
        """Row of plain training without a policy."""
        setting = Setting(_longer('baseline', epochs), dict(NO_POLICY), epochs)
        return Row('baseline' + (f', {epochs}× the epochs' if epochs > 1 else ''), lambda seed: [setting])

    def best_of(self, num: int, epochs: int = 1) -> Row:
        """Row of plain training with each policy of ``num`` branches, of which the best is chosen."""
        if self.named:
            label = f'{self.named[0]} alone' if num == 1 else f'the best of {num} policies alone'
        else:
            label = 'RA, a drawn policy' if num == 1 else f'RA, the best of {num} drawn policies'
        return Row(label + (f', {epochs}× the epochs' if epochs > 1 else ''),
                   lambda seed: [self.alone(policy, epochs) for policy in self.policies(num, seed)])

    def search(self) -> Row:
        """Row of RandAugment's own grid search, or of the best of all named policies."""
        if self.named:
            return self.best_of(self.num_policies)
        return Row(f'RA, grid of {self.num_policies}', lambda seed: [self.alone(one) for one in self.grid])


def _longer(name: str, epochs: int) -> str:
    return f'{name}-{epochs}x' if epochs > 1 else name


def table1(method: Method) -> list[Row]:
    """Accuracy and cost of the methods, with controls that cost as much as A²-Aug."""
    num = method.num_branches
    drawn = [] if method.named else [method.best_of(num)]
    return [method.baseline(), method.best_of(1), method.baseline(num), method.best_of(1, num), *drawn,
            method.search(), method.joint()]


def table2(method: Method) -> list[Row]:
    """Comparison of the methods for several networks."""
    without = Row('baseline', lambda seed: [Setting('baseline-no-cutout', {**NO_POLICY, 'cutout': 0})])
    half = Row('Cutout', lambda seed: [Setting('cutout', {**NO_POLICY, 'cutout': method.image_size // 2})])
    plain = [without, _named('Cutout', method.baseline())] if method.cutout else [method.baseline(), half]
    auto = Row('AA', lambda seed: [Setting('aa', {'aa': method.auto_augment})])
    return [*plain, auto, method.search(), method.joint()]


def table5(method: Method) -> list[Row]:
    """Effect of shared weights and of separate batch norm."""
    return [_named('A²-Aug, independent networks', method.joint(suffix='-independent', a2aug_independent=True)),
            _named('A²-Aug, one batch norm', method.joint(suffix='-shared-bn', a2aug_shared_bn=True)),
            method.joint()]


def table7(method: Method) -> list[Row]:
    """Average and adaptive ensemble."""
    return [method.baseline(), _named('average ensemble', method.joint(suffix='-average', a2aug_ensemble='average')),
            _named('adaptive ensemble', method.joint())]


def table8(method: Method) -> list[Row]:
    """Effect of distillation and of normalised logits."""
    return [method.baseline(), _named('no KL', method.joint(suffix='-no-kl', a2aug_kl_weight=0.)),
            _named('KL of plain logits', method.joint(suffix='-plain-kl', a2aug_no_logit_norm=True)),
            _named('KL of normalised logits', method.joint())]


def figure3(method: Method) -> list[Row]:
    """Policies trained jointly and alone."""
    return [method.joint(), method.best_of(method.num_branches)]


def figure4(method: Method) -> list[Row]:
    """Number of branches; N = 1 is plain training with the first policy."""
    most = min(MAX_BRANCHES, method.num_policies)
    return [_named('N = 1', method.best_of(1)), *(
        _named(f'N = {num}', method.joint(num)) for num in range(2, most + 1))]


def choices(method: Method) -> list[Row]:
    """Choices that the paper leaves open; each row changes one default."""
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        'scale-literal': ('logit scale 1, as printed in Eq. 8', {'a2aug_logit_scale': 'literal'}),
        'scale-teacher-norm': ("logit scale: the teacher's norm", {'a2aug_logit_scale': 'teacher-norm'}),
        'kl-0.3': ('KL weight 0.3', {'a2aug_kl_weight': 0.3}),
        'kl-3': ('KL weight 3', {'a2aug_kl_weight': 3.}),
        'mu-lr-0.1': ("μ's learning rate × 0.1", {'a2aug_mu_lr_scale': 0.1}),
        'mu-lr-10': ("μ's learning rate × 10", {'a2aug_mu_lr_scale': 10.}),
        'mean': ('mean over the branches', {'a2aug_loss_reduction': 'mean'}),
        'own-crops': ('a separate crop for each view', {'a2aug_independent_crops': True}),
    }
    return [_named('the defaults', method.joint()), *(
        _named(label, method.joint(suffix=f'-{name}', **changes)) for name, (label, changes) in variants.items())]


def _named(label: str, row: Row) -> Row:
    return Row(label, row.settings)


TABLES: dict[str, Callable[[Method], list[Row]]] = {
    'table1': table1, 'table2': table2, 'table5': table5, 'table6': lambda method: [method.joint()], 'table7': table7,
    'table8': table8, 'figure3': figure3, 'figure4': figure4, 'choices': choices}
TITLES = {
    'table1': 'Table 1: accuracy and cost', 'table2': 'Table 2: methods',
    'table5': 'Table 5: shared weights and batch norm',
    'table6': 'Table 6: μ and accuracy', 'table7': 'Table 7: ensemble', 'table8': 'Table 8: distillation',
    'figure3': 'Figure 3: policies in A²-Aug and alone', 'figure4': 'Figure 4: number of branches',
    'choices': 'Choices that the paper leaves open'}

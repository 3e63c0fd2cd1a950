"""The grammar of policy strings: families, their sections, and whether two policies mean the same.

A policy *is* a string; it is what is sampled, logged, stored in checkpoints and parsed. Most policies are timm's
auto-augment strings (``rand-m9-n2-p1.0``) and mean exactly what timm's ``--aa`` means. Others are ours:

- ``rand-…-tpublished``: RandAugment with its published 14 ops and level functions;
- ``autoaugment_cifar10`` and its siblings: AutoAugment's policies, as torchvision ships them;
- ``ta``: TrivialAugment (wide), as torchvision ships it;
- ``mix:P1,P2,…``: one of these policies at random for each image;
- ``file:PATH``: one sub-policy of a JSON or YAML file at random for each image, see ``files``;
  ``file:dada_cifar10`` and other published policies ship with the package and need no path;
- ``none``: the image itself.
"""
import re
from collections.abc import Hashable, Sequence
from typing import Any

from torchvision.transforms import AutoAugmentPolicy

from .files import read_policy_file
from .published_ops import MAX_MAGNITUDE

AUTO_AUGMENT = {f'autoaugment_{policy.value}': policy for policy in AutoAugmentPolicy}

_NUMBER = r'\d+(?:\.\d+)?'
# Policy family -> its sections, as timm parses them: {key: value pattern}.
_SECTIONS = {
    'rand': {'m': r'\d+', 'n': r'[1-9]\d*', 'p': _NUMBER, 'mstd': _NUMBER, 'mmax': r'\d+', 'inc': r'[01]',
             't': r'published|weights|3aw|3a'},
    'augmix': {'m': r'\d+', 'w': r'[1-9]\d*', 'd': r'\d+', 'a': _NUMBER, 'b': r'[01]', 'mstd': _NUMBER},
    **{name: {'mstd': _NUMBER} for name in ('original', 'originalr', 'v0', 'v0r', '3a')},
    **{name: {} for name in ('none', 'ta', *AUTO_AUGMENT)},
}
# Families whose argument follows a colon.
_WITH_ARGUMENT = ('mix', 'file')


def parse_policy(policy: str) -> dict[str, str]:
    """Sections of a policy string, ``{'family': 'rand', 'm': '9', …}``.

    ``mix`` has the section ``policies``, its policies with commas between them; ``file`` has the section ``path``. The
    file is not read.

    Raises:
        ValueError: The family, a section or a value is neither timm's nor ours.
    """
    family, colon, argument = policy.partition(':')
    if colon and family == 'mix':
        _check_mixture(policy, argument.split(','))
        return {'family': family, 'policies': argument}
    if colon and family == 'file':
        if not argument:
            raise ValueError(f"policy '{policy}' needs the path of a file, file:PATH")
        return {'family': family, 'path': argument}
    family, *sections = policy.split('-')
    if family not in _SECTIONS:
        families = [*_SECTIONS, *(f'{name}:' for name in _WITH_ARGUMENT)]
        raise ValueError(f"policy '{policy}' must begin with one of {', '.join(families)}")
    parsed = {'family': family}
    # Longest key first, so that `mstd0.5` is never read as key `m`.
    keys = sorted(_SECTIONS[family].items(), key=lambda item: -len(item[0]))
    for section in sections:
        key = next((key for key, value in keys if re.fullmatch(key + f'(?:{value})', section)), None)
        if key is None:
            raise ValueError(f"policy '{policy}': {family} has no section '{section}', but "
                             f"{', '.join(_SECTIONS[family]) or 'none'}")
        if key in parsed:
            raise ValueError(f"policy '{policy}' has two sections '{key}'")
        parsed[key] = section[len(key):]
    if float(parsed.get('p', 1)) > 1:
        raise ValueError(f"policy '{policy}': the probability p{parsed['p']} is above 1")
    if parsed.get('t') == 'published' and 'inc' in parsed:
        raise ValueError(f"policy '{policy}': the published ops have one level scale and cannot take 'inc'")
    return parsed


def _check_mixture(policy: str, policies: Sequence[str]) -> None:
    if len(policies) < 2:
        raise ValueError(f"policy '{policy}' needs at least 2 policies, mix:P1,P2")
    if any(one.startswith('mix:') for one in policies):
        raise ValueError(f"policy '{policy}' is a mixture of mixtures; name all policies in one list")
    for one in policies:
        parse_policy(one)


def check_policies(policies: Sequence[str]) -> None:
    """Raise ``ValueError`` if a policy is malformed, or if two of them mean the same; reads the files of policies."""
    seen: dict[Hashable, str] = {}
    for policy in policies:
        meaning = _meaning(policy)
        if meaning in seen:
            raise ValueError(f"policies '{seen[meaning]}' and '{policy}' are the same; each branch needs its own")
        seen[meaning] = policy


def _meaning(policy: str) -> Hashable:
    """A value that is equal for policies that mean the same."""
    sections = parse_policy(policy)
    if sections['family'] == 'mix':
        policies = sections['policies'].split(',')
        check_policies(policies)
        return 'mix', frozenset(map(_meaning, policies))
    if sections['family'] == 'file':
        return 'file', repr(read_policy_file(sections['path']))
    return frozenset(_with_defaults(sections).items())


def _with_defaults(parsed: dict[str, str]) -> dict[str, Any]:
    """Sections with timm's defaults filled in, and a magnitude above its cap cut to it."""
    sections: dict[str, Any] = {
        key: value if key in ('family', 't') else float(value) for key, value in parsed.items()}
    if sections['family'] == 'rand':
        is_published = sections.get('t') == 'published'
        defaults = {'m': 10., 'n': 2., 'p': 1. if is_published else 0.5, 'mstd': 0., 'inc': 0., 't': '',
                    'mmax': float(MAX_MAGNITUDE) if is_published else 10.}
        sections = {**defaults, **sections}
        if not sections['mstd']:
            sections['m'] = min(sections['m'], sections.pop('mmax'))
    elif sections['family'] == 'augmix':
        sections = {'m': 3., 'w': 3., 'd': -1., 'a': 1., 'b': 0., **sections}
    elif 'mstd' in _SECTIONS[sections['family']]:
        sections = {'mstd': 0., **sections}
    return sections


def is_known_to_timm(policy: str) -> bool:
    """Whether timm's own ``auto_augment`` takes a policy, and not ``create_policy`` alone."""
    sections = parse_policy(policy)
    return sections['family'] not in ('none', 'ta', *AUTO_AUGMENT, *_WITH_ARGUMENT) and sections.get('t') != 'published'

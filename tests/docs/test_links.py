"""The links of the Markdown files lead to files and headings that exist."""
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests import ROOT

PAGES = sorted([*ROOT.glob('*.md'), *(page for folder in ('docs', 'hparams', 'benchmarks', 'results')
                                      for page in (ROOT / folder).rglob('*.md'))])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def prose(page: Path) -> str:
    """Text of a page without code blocks; a block is fenced or is indented after an empty line."""
    text = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r'(?:\A|\n)\n(?: {4}.*\n|\n(?= {4}))+', '\n\n', text)


def links(page: Path) -> list[str]:
    """Targets of the links and images of a page."""
    return re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', prose(page)))


def anchor(heading: str) -> str:
    """Anchor that GitHub gives a heading."""
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
    kept = (char for char in text if char in ' -' or unicodedata.category(char)[:2] in ('Nd', 'Pc')
            or unicodedata.category(char)[0] in 'LM')
    return ''.join(kept).replace(' ', '-')


def anchors(page: Path) -> list[str]:
    """Anchors of the headings of a page."""
    return [anchor(heading) for heading in re.findall(r'^#+ (.+)$', prose(page), flags=re.MULTILINE)]


@pytest.mark.parametrize(('heading', 'expected'), [
    ('`price`: equal cost, 1,000 images, begun', 'price-equal-cost-1000-images-begun'),
    ("A run's folder", 'a-runs-folder'),
    ('The flags of A²-Aug', 'the-flags-of-a-aug'),
    ('[0.1.0] - 2026-11-22', '010---2026-11-22')])
def test_a_heading_has_the_anchor_that_github_gives_it(heading, expected):
    assert anchor(heading) == expected


def test_code_is_not_searched_for_links(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A\n\n    [1](no)\n\n    [2](no)\n\nText `[3](no)`, [4](yes)\n\n```\n[5](no)\n```\n', 'utf-8')
    assert links(page) == ['yes']


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    broken = []
    for link in links(page):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, fragment = unquote(link).partition('#')
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            broken.append(link)
        elif fragment and fragment not in anchors(target):
            broken.append(link)
    assert not broken


def test_the_readme_links_to_every_page_of_the_documentation():
    linked = {link.partition('#')[0] for link in links(ROOT / 'README.md')}
    assert {name for name in NAMES if name.startswith('docs/')} <= linked


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150

"""The files around the package agree with setup.cfg, which is the source of its versions."""
import configparser
import re

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import a2aug_timm
from tests import ROOT


def setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    return config['options']


def lower_bound(specifier):
    (bound,) = (part.version for part in specifier if part.operator == '>=')
    return bound


def test_the_workflow_tests_the_oldest_versions_that_setup_cfg_claims():
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text(encoding='utf-8'))
    oldest, newest = workflow['jobs']['tests']['strategy']['matrix']['include']
    assert (oldest['name'], newest['name']) == ('oldest', 'newest')
    assert oldest['python'] == lower_bound(SpecifierSet(setup_cfg()['python_requires']))
    assert Version(newest['python']) > Version(oldest['python'])
    tested = {requirement.name: requirement.specifier for requirement in map(Requirement, oldest['versions'].split())}
    requirements = [Requirement(line) for line in setup_cfg()['install_requires'].strip().splitlines()]
    claimed = {requirement.name: lower_bound(requirement.specifier) for requirement in requirements
               if '>=' in str(requirement.specifier)}
    assert set(claimed) >= {'torch', 'timm'}
    for name, version in claimed.items():
        assert tested[name].contains(version), name
        assert not tested[name].contains(f'{Version(version).major}.{Version(version).minor + 1}'), name


def test_the_changelog_has_a_section_for_this_version_and_the_sections_descend():
    titles = re.findall(r'^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$', (ROOT / 'CHANGELOG.md').read_text('utf-8'), re.M)
    assert titles[0] == ('Unreleased', '')
    released = [Version(version) for version, _ in titles[1:]]
    assert all(date for _, date in titles[1:]) and released == sorted(released, reverse=True)
    version = Version(a2aug_timm.__version__)
    assert version > released[0] if version.is_devrelease else version == released[0]


def test_the_citation_names_the_software_and_the_paper_with_its_seven_authors():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert (citation['cff-version'], citation['title'], citation['type']) == ('1.2.0', 'a2aug_timm', 'software')
    (paper,) = citation['references']
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    authors = [f'{author["given-names"][0]}. {author["family-names"]}' for author in paper['authors']]
    assert len(authors) == 7 and ', '.join(authors) in readme and paper['title'] in readme

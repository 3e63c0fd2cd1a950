"""Checks that two commands share."""
import pytest

from a2aug_timm.cli import checks as dataset_checks


@pytest.mark.parametrize('name, root, kind', [
    ('', 'images', 'a folder'), ('', 'images.tar', 'a tar file'), ('torch/mnist', 'x', 'torch/'),
    ('WDS/x', 'x', 'wds/'), ('sklearn/digits', None, 'sklearn/digits')])
def test_data_sets_are_of_timms_kinds(name, root, kind):
    assert dataset_checks.dataset_kind(name, root) == kind

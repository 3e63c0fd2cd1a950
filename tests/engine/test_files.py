"""Atomic files: each is whole, old or new, whatever happens while it is written."""
import os

import pytest

from a2aug_timm.engine.files import atomic_copy, atomic_link, atomic_write


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']


def test_a_copy_and_a_link_have_the_content_and_leave_no_other_file(tmp_path):
    source = tmp_path / 'source'
    source.write_text('content')
    (tmp_path / 'link').write_text('old')
    atomic_copy(source, tmp_path / 'copy')
    atomic_link(source, tmp_path / 'link')
    assert (tmp_path / 'copy').read_text() == (tmp_path / 'link').read_text() == 'content'
    assert (tmp_path / 'link').samefile(source) and not (tmp_path / 'copy').samefile(source)
    assert set(os.listdir(tmp_path)) == {'source', 'copy', 'link'}


def test_a_link_becomes_a_copy_where_the_file_system_has_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError
    monkeypatch.setattr(os, 'link', no_links)
    (tmp_path / 'source').write_text('content')
    atomic_link(tmp_path / 'source', tmp_path / 'link')
    assert (tmp_path / 'link').read_text() == 'content' and not (tmp_path / 'link').samefile(tmp_path / 'source')

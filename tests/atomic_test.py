# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of files that are there whole or not at all."""

import os
import pathlib
import shutil

import pytest

from moe_peft import atomic
from tests import refusals


def test_writes_text_and_bytes(tmp_path):
  atomic.write(tmp_path / 'a', 'é')
  atomic.write(tmp_path / 'a', 'è\n')
  atomic.write(tmp_path / 'b', b'\xff')
  assert (tmp_path / 'a').read_text(encoding='utf-8') == 'è\n'
  assert (tmp_path / 'b').read_bytes() == b'\xff'
  assert len(list(tmp_path.iterdir())) == 2


def test_failure_leaves_the_old_file_and_nothing_partial(tmp_path):
  target = tmp_path / 'a'
  target.write_text('old')
  with pytest.raises(UnicodeEncodeError):
    atomic.write(target, '\ud800')
  (tmp_path / 'folder').mkdir()
  with pytest.raises(OSError):
    atomic.write(tmp_path / 'folder', 'a file cannot replace a folder')
  assert target.read_text() == 'old'
  assert {entry.name for entry in tmp_path.iterdir()} == {'a', 'folder'}


def test_what_a_kill_has_left_of_a_file_goes(tmp_path, monkeypatch):
  inner = tmp_path / 'run'
  inner.mkdir()
  with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
    killed.setattr(os, 'fsync', lambda file: 1 / 0)
    killed.setattr(pathlib.Path, 'unlink', lambda *args, **options: None)
    atomic.write(inner / 'a', 'one')
  (left,) = inner.iterdir()
  (inner / 'mine.partial').touch()
  atomic.write(inner / 'b', 'two')
  atomic.remove_partial(tmp_path, tmp_path / 'none')
  assert left.exists()  # The folder within may be another run.
  atomic.remove_partial(inner)
  assert {x.name for x in inner.iterdir()} == {'mine.partial', 'b'}


def test_a_folder_appears_when_it_is_whole(tmp_path):
  out = tmp_path / 'out'
  with atomic.new_folder(out, '--out') as folder:
    (folder / 'file').write_text('one')
    assert not out.exists()
  assert (out / 'file').read_text() == 'one'
  with pytest.raises(ZeroDivisionError):
    with atomic.new_folder(tmp_path / 'other', '--out'):
      raise ZeroDivisionError
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_processes_of_containers_have_the_same_id(tmp_path, monkeypatch):
  """Pods share a disk, and in each of them the process has the number 1."""
  monkeypatch.setattr(os, 'getpid', lambda: 1)
  replace, target = os.replace, tmp_path / 'file'

  def meanwhile(partial, path):
    monkeypatch.setattr(os, 'replace', replace)
    atomic.write(target, 'of the other one')
    replace(partial, path)

  monkeypatch.setattr(os, 'replace', meanwhile)
  atomic.write(target, 'of the last one')
  assert target.read_text() == 'of the last one'
  with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
    killed.setattr(shutil, 'rmtree', lambda *args, **options: None)
    with atomic.new_folder(tmp_path / 'out', '--out'):
      raise ZeroDivisionError
  assert list(tmp_path.glob('.out.1.*'))
  with atomic.new_folder(tmp_path / 'out', '--out'):
    pass
  assert (tmp_path / 'out').is_dir()


def test_a_folder_is_replaced_by_force_only_and_kept(tmp_path):
  out = tmp_path / 'out'
  out.mkdir()
  for text in ('one', 'two', 'three'):
    with atomic.new_folder(out, '--out', force=text != 'one') as folder:
      (folder / 'file').write_text(text)
  with refusals.refused('--out', out, '--force', 'out.old'):
    with atomic.new_folder(out, '--out'):
      raise AssertionError('It is refused before any work.')
  assert (out / 'file').read_text() == 'three'
  assert (tmp_path / 'out.old' / 'file').read_text() == 'two'
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'out.old'}

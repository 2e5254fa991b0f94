# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checksums of the files of a checkpoint."""

import errno
import hashlib
import json
import os

import pytest

from moe_peft.training import checksums


@pytest.fixture(params=['today', 'sha256'])
def checkpoint(request, tmp_path):
  """A checkpoint with checksums of today, and one of an earlier version."""
  for name in ('state/d/0', 'state/_METADATA', 'notes/metadata'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(name.encode() * 1000)
  (tmp_path / '_CHECKPOINT_METADATA').write_text('no item')
  item = tmp_path / checksums.ITEM
  item.mkdir()
  if request.param == 'today':
    checksums.Handler().finalize(item)
  else:
    (item / 'sha256.json').write_text(json.dumps({
        str(file.relative_to(tmp_path)): (
            hashlib.sha256(file.read_bytes()).hexdigest()
        )
        for file in tmp_path.glob('*/**/*') if file.is_file()
    }))
  return tmp_path


def test_what_is_whole_is_not_damaged(checkpoint):
  assert checksums.damaged_file(checkpoint) is None
  (checkpoint / '_CHECKPOINT_METADATA').write_text('other')
  assert checksums.damaged_file(checkpoint) is None


@pytest.mark.parametrize('change', ['flip', 'cut', 'remove', 'add'])
def test_every_change_is_found(change, checkpoint):
  file = checkpoint / 'state' / 'd' / '0'
  content = bytearray(file.read_bytes())
  if change == 'flip':
    content[-1] ^= 1
    file.write_bytes(content)
  elif change == 'cut':
    file.write_bytes(content[:-1])
  elif change == 'remove':
    file.unlink()
  else:
    file = file.with_name('1')
    file.touch()
  assert checksums.damaged_file(checkpoint) == file


def test_an_empty_folder_is_no_checkpoint(tmp_path):
  """As a copy that was broken off leaves it."""
  assert checksums.damaged_file(tmp_path) == tmp_path / 'state'


def test_what_the_disk_does_not_give_back_is_damage(checkpoint, monkeypatch):
  def broken(file, digest):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(checksums, '_hash', broken)
  assert checksums.damaged_file(checkpoint) == checkpoint
  monkeypatch.undo()
  link = checkpoint / 'state' / 'd' / '1'
  link.symlink_to('nowhere')
  assert checksums.damaged_file(checkpoint) == link


def test_checksums_that_cannot_be_read_are_damage(checkpoint):
  (file,) = (checkpoint / checksums.ITEM).iterdir()
  file.write_text('[' * 5000)
  assert checksums.damaged_file(checkpoint) == file


@pytest.mark.slow
def test_a_checkpoint_without_checksums_is_believed(checkpoint):
  for file in (checkpoint / checksums.ITEM).iterdir():
    file.unlink()
  (checkpoint / checksums.ITEM).rmdir()
  assert checksums.damaged_file(checkpoint) is None

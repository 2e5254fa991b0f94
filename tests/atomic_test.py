# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of files that are there whole or not at all."""

import pytest

from moe_peft import atomic


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

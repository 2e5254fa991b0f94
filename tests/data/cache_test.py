# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `prepared.json` says is believed of the files of its folder alone."""

import json

import pytest

from moe_peft.data import cache
from moe_peft.data import packages
from tests import refusals
from tests.fuzz import formats

RECIPE = {'rows': 1, 'prompts': ['a', 'b'], 'version': '1'}


@pytest.fixture
def folder(tmp_path):
  formats.write_cache(tmp_path / 'cache')
  return tmp_path / 'cache'


def test_a_whole_cache_is_used_and_one_of_other_rows_is_refused(folder):
  assert cache.reuse(folder, RECIPE)['rows'] == {'train': 1}
  with refusals.refused(folder):
    cache.reuse(folder, {'rows': 2})


def test_a_record_that_names_a_file_elsewhere_is_none(folder):
  outside = folder.parent / 'outside'
  outside.write_text('x')
  file = folder / 'prepared.json'
  for name in ('../outside', str(outside), '/dev/zero'):
    record = json.loads(file.read_text())
    record['sha256'] = {name: packages.sha256(outside)}
    file.write_text(json.dumps(record))
    assert cache.read_record(folder) is None

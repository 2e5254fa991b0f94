# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the error that users see: one line with fields, also through gin."""

import gin
import pytest

from moe_peft import errors
from tests import refusals


@gin.configurable('errors_test.refuse')
def refuse():
  raise errors.UserError('It is wrong.', 'THING', 'Mend it.')


@gin.configurable('errors_test.use')
def use(value):
  return value


def test_gin_adds_no_line_and_the_fields_stay():
  with gin.unlock_config():
    gin.parse_config('errors_test.use.value = @errors_test.refuse()')
  with pytest.raises(errors.UserError) as info:
    gin.get_configurable('errors_test.use')()
  assert str(info.value) == 'THING: It is wrong. Mend it.'
  assert (info.value.where, info.value.remedy) == ('THING', 'Mend it.')


def test_what_is_wrong_is_named_once_however_short_its_name():
  assert str(errors.UserError('No results.', 'r')) == 'r: No results.'
  for what in ('r has no results.', '/x/r: is empty.', "No 'r' there."):
    assert str(errors.UserError(what, 'r')) == what


def test_lines_of_libraries_become_one():
  assert str(errors.UserError('a:\n  - b\n\nc')) == 'a: - b c'


@pytest.mark.slow
def test_what_foreign_code_raises_is_refused():
  with refusals.refused('MODEL', 'No.', 'KeyError', "'x'", 'Do.'):
    with errors.refused('No.', 'MODEL', 'Do.'):
      raise KeyError('x')
  with refusals.refused('THING'):
    with errors.refused('No.', 'MODEL'):
      refuse()

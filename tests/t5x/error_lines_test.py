# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's scripts end with one line where the user can mend it."""

import sys

import gin
import pytest

from moe_peft import errors

pytest.importorskip('t5x')
error_lines = pytest.importorskip('moe_peft.t5x.error_lines')
pytestmark = pytest.mark.t5x


@pytest.fixture(name='shown')
def _shown(capsys, monkeypatch):
  """What is printed of an error that a function raises."""
  monkeypatch.setattr(sys, 'excepthook', error_lines.show)

  def shown(function):
    try:
      function()
    except Exception:  # pylint: disable=broad-except
      sys.excepthook(*sys.exc_info())
    return capsys.readouterr().err

  return shown


def _raise(error):
  raise error


def test_errors_of_users_have_no_trace(shown):
  gin.clear_config()
  said = shown(lambda: _raise(errors.UserError('Wrong.', 'RANK', 'Mend it.')))
  assert said == 'error: RANK: Wrong. Mend it.\n'


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('MODEL_DIR = runs/mine', ('runs', 'quotes')),
        ("include 'gin/methods/mollora.gin'", ('mollora', 'molora.gin')),
        ('RANK = (1,', ('EOF',)),
    ],
)
def test_what_gin_cannot_read_has_none(shown, source, words):
  gin.clear_config()
  said = shown(lambda: gin.parse_config(source))
  assert said.startswith('error: ') and said.count('\n') == 1
  assert all(word in said for word in words), said


def test_other_errors_have_their_trace(shown):
  gin.clear_config()
  gin.finalize()
  try:
    assert 'Traceback' in shown(lambda: _raise(ValueError('ours')))
  finally:
    gin.clear_config()

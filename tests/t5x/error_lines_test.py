# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's scripts end with one line where the user can mend it."""

import importlib
import importlib.util
import sys
import types

import gin
import pytest

from moe_peft import errors

pytest.importorskip('t5x')
error_lines = pytest.importorskip('moe_peft.t5x.error_lines')
pytestmark = pytest.mark.t5x


@pytest.fixture(name='shown')
def _shown(capsys):
  """What is printed of an error that a function raises."""

  def shown(function):
    try:
      function()
    except Exception:  # pylint: disable=broad-except
      error_lines.show(*sys.exc_info())
    return capsys.readouterr().err

  gin.clear_config()
  yield shown
  gin.clear_config()


@pytest.mark.parametrize(
    ('main', 'is_shown'),
    [('t5x.train', True), ('t5x.eval', True), ('tests.refusals', False)],
)
def test_only_scripts_of_t5x_show_errors_so(monkeypatch, main, is_shown):
  """And what they do not show so is shown as it was before."""
  hook = lambda *args: None
  monkeypatch.setattr(sys, 'excepthook', hook)
  monkeypatch.setitem(sys.modules, '__main__', importlib.import_module(main))
  spec = importlib.util.find_spec('moe_peft.t5x.error_lines')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert sys.excepthook is (module.show if is_shown else hook)
  assert module._previous is hook


def _raise(error):
  raise error


def test_errors_of_users_have_no_trace(shown):
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
  said = shown(lambda: gin.parse_config(source))
  assert said.startswith('error: ') and said.count('\n') == 1
  assert all(word in said for word in words), said


@pytest.mark.parametrize('flag', ['RANK = ', 'RANK 2', 'MODEL_DIR = x'])
def test_a_flag_that_gin_cannot_read_is_named(shown, monkeypatch, flag):
  given = ['A = 1', flag, 'B = 2']
  known = {'gin_bindings': types.SimpleNamespace(value=given)}
  monkeypatch.setattr(error_lines.flags, 'FLAGS', known)
  said = shown(lambda: gin.parse_config(given))
  assert said.startswith('error: ') and said.count('\n') == 1
  assert f'--gin.{flag.strip()}' in said


def test_other_errors_have_their_trace(shown):
  gin.finalize()
  assert 'Traceback' in shown(lambda: _raise(ValueError('ours')))


FAULTY = {
    'absent': 'import no_such_module',
    'raises': "raise KeyError('theirs')",
}


@pytest.mark.parametrize('fault', FAULTY)
def test_what_others_raise_while_gin_is_parsed_has_its_trace(
    shown, tmp_path, monkeypatch, fault
):
  (tmp_path / f'{fault}_module.py').write_text(FAULTY[fault])
  monkeypatch.syspath_prepend(tmp_path)
  said = shown(lambda: gin.parse_config(f'import {fault}_module'))
  assert 'Traceback' in said and f'{fault}_module.py' in said


def test_of_what_a_users_code_raises_there_are_both(shown):
  """And so if gin raises it again, as where it calls T5X's script."""

  @gin.register(module='tests')
  def refusing():
    with errors.refused('It cannot be built.', 'MODEL'):
      _raise(AttributeError('theirs'))

  for function in (refusing, gin.get_configurable('tests.refusing')):
    said = shown(function)
    assert 'Traceback' in said and 'AttributeError: theirs' in said
    assert said.splitlines()[-1].startswith('error: MODEL: It cannot be built.')


def test_of_what_libraries_raise_there_is_one_line(shown):
  def refusing():
    with errors.refused('It cannot be built.', 'MODEL'):
      gin.parse_config('RANK = (1,')

  assert shown(refusing).count('\n') == 1

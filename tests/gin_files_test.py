# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of gin loading and its errors."""

import sys
import types

import gin
import pytest

from moe_peft import errors
from moe_peft import gin_files


@gin.configurable('command_line_test.target')
def target(steps=1, folder='', pair=()):
  return steps, folder, pair


CONFIG = """
STEPS = 3
FOLDER = %gin.REQUIRED
command_line_test.target:
  steps = %STEPS
  folder = %FOLDER
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'mine.gin'
  path.write_text(CONFIG)
  return str(path)


def test_bindings_override_files_and_strings_need_no_quotes(config):
  gin_files.load_gin([config], ['STEPS=5', 'FOLDER=some/dir'])
  assert target() == (5, 'some/dir', ())


def test_quoted_strings_and_structures_are_read_as_gin(config):
  gin_files.load_gin(
      [config],
      ['FOLDER="x y"', "command_line_test.target.pair={'a': (1, 2)}"],
  )
  assert target() == (3, 'x y', {'a': (1, 2)})


def test_references_may_be_given(config):
  gin_files.load_gin([config], ['FOLDER=%STEPS'])
  assert target() == (3, 3, ())


@pytest.mark.parametrize('folder', ['/x/50%', 'a@b', '100%/@x', 'x [%STEPS]'])
def test_signs_of_references_within_text_are_text(config, folder):
  gin_files.load_gin([config], [f'FOLDER={folder}'])
  assert target() == (3, folder, ())


def test_references_may_stand_in_structures(config):
  gin_files.load_gin(
      [config],
      ['FOLDER=x', 'command_line_test.target.pair=(1, %STEPS, {"a": %FOLDER})'],
  )
  assert target() == (3, 'x', (1, 3, {'a': 'x'}))


@pytest.mark.parametrize(
    ('files', 'bindings', 'words'),
    [
        (['nowhere.gin'], [], ['nowhere.gin']),
        (['configs/quickstrat.gin'], [], ['configs/quickstart.gin']),
        (None, ['STEP=5', 'FOLDER=x'], ['--gin.STEP', 'Did you mean STEPS']),
        (None, [], ['--gin.FOLDER=...']),
        (
            None,
            ['FOLDER=x', 'command_line_test.target.stps=1'],
            ['stps', 'Did you mean steps'],
        ),
        (
            None,
            ['FOLDER=x', 'command_line_test.targt.steps=1'],
            ['targt', 'Did you mean command_line_test.target'],
        ),
        (None, ['FOLDER=%FOLDR'], ['FOLDR is used but never set', 'FOLDER']),
    ],
)
def test_errors_name_the_thing_and_the_nearest(config, files, bindings, words):
  with pytest.raises(errors.UserError) as error:
    gin_files.load_gin(files or [config], bindings)
  for word in words:
    assert word in str(error.value)


def test_a_module_that_does_not_exist_is_a_user_error(tmp_path):
  path = tmp_path / 'x.gin'
  path.write_text('from __gin__ import dynamic_registration\nimport optaxx\n')
  with pytest.raises(errors.UserError, match='optaxx'):
    gin_files.load_gin([str(path)])


def test_files_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert gin_files.resource('configs/quickstart.gin').is_file()


@pytest.mark.slow
def test_gin_folders_hold_no_init_file():
  # gin/__init__.py would shadow the package gin-config.
  for folder in gin_files.RESOURCE_DIRS:
    assert not list(folder.glob('gin/**/__init__.py'))
  assert callable(gin.configurable)


def test_tensorflow_leaves_gpus_to_jax(monkeypatch):
  import tensorflow as tf

  hidden = []
  monkeypatch.setattr(
      tf.config, 'set_visible_devices', lambda *args: hidden.append(args)
  )
  gin_files.import_tensorflow()
  assert hidden == [([], 'GPU')]


def test_gin_files_of_t5x_are_told(monkeypatch):
  """Gin looks for the module of `import __main__` by its name."""
  spec = types.SimpleNamespace(name='moe_peft.train')
  monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
  said = gin_files.explained(KeyError('moe_peft.train'), 'leaf.gin')
  assert said.where == 'leaf.gin' and 't5x.train' in said.remedy

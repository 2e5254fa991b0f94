# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The choice of a size before T5X locks its configuration."""

import gin
import pytest

from moe_peft import gin_files
from tests import refusals

pytest.importorskip('t5x')
pytest.importorskip('moe_peft.t5x.gin_check')  # Its hooks.
settings = pytest.importorskip('moe_peft.t5x.settings')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


def test_paths_become_absolute_and_buckets_stay(tmp_path, monkeypatch):
  """Orbax refuses relative ones, but only at the first save."""
  monkeypatch.chdir(tmp_path)
  gin.clear_config()
  gin.parse_config(
      'from __gin__ import dynamic_registration\n'
      'import moe_peft.t5x.gin_check'
  )
  paths = {'MODEL_DIR': 'runs/mine', 'BASE_PATH': None,
           'INITIAL_CHECKPOINT_PATH': ['one', 'gs://bucket/two'],
           'CHECKPOINT_PATH': str(tmp_path / 'three')}
  for name, value in paths.items():
    gin.parse_config(f'{name} = {value!r}')
  gin.finalize()
  assert settings.macro('MODEL_DIR') == str(tmp_path / 'runs/mine')
  assert settings.macro('INITIAL_CHECKPOINT_PATH') == [
      str(tmp_path / 'one'), 'gs://bucket/two'
  ]
  assert settings.macro('BASE_PATH') is None
  assert settings.macro('CHECKPOINT_PATH') == str(tmp_path / 'three')


def test_a_relative_base_of_the_embedded_engine_stays():
  """It may ship with moe_peft."""
  gin.clear_config()
  gin.parse_config("INITIAL_CHECKPOINT_PATH = 'bases/tiny_t5'")
  gin.finalize()
  assert settings.macro('INITIAL_CHECKPOINT_PATH') == 'bases/tiny_t5'


@pytest.mark.parametrize('engine', ['t5x', 'embedded'])
def test_only_configurations_of_t5x_are_decided_here(engine):
  if engine == 'embedded':  # Its engine decides when it builds the experiment.
    gin_files.load_gin(
        ['configs/quickstart.gin'], ['MODEL_DIR=no', 'PARAM_BUDGET=0.05']
    )
    assert settings.macro('RANK') == 4
    return
  planning.load(
      ['configs/t0/large_lora_r8.gin'], ['PARAM_BUDGET=1000000'], ''
  )
  planned = planning.subject()
  assert gin.config_is_locked() and settings.macro('RANK') == 1
  assert planned.trainable_regex == settings.macro('TRAINABLE_REGEX')
  assert settings.macro('NO_SUCH_MACRO', 3) == 3


METHOD = """
from __gin__ import dynamic_registration
from moe_peft.core import site_updates
from moe_peft.core import trainable
from moe_peft.t5x import optimizer
trainable.by_path.updates = @site_updates.faster_b()
optimizer.AdapterOptimizer.rules = ()
OPTIMIZER = @optimizer.{}
"""


def test_the_optimizer_has_what_a_method_does_with_pairs():
  gin.clear_config()
  gin.parse_config(METHOD.format('AdapterOptimizer()'))
  gin.finalize()
  bound = gin.query_parameter(
      'moe_peft.t5x.optimizer.AdapterOptimizer.updates'
  )
  assert bound.selector == 'site_updates.faster_b'
  gin.clear_config()
  gin.parse_config(METHOD.format('AdapterMultiOptimizer()'))
  with refusals.refused('OPTIMIZER', 'AdapterMultiOptimizer'):
    gin.finalize()


def test_methods_that_begin_with_the_base_are_refused():
  gin.clear_config()
  gin.parse_config('STARTS_FROM_BASE = True')
  gin.finalize()  # The embedded engine takes them, in the same process too.
  gin.clear_config()
  gin.parse_config(
      'import moe_peft.t5x.gin_check\nSTARTS_FROM_BASE = True'
  )
  with refusals.refused('STARTS_FROM_BASE'):
    gin.finalize()

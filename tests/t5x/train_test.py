# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stock `t5x.train` with our gin files."""

import jax
import numpy as np
import pytest

from moe_peft import errors
from moe_peft import trainable
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A T5X checkpoint of the unchanged network, and its parameters."""
  folder = tmp_path_factory.mktemp('t5x') / 'base'
  state = training.train(training.BASE, folder)
  return str(folder / 'checkpoint_2'), training.flat_params(state)


def check_trained(state, base_params, steps):
  """The base is as it was, all adapters and only they have a state."""
  params = training.flat_params(state)
  frozen = {k: v for k, v in params.items() if not trainable.is_adapter(k)}
  assert frozen.keys() == base_params.keys()
  for path, value in frozen.items():
    np.testing.assert_array_equal(value, base_params[path], err_msg=path)
  assert int(state.step) == steps
  adapters = {k for k in params if trainable.is_adapter(k)}
  moved = {k for k in adapters if k.endswith('lora_b') and params[k].any()}
  assert moved == {k for k in adapters if k.endswith('lora_b')} != set()
  assert not any('expert' in path for path in params)
  # Adam has two moments of every trained parameter and nothing else.
  sizes = [x.size for x in jax.tree.leaves(state.param_states) if x.ndim]
  assert sum(sizes) == 2 * sum(params[k].size for k in adapters)


@pytest.mark.parametrize(
    'method,more',
    [
        ('molora', ''),
        ('sira', 'NUM_SELECTED_EXPERTS = 2'),
        ('moelora', "SITE_METRICS = ('router_entropy',)"),
    ],
)
def test_only_adapters_train(base, tmp_path, method, more):
  state = training.train(
      training.adapted(method, more),
      tmp_path / 'run',
      INITIAL_CHECKPOINT_PATH=base[0],
      TRAIN_STEPS=3,
      NUM_EXPERTS=3,
      RANK=2,
  )
  check_trained(state, base[1], 3)


def test_adapter_checkpoints_resume(base, tmp_path):
  config = training.adapted(
      'molora',
      more='CHECKPOINT_PERIOD = 2',
      run="include 'gin/runs/t5x_adapter_checkpoints.gin'",
  )
  # Schedules see the number of steps: keep it, and stop early.
  macros = dict(
      INITIAL_CHECKPOINT_PATH=base[0], NUM_EXPERTS=3, RANK=2,
      SCHEDULE_STEPS=8,
  )
  config += '\nschedules.warmup_cosine.train_steps = %SCHEDULE_STEPS\n'
  config = config.replace(
      'from t5x.examples', 'from moe_peft.training import schedules\n'
      'from t5x.examples', 1,
  )
  whole = training.train(config, tmp_path / 'a', TRAIN_STEPS=4, **macros)
  training.train(config, tmp_path / 'b', TRAIN_STEPS=2, **macros)
  resumed = training.train(config, tmp_path / 'b', TRAIN_STEPS=4, **macros)
  check_trained(resumed, base[1], 4)
  jax.tree.map(
      np.testing.assert_array_equal, whole.state_dict(), resumed.state_dict()
  )
  folder = tmp_path / 'b' / 'checkpoint_4'
  assert {p.name for p in folder.iterdir()} >= {'state', 'base', 'dataset'}

  # Another base of the same shapes.
  other = tmp_path / 'other'
  training.train(training.BASE, other, RANDOM_SEED=8)
  macros['INITIAL_CHECKPOINT_PATH'] = str(other / 'checkpoint_2')
  with pytest.raises(errors.UserError, match='were trained on the base'):
    training.train(config, tmp_path / 'b', TRAIN_STEPS=6, **macros)


def test_scan_trains_without_losses_and_refuses_them(tmp_path):
  config = training.adapted('molora')
  for ours, scanned in (
      ('examples.t5 ', 'examples.scalable_t5 '),
      ('t5x_tiny_t5', 't5x_tiny_scalable_t5'),
      ('t5x_examples_t5', 't5x_scalable_t5'),
  ):
    config = config.replace(ours, scanned)
  macros = dict(INITIAL_CHECKPOINT_PATH=[], TRAIN_STEPS=2, NUM_EXPERTS=3)
  state = training.train(config, tmp_path / 'run', **macros)
  assert int(state.step) == 2
  with pytest.raises(errors.UserError, match='scan'):
    training.train(config, tmp_path / 'no', AUX_LOSS_FACTOR=0.01, **macros)

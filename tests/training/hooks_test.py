# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What methods ask of the engine: starts from kernels, updates of pairs."""

import contextlib

import jax
import numpy as np
import pytest

from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from moe_peft.training import train_step
from tests.training import tiny

SITES = '.*/(query|wo)'


def prepared(folder, method, **bindings):
  bindings = {'SITES': SITES, **bindings}
  return experiment_lib.prepare(tiny.experiment(folder, method, **bindings))


def step(setup):
  state = train_step.init_state(setup)
  with setup.context():
    return train_step.make_train_step(setup)(
        state, setup.frozen, next(loop.train_data(setup.experiment))
    )


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, pytest.param(
    True, marks=pytest.mark.long)], ids=['unrolled', 'scanned'])
def test_adapters_begin_with_parts_of_the_base_that_was_read(tmp_path, scan):
  # The weights that the fresh network of another seed would not have.
  setup = prepared(tmp_path, 'pissa', SCAN_LAYERS=scan)
  params = {**setup.trainable, **setup.frozen}
  for path in params:
    layer, found, name = path.partition('/adapter/')
    if not found or name != 'lora_a':
      continue
    kernel = np.asarray(params[f'{layer}/kernel'], np.float32)
    a, b, kept_a, kept_b = (
        np.asarray(params[f'{layer}/adapter/{name}'])
        for name in ('lora_a', 'lora_b', 'frozen_a', 'frozen_b')
    )
    np.testing.assert_array_equal(a, kept_a)
    np.testing.assert_array_equal(b, kept_b)
    if scan:
      kernel, a, b = kernel[:, 0], a[:, 0], b[:, 0]
    kernel = kernel.reshape(a.shape[1], -1)
    u, s, v = np.linalg.svd(kernel, full_matrices=False)
    want = (u[:, :2] * s[:2]) @ v[:2]
    np.testing.assert_allclose(a[0] @ b[0] * 8.0, want, atol=1e-4)
  trained, everything = loop.count_params(setup)
  pair = trainable.num_params(
      {k: x for k, x in params.items() if '/lora_' in k}
  )
  assert (trained, everything) == (pair, trainable.num_params(params))


@pytest.mark.slow
def test_a_loss_of_two_passes_gets_their_logits(tmp_path):
  setup = prepared(tmp_path, 'adamix', NUM_EXPERTS=2, DROPOUT_RATE=0.5)
  _, metrics = step(setup)
  assert 0 < metrics['consistency_loss'].total < np.inf


@pytest.mark.slow
def test_a_run_from_parts_of_the_base_goes_on_with_them(tmp_path):
  tiny.load(tmp_path, 'goat', SITES=SITES, NUM_EXPERTS=2, CHECKPOINT_PERIOD=2)
  run.run_experiment()
  setup = prepared(tmp_path, 'goat', NUM_EXPERTS=2, CHECKPOINT_PERIOD=2)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    params = jax.device_get(loop.restore_params(setup, checkpointer))
  for path, fresh in setup.trainable.items():
    moved = np.abs(np.asarray(params[path]) - np.asarray(fresh)).max()
    assert (moved == 0) == trainable.is_constant(path), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'bindings'),
    [
        ('loraplus', {}),
        pytest.param(
            'riemannian', {'NUM_EXPERTS': 3, 'NUM_SELECTED_EXPERTS': 2},
            marks=pytest.mark.long,
        ),
    ],
)
def test_updates_of_pairs_are_part_of_the_optimizer(
    tmp_path, method, bindings
):
  setup = prepared(tmp_path, method, WARMUP_STEPS=0, **bindings)
  before = jax.device_get(setup.trainable)  # A step takes the arrays.
  state, metrics = step(setup)
  assert np.isfinite(metrics['loss'].total)
  moved = {
      path: np.abs(np.asarray(state.params[path]) - old).max()
      for path, old in before.items()
  }
  rates = {
      half: max(x for path, x in moved.items() if path.endswith(half))
      for half in ('lora_a', 'lora_b')
  }
  if method == 'loraplus':  # Adam's first step; lora_b is 0, so lora_a stays.
    rate = float(setup.experiment.learning_rate(0))
    assert rates['lora_a'] == 0
    np.testing.assert_allclose(rates['lora_b'], 16 * rate, rtol=1e-2)
  else:
    assert rates['lora_b'] > 0

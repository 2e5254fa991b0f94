# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Kernels in 8 and 4 bits: their errors, and that networks read them as floats.
"""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.training import base_identity
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import tensor_files
from moe_peft.training import train_step
from tests.training import tiny


def kernel(*shape):
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_int8_is_wrong_by_half_a_step_of_its_output_at_most():
  floats = kernel(96, 2, 8) * np.geomspace(1e-3, 1e3, 8, dtype=np.float32)
  stored = quantized.quantize(floats, 'int8', ('embed', 'heads', 'kv'))
  assert stored.values.dtype == np.int8
  assert stored.scales.shape == (1, 1, 2, 8)
  error = np.abs(stored.unbox() - floats) / stored.scales[0]
  assert error.max() <= 0.5 + 1e-3


def test_nf4_takes_its_own_values_for_what_they_are():
  values = np.asarray(quantized._NF4, np.float32)
  floats = np.tile(values, 8).reshape(128, 1) * np.float32([0.5, 4])
  stored = quantized.quantize(floats, 'nf4', ('embed', 'mlp'))
  np.testing.assert_array_equal(stored.unbox(), floats)
  assert stored.values.shape == (1, 64, 2)
  assert stored.scales.shape == (1, 2, 2)


def test_nf4_has_the_error_of_qlora():
  """About 9 % of normal weights in blocks of 64, and 4.25 bits a weight."""
  floats = kernel(512, 128)
  stored = quantized.quantize(floats, 'nf4', ('mlp', 'embed'))
  error = np.linalg.norm(stored.unbox() - floats) / np.linalg.norm(floats)
  assert 0.08 < error < 0.1
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(stored))
  assert num_bytes * 8 == 4.25 * floats.size


@pytest.mark.parametrize('kind', quantized.KINDS)
@pytest.mark.parametrize(
    ('shape', 'names'),
    [((48, 3, 2, 16), ('embed', 'layers', 'heads', 'kv')),
     ((2, 3, 16, 48), ('heads', 'layers', 'kv', 'embed')),
     ((48, 3, 40), ('mlp', 'layers', 'embed'))],
)
def test_layers_of_a_scan_are_quantized_by_themselves(kind, shape, names):
  floats = kernel(*shape)
  stored = quantized.quantize(floats, kind, names)
  assert stored.shape == (shape[1], shape[0], *shape[2:])
  for layer in range(3):
    alone = quantized.quantize(
        floats[:, layer], kind, (names[0], *names[2:])
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[:, layer], y),  # noqa: B023
        stored, alone,
    )


def test_zeros_stay_zeros():
  for kind in quantized.KINDS:
    stored = quantized.quantize(np.zeros((32, 4)), kind, ('embed', 'mlp'))
    np.testing.assert_array_equal(stored.unbox(), np.zeros((32, 4)))


def test_what_is_small_or_dear_stays_a_float():
  kind = lambda path, shape, names: quantized.kind_of(path, shape, names, 'nf4')
  mlp = ('embed', 'mlp')
  assert kind('decoder/mlp/wi/kernel', (64, 8), mlp) == 'nf4'
  head = 'decoder/logits_dense/kernel'
  assert kind(head, (64, 8), ('embed', 'vocab')) is None
  assert kind('decoder/mlp/wi/bias', (8,), ('mlp',)) is None
  assert kind('decoder/mlp/wi/adapter/kernel', (64, 8), mlp) is None
  assert kind('decoder/mlp/wi/kernel', (19, 8), mlp) is None  # No blocks.


def loss_and_gradient(setup, frozen):
  model = setup.experiment.model
  rng = np.random.default_rng(1)
  batch = {
      k: rng.integers(3, 200, x.shape, np.int32)
      for k, x in train_step.abstract_batch(setup).items()
  }

  def loss(trained, frozen):
    params = trainable.unflatten({**frozen, **trained})
    return model.loss(params, batch)[0]

  with setup.context():
    return jax.jit(jax.value_and_grad(loss))(setup.trainable, frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'options'),
    [('int8', {'NUM_MODEL_PARTITIONS': 2}),
     pytest.param('nf4', {'SCAN_LAYERS': True, 'REMAT_POLICY': 'full'},
                  marks=pytest.mark.long)],
)
def test_a_network_reads_the_floats(tmp_path, kind, options):
  """It has the loss and gradients as from the floats that the box holds."""
  experiment = tiny.experiment(
      tmp_path, BASE_DTYPE=kind, ACTIVATION_DTYPE='float32', **options
  )
  setup = experiment_lib.prepare(experiment)
  laid_out = experiment_lib.lay_out(experiment)
  describe = lambda tree: jax.tree.map(
      lambda x: (x.shape, x.dtype, x.sharding), tree
  )
  assert describe(setup.frozen) == describe(laid_out.frozen)
  boxed = lambda x: isinstance(x, quantized.QuantizedArray)
  kinds = {x.kind for x in setup.frozen.values() if boxed(x)}
  assert kinds == {kind}


  def floats_of(path, x):
    if not boxed(x):
      return x
    floats = np.asarray(x.unbox())
    if 'layers' in setup.axis_names[path]:
      floats = np.moveaxis(floats, 0, 1)
    return jnp.asarray(floats)

  floats = {k: floats_of(k, x) for k, x in setup.frozen.items()}
  assert trainable.num_params(setup.frozen) == trainable.num_params(floats)
  found, expected = (
      jax.device_get(loss_and_gradient(setup, x))
      for x in (setup.frozen, floats)
  )
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
      found, expected,
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['float32', 'nf4'])
def test_one_array_of_a_base_is_in_memory_at_a_time(
    tmp_path, monkeypatch, kind
):
  """And the run has the identity of the base as it is in its file."""
  experiment = tiny.experiment(
      tmp_path, 'lora', BASE_DTYPE=kind,
      INITIAL_CHECKPOINT_PATH='bases/tiny_t5', **tiny.FULL_SIZES,
  )
  seen, most = [], 0

  class Array(np.ndarray):
    pass

  read = tensor_files.LazyArrays.__getitem__

  def watched(self, name):
    nonlocal most
    array = read(self, name).astype(np.float32).view(Array)
    seen.append(weakref.ref(array))
    most = max(most, sum(x() is not None for x in seen))
    return array

  whole = bases.read_arrays(bases.find('bases/tiny_t5'))
  expected = base_identity.of('bases/tiny_t5', whole)
  monkeypatch.setattr(tensor_files.LazyArrays, '__getitem__', watched)
  monkeypatch.setattr(
      base_identity, 'of', lambda path, params: expected | {'of': path}
  )
  setup = experiment_lib.prepare(experiment)
  assert most <= 2  # One, and the one before it, which is being placed.
  assert setup.base == expected | {'of': 'bases/tiny_t5'}

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frozen parameters: no change, no state, no gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import trainable
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

ADAFACTOR = "include 'gin/runs/t5x_adafactor.gin'"
# Optax has both; three learning rates and weight decay for some.
OPTAX = """
optimizer.AdapterOptimizer.rules = (
    ('.*/router/.*', @router/optax.lion()),
    ('.*/lora_b', @optax.adafactor()),
    ('.*', @optax.lion()),
)
optax.lion:
  learning_rate = 0.003
  weight_decay = 0.1
router/optax.lion.learning_rate = 0.01
optax.adafactor.learning_rate = 0.1
"""
OPTAX_IMPORTS = 'import optax\nfrom moe_peft.t5x import optimizer'


@pytest.mark.parametrize(
    'imports,includes,more',
    [('', ADAFACTOR, ''), (OPTAX_IMPORTS, '', OPTAX)],
    ids=['t5x_adafactor', 'optax_lion_adafactor'],
)
def test_frozen_parameters_are_bit_equal_after_20_steps(
    bases, tmp_path, imports, includes, more
):
  base, base_params = bases('examples.t5')
  includes += "\ninclude 'gin/runs/t5x_adapter_checkpoints.gin'"
  config = networks.adapted(
      'molora', imports=imports, includes=includes,
      more=networks.FEW_SITES + more,
  )
  macros = dict(INITIAL_CHECKPOINT_PATH=base, NUM_EXPERTS=3, RANK=2)
  state = training.train(config, tmp_path, TRAIN_STEPS=20, **macros)
  params = training.flat_params(state)
  moved = 0
  for path, value in params.items():
    if trainable.is_adapter(path):
      moved += path.endswith('lora_b') and value.any()
    else:
      np.testing.assert_array_equal(value, base_params[path], err_msg=path)
  assert moved == sum(path.endswith('lora_b') for path in params)
  state_paths = trainable.flatten(state.state_dict()['state'])
  for path, value in state_paths.items():
    if 'adapter' not in path and value is not None:
      assert np.size(value) <= 1, path  # Counts of steps.
  # The last checkpoint is a whole one, whatever the optimizer.
  again = training.train(config, tmp_path, TRAIN_STEPS=20, **macros)
  jax.tree.map(
      np.testing.assert_array_equal, state.state_dict(), again.state_dict()
  )


# All different, and no power of two: a product of matrices with the shape of
# a kernel is a gradient of the kernel.
SIZES = """
network.T5Config:
  emb_dim = 24
  mlp_dim = 40
  num_heads = 7
  head_dim = 4
"""
KERNELS = {(24, 28), (28, 24), (24, 40), (40, 24), (24, 384), (384, 24)}


def products(folder, includes, **macros):
  """Shapes of all matrix products of a compiled training step."""
  from t5x import train_state as train_state_lib
  from t5x import trainer

  config = networks.adapted('molora', includes=includes, more=SIZES)
  macros |= dict(INITIAL_CHECKPOINT_PATH=[], TRAIN_STEPS=2, MODEL_DIR='no')
  macros |= dict(NUM_EXPERTS=3, RANK=2)
  names = [
      f'{side}_{name}'
      for side, name in (
          ('encoder', 'input_tokens'), ('decoder', 'input_tokens'),
          ('decoder', 'target_tokens'), ('decoder', 'loss_weights'),
      )
  ]
  batch = {
      name: jax.ShapeDtypeStruct((8, 9), jnp.int32) for name in names
  }
  with training.configured('train', config, folder, **macros) as main:
    import gin

    model = gin.get_bindings(main)['model']
    shapes = {name: value.shape for name, value in batch.items()}
    init = functools.partial(model.get_initial_variables, input_shapes=shapes)

    def make(rng):
      create = train_state_lib.FlaxOptimTrainState.create
      return create(model.optimizer_def, init(rng))

    state = jax.eval_shape(make, jax.random.key(0))
    step = functools.partial(
        trainer.train_with_lr,
        learning_rate=0.1,
        dropout_rng=jax.random.key(0),
        model=model,
        num_microbatches=macros.get('NUM_MICROBATCHES'),
    )
    text = jax.jit(step).lower(state, batch).compile().as_text()
  found = re.findall(r'= f32\[([\d,]+)\]\S* (?:dot|custom-call)\(', text)
  return {tuple(map(int, shape.split(','))) for shape in found}


@pytest.mark.parametrize(
    'includes,macros',
    [
        ('', {}),
        ('', {'NUM_MICROBATCHES': 2}),
        (ADAFACTOR, {}),
    ],
    ids=['adamw', 'adamw_microbatches', 't5x_adafactor'],
)
def test_no_gradient_of_a_frozen_kernel_is_computed(
    tmp_path, includes, macros
):
  found = products(tmp_path, includes, **macros)
  assert found
  assert not KERNELS & found


def test_gradients_of_trained_kernels_are_found(tmp_path):
  """So the test before would see them."""
  found = products(tmp_path, '', TRAINABLE_REGEX='.*')
  assert KERNELS <= {*found, *(shape[::-1] for shape in found)}

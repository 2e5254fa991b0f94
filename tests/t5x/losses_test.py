# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of adapters in T5X's models, stock ones and ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import losses
from moe_peft.core import trainable
from tests.t5x import networks
from tests.t5x import training

t5x_metrics = pytest.importorskip('t5x.metrics')
moe_models = pytest.importorskip('t5x.contrib.moe.models')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

STOCK = """
MODEL = @moe_models.MoeEncoderDecoderModel()
moe_models.MoeEncoderDecoderModel:
  module = %MODULE
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
  z_loss = %Z_LOSS
  loss_normalizing_factor = %LOSS_NORMALIZING_FACTOR
  aux_loss_factor = %AUX_LOSS_FACTOR
  router_z_loss_factor = %ROUTER_Z_LOSS_FACTOR
"""
STOCK_IMPORTS = 'from t5x.contrib.moe import models as moe_models'
TOKENS = np.array([[3, 4, 5, 6, 1, 0], [7, 8, 9, 1, 0, 0]], np.int32)
BATCH = {
    'encoder_input_tokens': TOKENS,
    'decoder_input_tokens': np.pad(TOKENS, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': TOKENS,
    'decoder_loss_weights': (TOKENS > 0).astype(np.int32),
}


def run(config, folder, rng=None):
  """Loss, metrics and flat gradients of a model as gin makes it."""
  macros = dict(
      INITIAL_CHECKPOINT_PATH=[],
      TRAIN_STEPS=2,
      MODEL_DIR='no',
      NUM_EXPERTS=3,
      NUM_SELECTED_EXPERTS=2,
      AUX_LOSS_FACTOR=0.5,
      ROUTER_Z_LOSS_FACTOR=0.1,
  )
  with training.configured('train', config, folder, **macros) as main:
    import gin

    model = gin.get_bindings(main)['model']
    shapes = {name: value.shape for name, value in BATCH.items()}
    params = model.get_initial_variables(jax.random.key(0), shapes)['params']
    params = jax.tree.map(  # Not at its beginning, where lora_b is zero.
        lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape),
        params,
    )
    grad = jax.jit(jax.value_and_grad(model.loss_fn, has_aux=True))
    (loss, metrics), grads = grad(params, BATCH, rng)
  metrics = {  # Of one step.
      name: metric.total
      for name, metric in metrics.items()
      if isinstance(metric, t5x_metrics.AveragePerStep)
  }
  return loss, metrics, trainable.flatten(dict(grads))


def test_the_stock_moe_model_understands_adapters(tmp_path):
  """T5X's `MoeEncoderDecoderModel`, unchanged, against ours."""
  ours = run(networks.adapted('sira'), tmp_path)
  stock = run(
      networks.adapted('sira', imports=STOCK_IMPORTS, more=STOCK), tmp_path
  )
  np.testing.assert_allclose(stock[0], ours[0], rtol=1e-6)
  names = ('auxiliary_loss', 'router_z_loss', *losses.METRICS[:3])
  assert moe_models.MOE_METRICS == names
  factors = {'auxiliary_loss': 0.5, 'router_z_loss': 0.1}
  for name in moe_models.MOE_METRICS:
    np.testing.assert_allclose(
        stock[1][f'experts/{name}'],
        factors.get(name, 1.0) * ours[1][f'adapters/{name}'],
        rtol=1e-5,
        err_msg=name,
    )
  assert stock[2].keys() == ours[2].keys()
  for path, grad in stock[2].items():
    np.testing.assert_allclose(grad, ours[2][path], atol=1e-6, err_msg=path)
    if path.endswith('router/kernel'):
      assert np.abs(grad).max() > 1e-4, path


def test_metrics_of_every_site_and_further_losses(tmp_path):
  config = networks.adapted(
      'moelora', more="SITE_METRICS = ('router_entropy',)"
  )
  loss, metrics, grads = run(config, tmp_path, jax.random.key(1))
  per_site = [name for name in metrics if name.endswith('/router_entropy')]
  # Query and value of three attentions, and the mean of all.
  assert len(per_site) == 2 * 3 + 1
  weighed = (
      0.5 * metrics['adapters/auxiliary_loss']
      + 0.1 * metrics['adapters/router_z_loss']
      + 0.01 * metrics['adapters/contrastive_loss']
  )
  np.testing.assert_allclose(
      loss, metrics['cross_ent_loss'] + metrics['z_loss'] + weighed, rtol=1e-5
  )

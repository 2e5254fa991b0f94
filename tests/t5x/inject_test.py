# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters on the unchanged networks of T5X."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import trainable
from moe_peft.methods import molora
from moe_peft.methods import mov

pytestmark = [pytest.mark.t5x, pytest.mark.slow]

SIZES = dict(
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=12,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.0,
)
TOKENS = jnp.array([[3, 4, 5, 1, 0], [5, 6, 7, 8, 1]])
PER_HEAD = functools.partial(
    routing.Router, scores=scores.HeadScores()
)
MOV = functools.partial(mov.MoV, num_experts=3, router_factory=PER_HEAD)
RULES = {
    'molora': (
        inject.OutputRule(
            '.*/(query|key|value|out|wi_0|wo)',
            functools.partial(molora.MoLoRA, num_experts=3),
        ),
    ),
    'mov': (
        inject.OutputRule('.*/(key|value)', MOV),
        inject.InputRule('.*/wo', MOV),
    ),
}


def networks():
  stock = pytest.importorskip('t5x.examples.t5.network')
  scalable = pytest.importorskip('t5x.examples.scalable_t5.network')
  return {
      't5': stock.Transformer(stock.T5Config(**SIZES)),
      'scan': scalable.Transformer(
          scalable.T5Config(
              **SIZES, scan_layers=True, remat_policy='minimal',
              param_scan_axis=1,
          )
      ),
  }


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def init(network):
  run = functools.partial(network.init, enable_dropout=False)
  return jax.jit(run)(jax.random.key(0), TOKENS, TOKENS, TOKENS)


@pytest.mark.parametrize('method', RULES)
@pytest.mark.parametrize('name', ['t5', 'scan'])
def test_stock_network(name, method):
  base = networks()[name]
  model = inject.AdaptedModule(base, RULES[method])
  variables, frozen = init(model), init(base)
  params = flat(variables['params'])
  kept = {k: v for k, v in params.items() if not trainable.is_adapter(k)}
  want = flat(frozen['params'])
  assert kept.keys() == want.keys()
  for path, value in want.items():
    np.testing.assert_array_equal(kept[path], value)
  axes = flat(variables['params_axes'])
  for path, value in params.items():
    assert len(axes[f'{path}_axes'].names) == value.ndim, path

  def apply(network, params):
    run = functools.partial(
        network.apply, enable_dropout=False, mutable=['intermediates']
    )
    return jax.jit(run)({'params': params}, TOKENS, TOKENS, TOKENS)

  outputs, state = apply(model, variables['params'])
  reference, _ = apply(base, frozen['params'])
  np.testing.assert_allclose(outputs, reference, atol=1e-6)
  metrics = losses.collect(state.get('intermediates', {}))
  if name == 't5':
    assert metrics['auxiliary_loss'].shape == ()
  else:  # Its scan does not lift what is sown: an error and no silent zero.
    with pytest.raises(errors.UserError, match='scan'):
      losses.total(metrics, {'auxiliary_loss': 0.01})


def test_cached_decoding():
  model = inject.AdaptedModule(networks()['t5'], RULES['molora'])
  params = init(model)['params']
  params = jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params
  )
  targets = jnp.array([[3, 4, 5, 6, 1], [5, 6, 7, 8, 1]])
  inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  run = functools.partial(model.apply, enable_dropout=False)
  encoded = jax.jit(functools.partial(run, method='encode'))(
      {'params': params}, TOKENS
  )
  decode = jax.jit(
      functools.partial(run, method='decode', mutable=['cache']),
      static_argnames=('decode', 'max_decode_length'),
  )
  want, _ = decode({'params': params}, encoded, TOKENS, inputs, targets)
  ones = jnp.ones_like(inputs)
  _, state = decode(
      {'params': params}, encoded, TOKENS, ones, ones, decode=True
  )
  for i in range(inputs.shape[1]):
    token = inputs[:, i : i + 1]
    got, state = decode(
        {'params': params, **state},
        encoded,
        TOKENS,
        token,
        token,
        decode=True,
        max_decode_length=inputs.shape[1],
    )
    np.testing.assert_allclose(got[:, 0], want[:, i], atol=2e-4)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scan and remat change neither results, gradients nor what adapters sow."""

import functools

from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import t5

UNROLLED = t5.T5Config(
    vocab_size=48,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=20,
    mlp_activations=('gelu', 'linear'),
)
CONFIGS = {
    f'{layout}-{policy}': UNROLLED.replace(
        scan_layers=layout == 'scan', remat_policy=policy
    )
    for layout in ('unrolled', 'scan')
    for policy in ('none', 'minimal', 'full')
}
NUM_EXPERTS = 3


class Router(nn.Module):
  """Scales the outputs of a layer by a routed factor and sows its loss."""

  @nn.compact
  def __call__(self, inputs, outputs):
    kernel = nn_partitioning.param_with_axes(
        'kernel',
        nn.initializers.normal(1.0),
        (inputs.shape[-1], NUM_EXPERTS),
        jnp.float32,
        axes=('mlp', 'unmodeled'),
        module=self,
    )
    probs = jax.nn.softmax(inputs @ kernel)
    usage = probs.mean((0, 1))
    loss = NUM_EXPERTS * jnp.sum(jnp.square(usage))
    self.sow('intermediates', 'auxiliary_loss', loss.reshape(1, 1, 1))
    self.sow('routing', 'combine_weights', probs)
    return outputs * (probs @ jnp.arange(1.0, 1 + NUM_EXPERTS))[..., None]


class Routed(nn.Module):
  """The model with a `Router` on every `wo`."""

  module: nn.Module

  def __post_init__(self):
    super().__post_init__()
    if self.scope is not None:
      nn.share_scope(self, self.module)

  @nn.compact
  def __call__(self, *args, **kwargs):
    def add_router(next_fun, args, kwargs, context):
      outputs = next_fun(*args, **kwargs)
      if context.method_name == '__call__' and context.module.name == 'wo':
        outputs = Router(name='adapter')(args[0], outputs)
      return outputs

    with nn.intercept_methods(add_router):
      return self.module(*args, **kwargs)


def make_batch():
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 48, (2, 2, 5))
  shifted = np.concatenate([np.zeros((2, 1), int), targets[:, :-1]], axis=1)
  return [jnp.asarray(x, jnp.int32) for x in (inputs, shifted, targets)]


def to_scan(params):
  """Moves parameters of `layers_i` to the layout of the scan."""
  flat = traverse_util.flatten_dict(params, sep='/')
  scanned = {}
  for path, leaf in flat.items():
    stack, *rest = path.split('/')
    if rest[0] == 'relpos_bias':
      scanned[f'{stack}/{stack}/{"/".join(rest)}'] = jnp.stack([leaf] * 2, 1)
    elif rest[0] == 'layers_0':
      both = [leaf, flat[path.replace('layers_0', 'layers_1')]]
      if rest[-2] in ('query', 'key', 'value'):
        both = [x.reshape(-1, 2, 8) for x in both]
      elif rest[-2] == 'out':
        both = [x.reshape(2, 8, -1) for x in both]
      scanned['/'.join([stack, stack, *rest[1:]])] = jnp.stack(both, 1)
    elif rest[0] != 'layers_1':
      scanned[path] = leaf
  return traverse_util.unflatten_dict(scanned, sep='/')


@functools.cache
def unrolled_params():
  tokens = jnp.ones((1, 4), jnp.int32)
  model = Routed(t5.Transformer(UNROLLED))
  variables = jax.jit(functools.partial(model.init, enable_dropout=False))(
      jax.random.key(0), tokens, tokens, tokens
  )
  return variables['params']


@functools.cache
def run(name, enable_dropout=False):
  """Logits, sown collections and gradients of one configuration."""
  config = CONFIGS[name]
  params = unrolled_params()
  if config.scan_layers:
    params = to_scan(params)
  batch = make_batch()

  def loss(params):
    logits, state = Routed(t5.Transformer(config)).apply(
        {'params': params},
        *batch,
        enable_dropout=enable_dropout,
        rngs={'dropout': jax.random.key(1)},
        mutable=['intermediates', 'routing'],
    )
    sown = jax.tree.leaves(state['intermediates'])
    assert sown, 'nothing was sown'
    auxiliary = sum(x.sum() for x in sown)
    return jnp.square(logits).mean() + auxiliary, (logits, state)

  grads, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logits, state, grads


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def is_bias(path):
  # The unrolled layout has one bias for a stack; the scan one per layer.
  return 'relpos_bias' in path


@pytest.mark.parametrize('name', [n for n in CONFIGS if n != 'unrolled-none'])
def test_equals_the_unrolled_model(name):
  logits, state, grads = run(name)
  expected_logits, expected_state, expected_grads = run('unrolled-none')
  np.testing.assert_allclose(logits, expected_logits, atol=1e-5)

  scanned = CONFIGS[name].scan_layers
  for collection, leaf_name in (
      ('intermediates', 'auxiliary_loss'),
      ('routing', 'combine_weights'),
  ):
    got, expected = flatten(state[collection]), flatten(
        expected_state[collection]
    )
    assert len(expected) == 4
    for stack in ('encoder', 'decoder'):
      per_layer = [
          expected[f'{stack}/layers_{i}/mlp/wo/adapter/{leaf_name}'][0]
          for i in range(2)
      ]
      if scanned:
        (values,) = got[f'{stack}/{stack}/mlp/wo/adapter/{leaf_name}']
      else:
        values = [
            got[f'{stack}/layers_{i}/mlp/wo/adapter/{leaf_name}'][0]
            for i in range(2)
        ]
      np.testing.assert_allclose(values, jnp.stack(per_layer), atol=1e-5)

  if scanned:
    expected_grads = to_scan(expected_grads)
  expected_grads, grads = flatten(expected_grads), flatten(grads)
  assert expected_grads.keys() == grads.keys()
  for path, expected in expected_grads.items():
    if scanned and is_bias(path):
      expected = expected[:, 0]
      np.testing.assert_allclose(
          grads[path].sum(1), expected, atol=2e-5, err_msg=path
      )
    else:
      np.testing.assert_allclose(
          grads[path], expected, atol=2e-5, err_msg=path
      )


def test_router_gradients_are_not_zero():
  _, _, grads = run('scan-full')
  kernel = grads['encoder']['encoder']['mlp']['wo']['adapter']['kernel']
  assert kernel.shape == (20, 2, NUM_EXPERTS)
  assert np.all(np.abs(kernel).max((0, 2)) > 1e-4)


@pytest.mark.parametrize('layout', ['unrolled', 'scan'])
@pytest.mark.parametrize('policy', ['minimal', 'full'])
def test_remat_repeats_the_dropout_of_the_forward_pass(layout, policy):
  expected = run(f'{layout}-none', enable_dropout=True)
  got = run(f'{layout}-{policy}', enable_dropout=True)
  np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
  expected, got = flatten(expected[2]), flatten(got[2])
  for path, leaf in got.items():
    np.testing.assert_allclose(leaf, expected[path], atol=2e-5, err_msg=path)
  without = flatten(run(f'{layout}-none')[2])
  assert any(np.abs(got[p] - without[p]).max() > 1e-2 for p in got)


def test_scanned_adapter_parameters_name_the_layer_axis():
  tokens = jnp.ones((1, 4), jnp.int32)
  for name in ('scan-none', 'scan-full'):
    model = Routed(t5.Transformer(CONFIGS[name]))
    variables = jax.eval_shape(
        lambda model=model: model.init(
            jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
        )
    )
    path = 'encoder/encoder/mlp/wo/adapter/kernel'
    axes = flatten(variables['params_axes'])[f'{path}_axes'].names
    assert axes == ('mlp', 'layers', 'unmodeled')
    assert flatten(variables['params'])[path].shape == (20, 2, NUM_EXPERTS)

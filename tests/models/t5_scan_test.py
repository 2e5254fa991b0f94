# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scan and remat change neither results, gradients nor what adapters sow."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.methods import molora
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
    'unrolled': UNROLLED,
    'unrolled-full': UNROLLED.replace(remat_policy='full'),
    'scan': UNROLLED.replace(scan_layers=True),
    'scan-minimal': UNROLLED.replace(scan_layers=True, remat_policy='minimal'),
    'scan-full': UNROLLED.replace(scan_layers=True, remat_policy='full'),
}
NUM_EXPERTS = 3


def adapted(name):
  """The model with MoLoRA on one layer of each kind of input."""
  molora_factory = functools.partial(
      molora.MoLoRA, num_experts=NUM_EXPERTS, rank=2
  )
  return inject.AdaptedModule(
      t5.Transformer(CONFIGS[name]),
      rules=(inject.OutputRule('.*/(key|wo)', molora_factory),),
  )


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
  """Initial values, but with adapters that do something."""
  tokens = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(adapted('unrolled').init, enable_dropout=False)
  params = jax.jit(init)(jax.random.key(0), tokens, tokens, tokens)['params']
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if 'adapter' not in jax.tree_util.keystr(path):
      return leaf
    return jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, params)


@functools.cache
def run(name, enable_dropout=False):
  """Logits, sown collections and gradients of one configuration."""
  params = unrolled_params()
  if CONFIGS[name].scan_layers:
    params = to_scan(params)

  def loss(params):
    logits, state = adapted(name).apply(
        {'params': params},
        *make_batch(),
        enable_dropout=enable_dropout,
        rngs={'dropout': jax.random.key(1)} if enable_dropout else {},
        mutable=['intermediates', 'routing'],
    )
    auxiliary = losses.collect(state['intermediates'])['auxiliary_loss']
    return jnp.square(logits).mean() + auxiliary, (logits, state)

  grads, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logits, state, grads


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def by_layer(sown):
  """Stacks what the layers have sown, `{stack/site/name: [layer, ...]}`."""
  stacked = {}
  for path, (values,) in flatten(sown).items():
    stack, layer, *rest = path.split('/')
    path = '/'.join([stack, *rest])
    if layer == stack:
      stacked[path] = values
    else:
      stacked.setdefault(path, [None, None])[int(layer[-1])] = values
  return {path: jnp.stack(list(values)) for path, values in stacked.items()}


def assert_same_sown(state, expected):
  sites = 2 + 3  # Layers with a router in an encoder and a decoder layer.
  for collection in ('intermediates', 'routing'):
    got, want = by_layer(state[collection]), by_layer(expected[collection])
    assert got.keys() == want.keys()
    names = {path.split('/')[-1] for path in got}
    assert len(got) == sites * len(names)
    for path, values in got.items():
      assert len(values) == 2
      np.testing.assert_allclose(values, want[path], atol=1e-5, err_msg=path)
  assert 'auxiliary_loss' in {p.split('/')[-1] for p in flatten(
      state['intermediates'])}


@pytest.mark.slow
def test_scan_equals_the_unrolled_model():
  """Logits, sown values and gradients, those of the routers among them."""
  logits, state, grads = run('scan')
  expected_logits, expected_state, expected_grads = run('unrolled')
  np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
  assert_same_sown(state, expected_state)
  grads, expected_grads = flatten(grads), flatten(to_scan(expected_grads))
  assert expected_grads.keys() == grads.keys()
  for path, expected in expected_grads.items():
    got = grads[path]
    if 'relpos_bias' in path:
      # The unrolled layout has one bias for a stack; the scan one per layer.
      expected, got = expected[:, 0], got.sum(1)
    atol = 1e-5 if 'router' in path else 2e-5
    np.testing.assert_allclose(got, expected, atol=atol, err_msg=path)
  for stack in ('encoder', 'decoder'):
    kernel = grads[f'{stack}/{stack}/mlp/wo/adapter/router/kernel']
    assert kernel.shape == (20, 2, NUM_EXPERTS)
    assert np.all(np.abs(kernel).max((0, 2)) > 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        pytest.param('unrolled-full', marks=pytest.mark.long),
        'scan-minimal',
        pytest.param('scan-full', marks=pytest.mark.long),
    ],
)
def test_remat_changes_nothing(name):
  """Also with dropout: the second forward pass repeats the masks."""
  plain = name.split('-')[0]
  logits, state, grads = run(name, enable_dropout=True)
  expected_logits, expected_state, expected_grads = run(
      plain, enable_dropout=True
  )
  np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
  assert_same_sown(state, expected_state)
  grads, expected_grads = flatten(grads), flatten(expected_grads)
  for path, leaf in grads.items():
    np.testing.assert_allclose(
        leaf, expected_grads[path], atol=2e-5, err_msg=path
    )
  assert np.abs(logits - run(plain)[0]).max() > 1e-2  # Dropout was on.


def test_scanned_adapter_parameters_name_the_layer_axis():
  tokens = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(adapted('scan-full').init, enable_dropout=False)
  variables = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens)
  axes, params = flatten(variables['params_axes']), flatten(variables['params'])
  adapter = 'encoder/encoder/mlp/wo/adapter'
  for name, names, shape in (
      ('lora_a', ('expert', 'layers', 'mlp', 'rank'), (NUM_EXPERTS, 2, 20, 2)),
      ('lora_b', ('expert', 'layers', 'rank', 'embed'),
       (NUM_EXPERTS, 2, 2, 12)),
      ('router/kernel', ('mlp', 'layers', 'unmodeled'), (20, 2, NUM_EXPERTS)),
  ):
    assert axes[f'{adapter}/{name}_axes'].names == names
    assert params[f'{adapter}/{name}'].shape == shape


@pytest.mark.slow
@pytest.mark.parametrize('name', ['unrolled', 'scan'])
def test_cached_decoding_with_adapters_equals_teacher_forcing(name):
  params = unrolled_params()
  params = to_scan(params) if CONFIGS[name].scan_layers else params
  inputs, shifted, targets = make_batch()
  model = adapted(name)
  apply = functools.partial(model.apply, enable_dropout=False)
  expected = jax.jit(apply)({'params': params}, inputs, shifted, targets)
  allocate = functools.partial(apply, decode=True, mutable=['cache'])
  _, variables = allocate({'params': params}, inputs, targets, targets)
  encoded = apply({'params': params}, inputs, method='encode')

  def step(cache, ids):
    logits, variables = apply(
        {'params': params, 'cache': cache},
        encoded,
        inputs,
        ids[:, None],
        ids[:, None],
        decode=True,
        max_decode_length=shifted.shape[1],
        mutable=['cache'],
        method='decode',
    )
    return variables['cache'], logits[:, 0]

  _, logits = jax.lax.scan(step, variables['cache'], shifted.T)
  np.testing.assert_allclose(
      jnp.swapaxes(logits, 0, 1), expected, atol=1e-5
  )

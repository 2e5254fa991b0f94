# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Behavior of the T5 network: masks, packing, dropout, types, the cache."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import partitioning
from moe_peft.models import t5
from tests import refusals

TINY = t5.T5Config(
    vocab_size=48,
    emb_dim=24,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=16,
    mlp_dim=40,
    mlp_activations=('gelu', 'linear'),
)
SCAN = TINY.replace(scan_layers=True)
BOTH = pytest.mark.parametrize('config', [TINY, SCAN], ids=['unrolled', 'scan'])


@functools.cache
def params_of(config):
  tokens = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(t5.Transformer(config).init, enable_dropout=False)
  return jax.jit(init)(jax.random.key(0), tokens, tokens, tokens)['params']


def make_batch(seed=0, encoder_length=7, decoder_length=6):
  rng = np.random.default_rng(seed)
  inputs = rng.integers(2, 48, (2, encoder_length))
  targets = rng.integers(2, 48, (2, decoder_length))
  shifted = np.concatenate([np.zeros((2, 1), int), targets[:, :-1]], axis=1)
  return [jnp.asarray(x, jnp.int32) for x in (inputs, shifted, targets)]


@functools.cache
def jitted(config):
  return jax.jit(
      t5.Transformer(config).apply,
      static_argnames=('enable_dropout', 'decode', 'mutable', 'method'),
  )


def logits_of(config, *batch, **kwargs):
  return jitted(config)(
      {'params': params_of(config)}, *batch, enable_dropout=False, **kwargs
  )


def shapes(tree):
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def test_parameter_tree():
  expected = {
      'token_embedder/embedding': (48, 24),
      'decoder/logits_dense/kernel': (24, 48),
  }
  for stack, self_attention in (('encoder', ''), ('decoder', 'self_')):
    expected[f'{stack}/relpos_bias/rel_embedding'] = (3, 32)
    expected[f'{stack}/{stack}_norm/scale'] = (24,)
    for layer in (f'{stack}/layers_0', f'{stack}/layers_1'):
      blocks = {f'{self_attention}attention': f'pre_{self_attention}attention'}
      if stack == 'decoder':
        blocks['encoder_decoder_attention'] = 'pre_cross_attention'
      for block, block_norm in {**blocks, 'mlp': 'pre_mlp'}.items():
        expected[f'{layer}/{block_norm}_layer_norm/scale'] = (24,)
        if block == 'mlp':
          continue
        for name in ('query', 'key', 'value'):
          expected[f'{layer}/{block}/{name}/kernel'] = (24, 48)
        expected[f'{layer}/{block}/out/kernel'] = (48, 24)
      expected[f'{layer}/mlp/wi_0/kernel'] = (24, 40)
      expected[f'{layer}/mlp/wi_1/kernel'] = (24, 40)
      expected[f'{layer}/mlp/wo/kernel'] = (40, 24)
  assert shapes(params_of(TINY)) == expected


@pytest.mark.slow
def test_scanned_parameter_tree():
  """Stack name twice, layer axis 1, separate heads, one bias per layer."""
  got = shapes(params_of(SCAN))
  decoder = 'decoder/decoder/encoder_decoder_attention'
  assert got['encoder/encoder/attention/query/kernel'] == (24, 2, 3, 16)
  assert got[f'{decoder}/out/kernel'] == (3, 2, 16, 24)
  assert got['encoder/encoder/mlp/wi_0/kernel'] == (24, 2, 40)
  assert got['encoder/encoder/relpos_bias/rel_embedding'] == (3, 2, 32)
  assert got['decoder/decoder/pre_mlp_layer_norm/scale'] == (24, 2)
  assert got['decoder/decoder_norm/scale'] == (24,)
  one_layer = [p for p in shapes(params_of(TINY)) if 'layers_1' not in p]
  assert len(got) == len(one_layer)


@BOTH
def test_every_parameter_dimension_has_an_axis_name(config):
  tokens = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(t5.Transformer(config).init, enable_dropout=False)
  variables = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens)
  names = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  names = {path: leaf.names for path, leaf in names.items()}
  for path, leaf in traverse_util.flatten_dict(
      variables['params'], sep='/'
  ).items():
    assert len(names[f'{path}_axes']) == leaf.ndim
    scanned = path.split('/')[0] == path.split('/')[1]
    assert ('layers' in names[f'{path}_axes']) == scanned


@pytest.mark.slow
@BOTH
def test_padding_changes_nothing_for_other_tokens(config):
  inputs, shifted, targets = make_batch()
  expected = logits_of(config, inputs, shifted, targets)

  def pad(x):
    return jnp.pad(x, ((0, 0), (0, 3)))

  # In the padding the decoder's inputs may be anything.
  padded = pad(shifted).at[:, -3:].set(5)
  got = logits_of(config, pad(inputs), padded, pad(targets))
  np.testing.assert_allclose(got[:, :-3], expected, atol=1e-5)


@BOTH
def test_packing_equals_separate_sequences(config):
  first, second = make_batch(1, 5, 4), make_batch(2, 6, 3)
  packed = [
      jnp.concatenate(pair, 1) for pair in zip(first, second, strict=True)
  ]
  got = logits_of(
      config,
      *packed,
      encoder_segment_ids=jnp.tile(jnp.array([1] * 5 + [2] * 6), (2, 1)),
      decoder_segment_ids=jnp.tile(jnp.array([1] * 4 + [2] * 3), (2, 1)),
      encoder_positions=jnp.tile(jnp.r_[0:5, 0:6], (2, 1)),
      decoder_positions=jnp.tile(jnp.r_[0:4, 0:3], (2, 1)),
  )
  np.testing.assert_allclose(
      got[:, :4], logits_of(config, *first), atol=1e-5
  )
  np.testing.assert_allclose(
      got[:, 4:], logits_of(config, *second), atol=1e-5
  )
  mixed = logits_of(config, *packed)
  assert np.abs(mixed - got).max() > 0.01  # The ids are what separates them.


@BOTH
def test_decoder_is_causal_and_encoder_is_not(config):
  inputs, shifted, targets = make_batch()
  expected = logits_of(config, inputs, shifted, targets)
  changed = shifted.at[:, 3].set(7)
  got = logits_of(config, inputs, changed, targets)
  np.testing.assert_array_equal(got[:, :3], expected[:, :3])
  assert np.all(np.abs(got - expected).max(-1)[:, 3:] > 1e-4)
  got = logits_of(config, inputs.at[:, -1].set(7), shifted, targets)
  assert np.all(np.abs(got - expected).max(-1) > 1e-5)


@BOTH
def test_bfloat16_is_close_to_float32(config):
  batch = make_batch()
  expected = logits_of(config, *batch)
  got = jitted(config.replace(dtype='bfloat16'))(
      {'params': params_of(config)}, *batch, enable_dropout=False
  )
  assert got.dtype == jnp.float32
  difference = np.abs(got - expected).max()
  # 8 bits of mantissa, logits of size about 3.
  assert 1e-6 < difference < 0.1


@pytest.mark.slow
@BOTH
def test_jit_equals_eager(config):
  batch = make_batch()
  eager = t5.Transformer(config).apply(
      {'params': params_of(config)}, *batch, enable_dropout=False
  )
  np.testing.assert_allclose(logits_of(config, *batch), eager, atol=1e-5)


@pytest.mark.slow
def test_tied_logits_are_scaled_products_with_the_embedding():
  tied = TINY.replace(logits_via_embedding=True)
  params = params_of(tied)
  assert 'logits_dense' not in params['decoder']
  untied = {**params, 'decoder': {
      **params['decoder'],
      'logits_dense': {
          'kernel': params['token_embedder']['embedding'].T / np.sqrt(24)
      },
  }}
  batch = make_batch()
  got = jitted(TINY)({'params': untied}, *batch, enable_dropout=False)
  np.testing.assert_allclose(got, logits_of(tied, *batch), atol=1e-5)


@pytest.mark.slow
@BOTH
def test_dropout_is_determined_by_its_key(config):
  batch = make_batch()

  def run(seed):
    return jitted(config)(
        {'params': params_of(config)},
        *batch,
        rngs={'dropout': jax.random.key(seed)},
    )

  np.testing.assert_array_equal(run(0), run(0))
  assert np.abs(run(0) - run(1)).max() > 0.01
  assert np.abs(run(0) - logits_of(config, *batch)).max() > 0.01
  without = jitted(config.replace(dropout_rate=0.0))(
      {'params': params_of(config)}, *batch, enable_dropout=True
  )
  np.testing.assert_allclose(without, logits_of(config, *batch), atol=1e-6)


@pytest.mark.slow
def test_dropout_differs_between_scanned_layers():
  """With one key for all layers both masks of the encoder would be equal."""
  config = SCAN.replace(dropout_rate=0.5)
  tokens = jnp.ones((1, 3), jnp.int32)
  _, state = t5.Transformer(config).apply(
      {'params': params_of(config)},
      tokens,
      method='encode',
      rngs={'dropout': jax.random.key(0)},
      capture_intermediates=lambda module, _: module.name == 'Dropout_0',
      mutable=['intermediates'],
  )
  mlp = state['intermediates']['encoder']['encoder']['mlp']
  (hidden,) = mlp['Dropout_0']['__call__']
  kept = np.asarray(hidden) != 0
  assert kept.shape == (2, 1, 3, 40)
  assert np.any(kept[0] != kept[1])


def cached_logits(config, inputs, shifted):
  """Feeds the decoder's inputs one by one."""
  model, params = t5.Transformer(config), params_of(config)
  encoded = logits_of(config, inputs, method='encode')
  ones = jnp.ones_like(shifted)
  _, variables = logits_of(
      config, jnp.ones_like(inputs), ones, ones, decode=True, mutable='cache'
  )

  def step(cache, token):
    logits, variables = model.apply(
        {'params': params, 'cache': cache},
        encoded,
        inputs,
        token[:, None],
        token[:, None],
        enable_dropout=False,
        decode=True,
        max_decode_length=shifted.shape[1],
        mutable=['cache'],
        method='decode',
    )
    return variables['cache'], logits[:, 0]

  _, logits = jax.lax.scan(step, variables['cache'], shifted.T)
  return variables['cache'], jnp.swapaxes(logits, 0, 1)


@pytest.mark.slow
@BOTH
def test_cached_decoding_equals_teacher_forcing(config):
  """Longer than 16 + 1 tokens, so that shared buckets are used."""
  inputs, shifted, targets = make_batch(3, 9, 30)
  inputs = inputs.at[1, 5:].set(0)
  expected = logits_of(config, inputs, shifted, targets)
  cache, got = cached_logits(config, inputs, shifted)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  layers = (2,) if config.scan_layers else ()
  cached = {p.split('/')[-1]: s for p, s in shapes(cache).items()}
  assert cached == {
      'cached_key': layers + (2, 3, 16, 30),
      'cached_value': layers + (2, 3, 16, 30),
      'cache_index': layers,
  }
  assert all('encoder_decoder' not in path for path in shapes(cache))


@pytest.mark.slow
def test_cache_of_another_length_is_an_error():
  inputs, shifted, _ = make_batch()
  model, params = t5.Transformer(TINY), params_of(TINY)
  cache, _ = cached_logits(TINY, inputs, shifted)
  encoded = jnp.zeros((2, 7, 24))
  decode = functools.partial(
      model.apply,
      {'params': params, 'cache': cache},
      encoded,
      inputs,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
      method='decode',
  )
  one = shifted[:, :1]
  with pytest.raises(ValueError, match='max_decode_length is 1 .* 6 positions'):
    decode(one, one)
  with pytest.raises(ValueError, match='one position per call, got 6'):
    decode(shifted, shifted, max_decode_length=6)


def test_packing_errors():
  batch = make_batch()
  ids = {'encoder_segment_ids': jnp.ones((2, 7), jnp.int32)}
  with pytest.raises(ValueError, match='both sides'):
    logits_of(TINY, *batch, **ids)
  ids['decoder_segment_ids'] = jnp.ones((2, 6), jnp.int32)
  with pytest.raises(ValueError, match='step by step'):
    logits_of(TINY, *batch, **ids, decode=True, mutable='cache')


@pytest.mark.parametrize(
    'field,value',
    [
        ('num_heads', 0),
        ('emb_dim', 24.0),
        ('vocab_size', None),
        ('remat_policy', 'most'),
        ('dropout_rate', 1.0),
        ('mlp_activations', ('gelu', 'linaer')),
    ],
)
def test_bad_config_is_a_user_error(field, value):
  config = TINY.replace(**{field: value})
  tokens = jnp.ones((1, 4), jnp.int32)
  with refusals.refused(f't5.T5Config.{field}'):
    t5.Transformer(config).init(jax.random.key(0), tokens, tokens, tokens)


@pytest.mark.slow
@BOTH
def test_eight_devices_compute_the_same_logits(config):
  """Mesh of data, expert and model axes; heads, MLP and vocabulary split."""
  config = config.replace(num_heads=4)
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(2, 48, (4, 5)), jnp.int32)
  expected = logits_of(config, tokens, tokens, tokens)
  mesh = partitioning.make_mesh(2, 2, jax.devices()[:8])
  apply = functools.partial(t5.Transformer(config).apply, enable_dropout=False)
  with partitioning.use_mesh(mesh):
    got = jax.jit(apply)({'params': params_of(config)}, tokens, tokens, tokens)
  assert got.sharding.spec == jax.sharding.PartitionSpec(
      ('data', 'expert'), None, 'model'
  )
  np.testing.assert_allclose(got, expected, atol=1e-5)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Our T5 against T5X's networks: parameters, logits, gradients, decoding."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import relative_positions
from moe_peft.models import t5

pytest.importorskip('t5x')
stock_t5 = pytest.importorskip('t5x.examples.t5.network')
scalable_t5 = pytest.importorskip('t5x.examples.scalable_t5.network')
pytestmark = pytest.mark.t5x

SIZES = {
    'vocab_size': 64,
    'emb_dim': 24,
    'num_heads': 3,
    'num_encoder_layers': 2,
    'num_decoder_layers': 3,
    'head_dim': 16,
    'mlp_dim': 40,
}
FAMILIES = {
    't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    't5_1_1': {'mlp_activations': ('gelu', 'linear')},
}
CASES = [(f, scan) for f in FAMILIES for scan in (False, True)]


def make_models(family, scan, **options):
  fields = {**SIZES, **FAMILIES[family], **options}
  ours = t5.Transformer(t5.T5Config(scan_layers=scan, **fields))
  if scan:
    return ours, scalable_t5.Transformer(
        scalable_t5.T5Config(scan_layers=True, **fields)
    )
  return ours, stock_t5.Transformer(stock_t5.T5Config(**fields))


@functools.cache
def batch():
  """Long enough for every bucket; padding on both sides."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, 64, (2, 150))
  targets = rng.integers(2, 64, (2, 140))
  inputs[0, 141:], targets[1, 120:] = 0, 0
  shifted = np.concatenate([np.zeros((2, 1), int), targets[:, :-1]], axis=1)
  return [jnp.asarray(x, jnp.int32) for x in (inputs, shifted, targets)]


@functools.cache
def initial(family, scan):
  tokens = jnp.ones((1, 4), jnp.int32)
  return [
      jax.jit(functools.partial(model.init, enable_dropout=False))(
          jax.random.key(0), tokens, tokens, tokens
      )
      for model in make_models(family, scan)
  ]


@pytest.mark.parametrize('family,scan', CASES)
def test_parameters_are_those_of_t5x(family, scan):
  """Paths, shapes, types, axis names, and initial values of the same key."""
  ours, stock = initial(family, scan)
  assert ours['params_axes'] == stock['params_axes']
  ours = traverse_util.flatten_dict(ours['params'], sep='/')
  stock = traverse_util.flatten_dict(stock['params'], sep='/')
  assert ours.keys() == stock.keys()
  for path, leaf in stock.items():
    assert ours[path].dtype == leaf.dtype == jnp.float32
    np.testing.assert_allclose(ours[path], leaf, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize('family,scan', CASES)
def test_logits_are_those_of_t5x(family, scan):
  params = initial(family, scan)[1]['params']
  got, expected = (
      jax.jit(functools.partial(model.apply, enable_dropout=False))(
          {'params': params}, *batch()
      )
      for model in make_models(family, scan)
  )
  assert np.abs(expected).max() > 2
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_packed_logits_and_gradients_are_those_of_t5x(scan):
  params = initial('t5_1_1', scan)[1]['params']
  rng = np.random.default_rng(1)
  tokens = jnp.asarray(rng.integers(2, 64, (2, 12)), jnp.int32)
  ids = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], jnp.int32)
  tokens = tokens * (ids > 0)

  def loss(params, model):
    logits = model.apply(
        {'params': params},
        tokens,
        tokens,
        tokens,
        encoder_segment_ids=ids,
        decoder_segment_ids=ids,
        enable_dropout=False,
    )
    valid = (ids > 0)[..., None]
    return jnp.sum(jax.nn.logsumexp(logits, -1, keepdims=True) * valid), logits

  (grads, logits), (stock_grads, stock_logits) = (
      jax.jit(jax.grad(functools.partial(loss, model=model), has_aux=True))(
          params
      )
      for model in make_models('t5_1_1', scan)
  )
  np.testing.assert_allclose(logits, stock_logits, atol=1e-5)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
      grads,
      stock_grads,
  )


@pytest.mark.parametrize('bidirectional', [True, False])
def test_position_buckets_are_those_of_t5x(bidirectional):
  from t5x.examples.t5 import layers as stock_layers

  distances = np.arange(-70_000, 70_001)
  for num_buckets, max_distance in ((32, 128), (64, 500)):
    np.testing.assert_array_equal(
        relative_positions.relative_position_bucket(
            distances, bidirectional, num_buckets, max_distance
        ),
        stock_layers.RelativePositionBiases._relative_position_bucket(
            distances, bidirectional, num_buckets, max_distance
        ),
    )


@pytest.mark.parametrize('scan,num_decodes', [(False, 1), (True, 2)])
def test_t5x_model_class_decodes_with_our_network(scan, num_decodes):
  """`EncoderDecoderModel.predict_batch`: greedy, and beam search."""
  import seqio
  from t5x import decoding
  from t5x import models

  decode_fn = decoding.beam_search
  if num_decodes == 1:
    decode_fn = functools.partial(decoding.temperature_sample, topk=1)
  vocabulary = seqio.PassThroughVocabulary(size=64, eos_id=1)
  inputs = jnp.asarray(
      np.random.default_rng(0).integers(2, 64, (3, 9)), jnp.int32
  ).at[1, 6:].set(0)
  features = {
      'encoder_input_tokens': inputs,
      'decoder_input_tokens': jnp.zeros((3, 20), jnp.int32),
  }
  params = initial('t5_1_1', scan)[1]['params']
  (tokens, aux), (stock_tokens, stock_aux) = (
      jax.jit(
          functools.partial(
              models.EncoderDecoderModel(
                  module, vocabulary, vocabulary, None, decode_fn=decode_fn
              ).predict_batch_with_aux,
              num_decodes=num_decodes,
              return_all_decodes=True,
          )
      )(params, features)
      for module in make_models('t5_1_1', scan)
  )
  assert tokens.shape == (3, num_decodes, 20)
  assert np.any(tokens)
  np.testing.assert_array_equal(tokens, stock_tokens)
  np.testing.assert_allclose(aux['scores'], stock_aux['scores'], rtol=1e-4)

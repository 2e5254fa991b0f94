# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Networks whose adapters are told an id of each example: one LoRA for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft.core import id_scores
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.data import converters
from moe_peft.methods import molora
from moe_peft.models import decoder
from moe_peft.models import decoder_config
from moe_peft.models import decoder_only
from moe_peft.models import encoder_decoder
from moe_peft.models import t5
from tests.refusals import refused

SIZES = dict(
    vocab_size=384, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    dtype=jnp.float32,
)
LENGTHS = {'inputs': 8, 'targets': 4}
ROWS = (  # Inputs, targets, 1 + id.
    ([5, 6, 7], [8, 1], 2), ([9, 5], [6, 7, 1], 1), ([8], [9, 1], 2),
)
VOCABULARY = seqio.ByteVocabulary()


def with_rule(network, make):
  """The network with an adapter on some layers."""
  return inject.AdaptedModule(
      network, (inject.OutputRule('.*/(value|wo)', make),)
  )


def adapted(network):
  """One LoRA for each of two ids."""
  router = functools.partial(
      routing.Router, scores=id_scores.ExpertOfId(ids=2),
      select=selection.TopK(k=1),
  )
  return with_rule(network, functools.partial(
      molora.MoLoRA, num_experts=2, rank=2, router_factory=router
  ))


@functools.cache
def network(kind):
  if kind == 't5':
    return adapted(t5.Transformer(t5.T5Config(
        num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.0, **SIZES
    )))
  return adapted(decoder.Transformer(
      decoder_config.DecoderConfig(num_layers=1, num_kv_heads=1, **SIZES)
  ))


def model(kind):
  make = (
      encoder_decoder.EncoderDecoderModel if kind == 't5'
      else decoder_only.DecoderOnlyModel
  )
  return make(network(kind), VOCABULARY, VOCABULARY)


@functools.cache
def params(kind):
  return filled(model(kind))


def filled(made_of):
  """Random parameters of a model, those of adapters large."""
  made = jax.jit(lambda key: made_of.init(key, LENGTHS))(jax.random.key(0))

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    noise = np.random.default_rng(list(name.encode())).normal(size=leaf.shape)
    return leaf + 0.5 * noise.astype(np.float32) * ('adapter' in name)

  return jax.tree_util.tree_map_with_path(fill, jax.device_get(made['params']))


def dataset(rows=ROWS, with_ids=True):
  made = [
      {'inputs': i, 'targets': t} | ({'example_ids': [n]} if with_ids else {})
      for i, t, n in rows
  ]
  return tf.data.Dataset.from_generator(
      lambda: ({k: np.int32(x) for k, x in row.items()} for row in made),
      output_signature=dict.fromkeys(made[0], tf.TensorSpec([None], tf.int32)),
  )


def batch(kind, rows=ROWS, pack=False, with_ids=True, lengths=LENGTHS):
  converter = converters.of_model(model(kind), pack)
  made = list(converter(dataset(rows, with_ids), lengths).as_numpy_iterator())
  return jax.tree.map(lambda *x: jnp.stack(x), *made)


@functools.cache
def score(kind):
  return jax.jit(model(kind).score)


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind', [pytest.param('t5', marks=pytest.mark.long), 'decoder']
)
def test_packed_examples_are_told_their_own_ids(kind):
  packed = batch(kind, pack=True, lengths={'inputs': 8, 'targets': 8})
  assert packed['example_ids'].shape[0] == 1, 'All rows fit into one.'
  assert packed['example_ids'][0, :3].tolist() == [2, 1, 2]
  alone = score(kind)(params(kind), batch(kind))
  together = jax.jit(model(kind).score)(params(kind), packed)
  np.testing.assert_allclose(together, [alone.sum()], rtol=1e-5)
  others = [(i, t, 3 - n) for i, t, n in ROWS]
  changed = score(kind)(params(kind), batch(kind, others))
  assert np.abs(alone - changed).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['t5', 'decoder'])
@pytest.mark.parametrize('num_beams', [1, 2])
def test_generation_is_told_ids(kind, num_beams):
  ours, rows = model(kind), batch(kind)
  made = params(kind)
  generate = jax.jit(lambda ids: ours.generate(
      made, ours.prompts(rows)[:, :8], 4, num_beams=num_beams, example_ids=ids,
  ))
  ids = rows['example_ids']
  both, first, second = (
      np.asarray(generate(x)) for x in (ids, 0 * ids + 1, 0 * ids + 2)
  )
  assert (first != second).any()
  for row, number in enumerate(ids[:, 0]):
    np.testing.assert_array_equal(both[row], (first, second)[number - 1][row])


@pytest.mark.slow
def test_ids_that_are_missing_are_refused_before_anything_runs():
  rows = batch('decoder', with_ids=False)
  assert 'example_ids' not in rows
  with refused('EXAMPLE_IDS'):
    jax.eval_shape(model('decoder').score, params('decoder'), rows)
  bare = model('decoder').without_adapters()
  told, not_told = (
      jax.make_jaxpr(bare.score)(params('decoder'), x)
      for x in (batch('decoder'), rows)
  )
  assert len(told.eqns) == len(not_told.eqns)

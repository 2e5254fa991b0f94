# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the methods that are told ids: counts, equations, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import routing
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import flix
from moe_peft.methods import moelora_id
from moe_peft.methods import molora
from moe_peft.methods import mtl_lora
from tests.refusals import refused

KEY = jax.random.key(0)


def routed(make, scores, **options):
  select = options.pop('select', None)
  parts = {'scores': scores} | ({'select': select} if select else {})
  router = functools.partial(routing.Router, **parts)
  return make(router_factory=router, **options)


def moelora(**options):
  scores = moelora_id.EmbeddedIdScores(ids=8)
  return routed(moelora_id.MOELoRAOfIds, scores, **options)


def mtl(**options):
  scores = mtl_lora.SharpIdScores(ids=8)
  return routed(mtl_lora.MTLLoRA, scores, ids=8, **options)


def features(dropout=0.0):
  scores = flix.FeatureScores(
      ids=3, features=(('de', 'qa'), ('fr', 'qa'), ('fr',))
  )
  return routed(
      molora.MoLoRA, scores, select=flix.Added(dropout=dropout), num_experts=3,
      rank=2,
  )


def told(*numbers):
  return tokens_lib.Tokens(example_ids=jnp.array(numbers)[:, None])


def filled(adapter, size=4):
  inputs = jnp.zeros((1, 1, size))
  made = adapter.init(KEY, inputs, inputs)['params']
  noise = lambda x: x + jnp.sin(jnp.arange(x.size)).reshape(x.shape)
  return jax.tree.map(noise, made)


def test_counts_are_those_of_the_released_code():
  """At a layer of 4,096 by 4,096 with 8 tasks (papers' own sizes)."""
  inputs = jax.ShapeDtypeStruct((1, 1, 4096), jnp.float32)
  for adapter, number in ((moelora(), 132_160), (mtl(), 131_608)):
    shapes = jax.eval_shape(adapter.init, KEY, inputs, inputs)['params']
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == number


@pytest.mark.slow
def test_moelora_of_liu_weighs_experts_by_an_embedding():
  adapter = moelora(dropout=0.0)
  params = filled(adapter)
  x = jax.random.normal(KEY, (2, 3, 4))
  got = adapter.apply({'params': params}, x, jnp.zeros_like(x), told(5, -1))
  router = params['router']
  for row, place in ((0, 6), (1, 0)):  # Row 0 of the table is that of no id.
    weights = jax.nn.softmax(router['table'][place] @ router['kernel'])
    each = jnp.einsum(
        'li,eir,ero->elo', x[row], params['lora_a'], params['lora_b']
    )
    want = jnp.einsum('e,elo->lo', weights, each) * 16 / (8 * 2)
    np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-5)
  assert moelora(rank_stabilized=True).scale == 16 / 4


@pytest.mark.slow
def test_mtl_lora_turns_and_weighs():
  adapter = mtl()
  params = filled(adapter)
  x = jax.random.normal(KEY, (1, 3, 4))
  got = adapter.apply({'params': params}, x, jnp.zeros_like(x), told(2))
  weights = jax.nn.softmax(params['router']['table'][2] / 0.1)
  lora_b = jnp.einsum('n,nro->ro', weights, params['lora_b'])
  want = 2 * x[0] @ params['lora_a'][0] @ params['core'][2] @ lora_b
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_flix_adds_the_features_of_an_example():
  adapter = features()
  params = filled(adapter)
  x = jax.random.normal(KEY, (1, 3, 4))
  x = jnp.repeat(x, 3, axis=0)
  run = lambda rng=None, dropout=0.0: features(dropout).apply(
      {'params': params}, x, jnp.zeros_like(x), told(0, 1, 2),
      rngs={'dropout': rng} if rng is not None else {},
  )
  each = 8 * jnp.einsum(
      'li,eir,ero->elo', x[0], params['lora_a'], params['lora_b']
  )
  de, qa, fr = each
  for got, want in zip(run(), (de + qa, fr + qa, fr), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  # What is left of a row is as before.
  dropped = run(KEY, 0.5)
  sums = [a * fr + b * qa for a in (0, 1) for b in (0, 1)]
  assert any(np.allclose(dropped[1], x, rtol=1e-4, atol=1e-5) for x in sums)


def test_a_feature_that_is_taken_away_is_not_added():
  router = routing.Router(
      3, select=flix.Added(),
      scores=flix.FeatureScores(ids=2, features=(('de', 'qa'), ('fr', 'qa'))),
  )
  active = jnp.array([True, False, True])
  x = jnp.zeros((2, 1, 4))
  weights = router.apply({}, x, told(0, 1), active=active).combine_weights
  np.testing.assert_array_equal(weights[:, 0], [[1, 0, 0], [0, 0, 1]])


def test_features_must_fit():
  scores = flix.FeatureScores(ids=2, features=(('a',), ('b',)))
  x = jnp.zeros((1, 1, 4))
  with refused('NUM_EXPERTS', '2'):
    routed(molora.MoLoRA, scores, num_experts=3).init(KEY, x, x)
  scores = flix.FeatureScores(ids=3, features=(('a',), ('b',)))
  with refused('FEATURES', '3'):
    routed(molora.MoLoRA, scores, num_experts=2).init(KEY, x, x)

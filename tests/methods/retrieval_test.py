# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Retrieval over a bank: whose examples an example is like."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import bank
from moe_peft.methods import retrieval
from tests import refusals

IN, OUT, RANK = 6, 4, 2
ENCODER = sites.Site(causal=False)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def examples(direction, rng, rows=8, length=5):
  """Rows of tokens around a direction, of different numbers of real tokens."""
  valid = np.arange(length) < rng.integers(2, length + 1, size=(rows, 1))
  x = direction + 0.3 * rng.normal(size=(rows, length, IN))
  return np.where(valid[..., None], x, 100.0).astype(np.float32), valid


def means(x, valid):
  """The mean of the real tokens of each row, scaled to length 1."""
  total = (x * valid[..., None]).sum(1)
  return unit(total / valid.sum(1, keepdims=True))


def index(x, valid, steps=300):
  """The centroid that an expert learns from rows, as a run would."""
  module = retrieval.IndexedExpert(rank=RANK, site=ENCODER)
  tokens = tokens_lib.Tokens(valid=jnp.asarray(valid))
  outputs = jnp.zeros((*x.shape[:2], OUT))
  frozen = jax.jit(module.init)(jax.random.key(0), x, outputs, tokens)['params']
  frozen.pop('centroid')

  def loss(centroid):
    _, state = module.apply(
        {'params': {**frozen, 'centroid': centroid}}, x, outputs, tokens,
        mutable=['intermediates'],
    )
    found = losses.collect(state['intermediates'])
    return losses.total(found, {'retrieval_loss': 1.0})

  optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

  @jax.jit
  def step(centroid, state):
    updates, state = optimizer.update(jax.grad(loss)(centroid), state)
    return optax.apply_updates(centroid, updates), state

  centroid = jnp.zeros(IN)
  state = optimizer.init(centroid)
  for _ in range(steps):
    centroid, state = step(centroid, state)
  return np.asarray(centroid)


def test_what_is_learned_is_the_mean_embedding_and_leads_home():
  rng = np.random.default_rng(0)
  directions = 2 * unit(rng.normal(size=(3, IN)))
  own = [examples(d, rng) for d in directions]
  centroids = np.stack([index(*rows) for rows in own], axis=1)
  for column, rows in zip(centroids.T, own, strict=True):
    np.testing.assert_allclose(column, means(*rows).mean(0), atol=1e-3)

  module = bank.Bank(
      num_experts=3, rank=RANK, alpha=RANK, site=ENCODER,
      router_factory=functools.partial(
          routing.Router, scores=retrieval.RetrievalScores(),
          select=selection.TopK(k=1, normalize=True),
      ),
  )
  for home, direction in enumerate(directions):
    x, valid = examples(direction, rng)  # Others than it has learned from.
    tokens = tokens_lib.Tokens(valid=jnp.asarray(valid))
    outputs = jnp.zeros((*x.shape[:2], OUT))
    params = jax.jit(module.init)(
        jax.random.key(1), x, outputs, tokens
    )['params']
    params['router'] = {'centroids': jnp.asarray(centroids)}
    _, state = module.apply(
        {'params': params}, x, outputs, tokens, mutable=['routing']
    )
    gates = state['routing']['combine_weights'][0]
    np.testing.assert_allclose(gates[..., home], valid, atol=1e-6)
    nearest = (means(x, valid) @ unit(centroids.T).T).argmax(-1)
    assert np.all(nearest == home)


def learned(site, x, tokens):
  """What a centroid of zero is drawn to, the mean embedding of a batch."""
  module = retrieval.IndexedExpert(rank=RANK, site=site)
  outputs = jnp.zeros((*x.shape[:2], OUT))
  params = jax.jit(module.init)(jax.random.key(0), x, outputs, tokens)['params']

  def loss(centroid):
    _, state = module.apply(
        {'params': {**params, 'centroid': centroid}}, x, outputs, tokens,
        mutable=['intermediates'],
    )
    return losses.collect(state['intermediates'])['retrieval_loss']

  return -jax.grad(loss)(jnp.zeros(IN))


def test_tokens_count_where_examples_share_a_row_or_see_only_what_came():
  x = np.random.default_rng(2).normal(size=(2, 6, IN)).astype(np.float32)
  segments = jnp.array([[1, 1, 2, 2, 2, 0], [0] * 6])  # A row of padding.
  first, second = unit(x[0, :2].mean(0)), unit(x[0, 2:5].mean(0))
  packed = tokens_lib.Tokens(valid=segments > 0, segment_ids=segments)
  np.testing.assert_allclose(
      learned(ENCODER, x, packed), (2 * first + 3 * second) / 5, atol=1e-6
  )
  in_prompt = jnp.array([[1, 1, 1, 0, 0, 0], [0] * 6], bool)
  alone = tokens_lib.Tokens(valid=segments > 0, in_prompt=in_prompt)
  so_far = [unit(x[0, : min(n, 3)].mean(0)) for n in range(1, 6)]
  np.testing.assert_allclose(
      learned(sites.Site(), x, alone), np.mean(so_far, axis=0), atol=1e-6
  )


def test_gates_are_a_softmax_of_cosines_without_who_is_not_there():
  rng = np.random.default_rng(1)
  x, valid = examples(unit(rng.normal(size=IN)), rng)
  centroids = rng.normal(size=(IN, 3)).astype(np.float32)
  centroids[:, 1] = 0.0
  router = routing.Router(
      num_experts=3, reads=routing.Features(causal=False),
      scores=retrieval.RetrievalScores(temperature=0.5),
  )
  found = router.apply(
      {'params': {'centroids': centroids}}, x,
      tokens_lib.Tokens(valid=jnp.asarray(valid)),
  ).combine_weights
  there = [0, 2]
  cosines = means(x, valid) @ unit(centroids.T[there]).T
  want = np.zeros((*x.shape[:2], 3))
  want[..., there] = np.asarray(jax.nn.softmax(cosines / 0.5))[:, None]
  np.testing.assert_allclose(found[valid], want[valid], atol=1e-5)


@pytest.mark.parametrize('temperature', [0.0, -1.0])
def test_a_temperature_that_is_none_is_refused(temperature):
  with refusals.refused('TEMPERATURE', temperature):
    routing.Router(
        num_experts=2, reads=routing.Features(causal=False),
        scores=retrieval.RetrievalScores(temperature=temperature),
    ).init(jax.random.key(0), jnp.ones((1, 2, IN)))

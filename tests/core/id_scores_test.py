# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of routing by an id that is given with an example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import id_scores
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import lora
from moe_peft.methods import molora
from tests.refusals import refused

NUM_IDS, RANK, LENGTH, FEATURES = 3, 2, 5, 4
NAMES = ('red', 'green', 'blue')
KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (2, LENGTH, FEATURES))


def one_lora_an_id(ids=NAMES, **options):
  router = functools.partial(
      routing.Router,
      scores=id_scores.ExpertOfId(ids=ids),
      select=selection.TopK(k=1),
  )
  return molora.MoLoRA(
      num_experts=NUM_IDS, rank=RANK, router_factory=router, **options
  )


def filled(adapter):
  """Random parameters of an adapter."""
  made = adapter.init(KEY, INPUTS, jnp.zeros_like(INPUTS))
  leaves, tree = jax.tree.flatten(made['params'])
  keys = jax.random.split(KEY, len(leaves))
  return {'params': jax.tree.unflatten(tree, [
      jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ])}


def told(*rows):
  """Tokens of unpacked rows with these ids."""
  given = 1 + jnp.array(rows, jnp.int32)[:, None]
  return tokens_lib.with_example_ids(tokens_lib.Tokens(), given)


@pytest.mark.parametrize('execution', ['all_experts', 'ragged'])
def test_an_id_is_its_own_lora(execution):
  adapter = one_lora_an_id(execution=execution)
  params = filled(adapter)
  outputs = jnp.zeros_like(INPUTS)
  got = adapter.apply(params, INPUTS, outputs, told(0, 2))
  for row, number in ((0, 0), (1, 2)):
    alone = {
        'params': {
            name: x[number : number + 1]
            for name, x in params['params'].items()
        }
    }
    want = lora.LoRA(rank=RANK).apply(alone, INPUTS, outputs)
    np.testing.assert_allclose(got[row], want[row], rtol=1e-5, atol=1e-6)
  assert not np.allclose(got[0], adapter.apply(
      params, INPUTS, outputs, told(1, 2)
  )[0])


def test_ids_of_packed_rows_are_those_of_tokens():
  segments = jnp.array([[1, 1, 2, 2, 0], [1, 2, 3, 3, 3]])
  given = jnp.array([[3, 1, 0, 0], [1, 3, 2, 0]])
  tokens = tokens_lib.with_example_ids(
      tokens_lib.Tokens(segment_ids=segments), given
  )
  np.testing.assert_array_equal(
      tokens.example_ids, [[2, 2, 0, 0, -1], [0, 2, 1, 1, 1]]
  )
  adapter = one_lora_an_id()
  params = filled(adapter)
  packed = adapter.apply(params, INPUTS, jnp.zeros_like(INPUTS), tokens)
  for token, number in ((1, 2), (2, 0)):
    alone = adapter.apply(
        params, INPUTS[:1], jnp.zeros_like(INPUTS[:1]), told(number)
    )
    np.testing.assert_allclose(packed[0, token], alone[0, token], rtol=1e-5)


def test_a_learned_table_gives_each_id_its_weights():
  router = routing.Router(NUM_IDS, scores=id_scores.IdScores(ids=4))
  tokens = told(3, 1)
  params = router.init(KEY, INPUTS, tokens)['params']
  assert params['table'].shape == (4, NUM_IDS)
  weights = router.apply({'params': params}, INPUTS, tokens).combine_weights
  for row, number in enumerate((3, 1)):
    want = jnp.broadcast_to(
        jax.nn.softmax(params['table'][number]), weights[row].shape
    )
    np.testing.assert_allclose(weights[row], want, rtol=1e-6)


def test_without_its_expert_an_id_has_none():
  router = routing.Router(
      NUM_IDS, scores=id_scores.ExpertOfId(ids=NUM_IDS),
      select=selection.TopK(k=1),
  )
  active = jnp.array([False, True, True])
  result = router.apply({}, INPUTS, told(0, 2), active=active)
  for row, want in enumerate(([0, 0, 0], [0, 0, 1])):
    np.testing.assert_array_equal(result.combine_weights[row], [want] * LENGTH)


@pytest.mark.slow
def test_ids_that_are_missing_are_refused():
  adapter = one_lora_an_id()
  params = filled(adapter)
  with refused('EXAMPLE_IDS', 'local.register_task', 'infer'):
    adapter.apply(params, INPUTS, INPUTS, tokens_lib.Tokens())
  with refused('EXAMPLE_IDS'):
    one_lora_an_id(ids=None).init(KEY, INPUTS, INPUTS)
  with refused('NUM_EXPERTS', '2'):
    one_lora_an_id(ids=2).init(KEY, INPUTS, INPUTS)

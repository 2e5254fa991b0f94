# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Means over the prompt so far: numbers by hand."""

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from moe_peft.core import prompt_means
from moe_peft.core import tokens as tokens_lib

X = jnp.asarray([[[2.0], [4.0], [9.0], [5.0]]])


class Router(nn.Module):

  @nn.compact
  def __call__(self, features, tokens):
    return prompt_means.so_far(self, features, tokens)[..., 0]


def mask(*values):
  return jnp.asarray([values], bool)


def test_the_mean_stops_where_the_prompt_does():
  tokens = tokens_lib.Tokens(in_prompt=mask(1, 1, 0, 0))
  assert Router().apply({}, X, tokens).tolist() == [[2, 3, 3, 3]]


def test_each_packed_example_has_its_own():
  tokens = tokens_lib.Tokens(
      in_prompt=mask(1, 0, 1, 1), segment_ids=jnp.asarray([[1, 1, 2, 2]])
  )
  assert Router().apply({}, X, tokens).tolist() == [[2, 2, 9, 7]]


def test_without_a_prompt_it_is_0():
  tokens = tokens_lib.Tokens(in_prompt=mask(0, 0, 0, 0))
  assert Router().apply({}, X, tokens).tolist() == [[0, 0, 0, 0]]


def test_a_cache_goes_on_and_the_first_step_is_of_the_prompt():
  room = tokens_lib.Tokens(cached=True)
  _, cache = Router().apply({}, X, room, mutable=['cache'])
  read = tokens_lib.Tokens(in_prompt=mask(1, 1, 0, 0), cached=True)
  found, cache = Router().apply(cache, X, read, mutable=['cache'])
  np.testing.assert_allclose(found, [[2, 3, 3, 3]])
  for value, mean in ((9.0, 5.0), (100.0, 5.0)):
    found, cache = Router().apply(
        cache, jnp.full((1, 1, 1), value), room, mutable=['cache']
    )
    assert found.tolist() == [[mean]]

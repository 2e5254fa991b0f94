# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routing by an id that is given with an example: its task, language, client.

The ids come with the data (data/example_ids.py) and reach a router as
`Tokens.example_ids`. They say nothing of the tokens, so such a router is causal
and mixes no rows. For one id all experts together are one low-rank update.
"""

from collections.abc import Sequence
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib


def count(ids: Sequence[str] | int | None, what: str) -> int:
  """Returns how many ids there are.

  Args:
    ids: EXAMPLE_IDS: their names, or their number.
    what: What depends on them.

  Raises:
    errors.UserError: If there are none.
  """
  if ids is None:
    tokens_lib.Tokens().require_example_ids(what)
  return ids if isinstance(ids, int) else len(ids)


def one_hot(
    module: nn.Module, tokens: tokens_lib.Tokens | None, num_ids: int
) -> jax.Array:
  """Returns the ids, <float32>[batch or 1, length or 1, num_ids].

  All zero where a token has no id. While a network is initialized nothing is
  known of examples yet.

  Args:
    module: The router or adapter that asks.
    tokens: What is known of the tokens.
    num_ids: Number of ids.

  Raises:
    errors.UserError: If no ids are given.
  """
  if module.is_initializing():
    return jnp.zeros((1, 1, num_ids))
  tokens = tokens_lib.Tokens() if tokens is None else tokens
  ids = tokens.require_example_ids('The method')
  return jax.nn.one_hot(ids, num_ids, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdScores(scores.TokenScores):
  """Logits of the id of an example, which are learned: a row of a table (ours).

  Attributes:
    ids: EXAMPLE_IDS, the names of the ids or their number.
  """

  # Initial values of the table.
  init = staticmethod(scores.KERNEL_INIT)

  ids: Sequence[str] | int | None

  def check(self, router):
    count(self.ids, 'A router by id')

  @property
  def num_ids(self) -> int:
    return count(self.ids, 'A router by id')

  @property
  def per_row(self):
    return True

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    table = router.param_with_axes(
        'table', self.init, (self.num_ids, router.num_experts),
        (None, 'unmodeled'),
    )
    return one_hot(router, tokens, self.num_ids) @ table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertOfId(IdScores):
  """Each id has an expert of its own, and uses it alone. Nothing is learned."""

  learned = False

  def check(self, router):
    if self.num_ids != router.num_experts:
      raise errors.UserError(
          f'There are {self.num_ids} ids in EXAMPLE_IDS, and NUM_EXPERTS = '
          f'{router.num_experts}; each id has an expert of its own.',
          where='NUM_EXPERTS',
          remedy=f'Set it to {self.num_ids}.',
      )

  def logits(self, router, inputs, tokens, product):
    mine = one_hot(router, tokens, self.num_ids)
    return selection.mask(jnp.zeros_like(mine), mine > 0)

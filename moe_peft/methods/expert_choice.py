# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Expert choice (arXiv 2202.09368): each expert takes its best tokens.

Experts are MoLoRA's. Every expert has `capacity_factor * length / num_experts`
slots in a row and fills them with the tokens of highest probability; a token
may get any number of experts, and the load is balanced without a loss. Since a
token competes with later ones, decoders refuse it. From the paper: the
selection, the weights (probabilities). Ours: capacity factor 2, also at
evaluation, and groups of one row.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import capacity as capacity_lib
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChooseTokens(selection.Soft):
  """Every token competes for every expert; the highest probabilities win."""

  limits_evaluation = True
  priority = 'probability'

  def check(self, router):
    self._check_dropout()
    if router.reads.causal:
      raise errors.UserError(
          'Expert choice compares a token with later ones and is for encoders '
          'only.',
          where='SITES',
          remedy='Restrict SITES to encoder layers, for example SITES = '
          "'.*encoder/.*/(wi_0|wo)', or use another method.",
      )
    if router.capacity is None:
      raise errors.UserError(
          'Expert choice needs a capacity: the slots that experts fill.',
          where='expert_choice.ExpertChoiceRouter.capacity',
          remedy='Bind it to @capacity.Capacity() and set CAPACITY_FACTOR.',
      )

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    return self.decide(probs, probs, jnp.ones(probs.shape, bool))


class ExpertChoiceRouter(routing.Router):
  """Experts choose tokens."""

  select: Any = ChooseTokens()
  capacity: capacity_lib.Capacity | None = capacity_lib.Capacity(
      capacity_factor=2.0
  )


class ExpertChoice(molora.MoLoRA):
  """MoLoRA whose experts choose their tokens."""

  num_experts: int = 8
  router_factory: Callable[..., routing.Router] = ExpertChoiceRouter

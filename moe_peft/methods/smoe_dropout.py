# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMoE-Dropout (arXiv 2303.01610): a frozen random router and a growing k.

  k(step) = round((k - first_k) * step / growth_steps) + first_k

The gate is the softmax over the selected logits, which is the normalized
softmax. At evaluation k has its last value. From the paper: 16 experts, k from
8 to 16. The paper's experts are slices of the MLP, ours are LoRA pairs.

The router keeps its initial value: its kernel gets no gradient, and the gin
file's TRAINABLE_REGEX leaves it out.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True)
class FrozenScores(scores.TokenScores):
  """Logits of a kernel that keeps its initial value."""

  learned = False

  def kernel(self, router, features, axis):
    return jax.lax.stop_gradient(super().kernel(router, features, axis))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowingTopK(selection.TopK):
  """Selects more and more experts; `k` is the last number of them.

  Attributes:
    first_k: Selected experts at step 0.
    growth_steps: Steps until `k`; None: `k` throughout.
  """

  k: int | None = 16
  normalize: bool = True
  first_k: int = 8
  growth_steps: int | None = None

  def check(self, router):
    super().check(router)
    if not 1 <= self.first_k <= self.k:
      raise errors.UserError(
          f'FIRST_K = {self.first_k} is not between 1 and '
          f'NUM_SELECTED_EXPERTS = {self.k}.',
          where='FIRST_K',
      )

  def num_selected(self, context):
    """Returns k at this step, a number or a traced <int32>[]."""
    if self.growth_steps is None or not context.training:
      return self.k
    step = context.tokens.step
    if step is None:
      raise errors.UserError(
          f'GROWTH_STEPS = {self.growth_steps} needs the training step.',
          where='GROWTH_STEPS',
          remedy='Call the model with step=<int32>[], as the embedded engine '
          'does. For a constant number of experts, as under T5X, bind '
          'GROWTH_STEPS = None.',
      )
    done = jnp.minimum(step / self.growth_steps, 1.0)
    return jnp.round((self.k - self.first_k) * done).astype(int) + self.first_k


class SMoEDropoutRouter(routing.Router):
  """A frozen random router that selects more and more experts."""

  scores: Any = FrozenScores()
  select: Any = GrowingTopK()


class SMoEDropout(molora.MoLoRA):
  """MoLoRA under SMoE-Dropout's router."""

  num_experts: int = 16
  router_factory: Callable[..., routing.Router] = SMoEDropoutRouter

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMoE-Dropout (arXiv 2303.01610): a frozen random router and a growing k.

  k(step) = round((num_selected_experts - first_k) * step / growth_steps) +
            first_k

The gate is the softmax over the selected logits, which is the renormalised
softmax. At evaluation k has its last value. From the paper: 16 experts, k from
8 to 16. The paper's experts are slices of the MLP, ours are LoRA pairs.

The router keeps its initial value: its kernel gets no gradient, and the gin
file's TRAINABLE_REGEX leaves it out.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import routing
from moe_peft.methods import molora


class SMoEDropoutRouter(routing.Router):
  """A frozen random router that selects more and more experts.

  Attributes:
    first_k: Selected experts at step 0; `num_selected_experts` is the last.
    growth_steps: Steps until then; None: `num_selected_experts` throughout.
  """

  selection: str = 'top_k'
  num_selected_experts: int | None = 16
  renormalise: bool = True
  frozen: bool = True
  first_k: int = 8
  growth_steps: int | None = None

  @nn.nowrap
  def num_selected(self, tokens: routing.Tokens):
    """Returns k at this step, a number or a traced <int32>[]."""
    last_k = self.num_selected_experts
    training = self.has_rng('dropout') and not self.is_initializing()
    if self.growth_steps is None or not training:
      return last_k
    if tokens.step is None:
      raise errors.UserError(
          f'GROWTH_STEPS = {self.growth_steps} needs the training step: call '
          'the model with step=<int32>[], as the embedded engine does. For a '
          'constant number of experts, as under T5X, bind GROWTH_STEPS = None.'
      )
    done = jnp.minimum(tokens.step / self.growth_steps, 1.0)
    return jnp.round((last_k - self.first_k) * done).astype(int) + self.first_k


class SMoEDropout(molora.MoLoRA):
  """MoLoRA under SMoE-Dropout's router."""

  num_experts: int = 16
  router_factory: Callable[..., Any] = SMoEDropoutRouter

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoDE (arXiv 2408.01505): one lora_a, and a router for each of its ranks.

  outputs + alpha / rank * sum_j h_j sum_e w_je lora_b[e, j]
  h = inputs @ lora_a

Each rank j chooses softly, per token, among num_experts rows. From a summary of
the paper (its text was not at hand): the equation. Ours: rank and alpha, the
defaults of MoLoRA.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax.numpy as jnp

from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.methods import hydralora


class MoDERouter(routing.Router):
  """A distribution over experts for each rank of a token.

  Attributes:
    rank: Number of ranks.
  """

  rank: int = 4

  @nn.nowrap
  def units_per_token(self) -> int:
    return self.rank

  @nn.nowrap
  def score_tokens(self, inputs, tokens, beside):
    """Returns (logits [batch, length * rank, num_experts], None, product)."""
    del tokens
    batch, length, features = inputs.shape
    kernel = partitioning.param_with_axes(
        'kernel',
        nn.initializers.normal(stddev=self.kernel_stddev),
        (features, self.rank * self.num_experts),
        jnp.float32,
        axes=(self.in_axis, 'unmodeled'),
        module=self,
    )
    logits = inputs.astype(jnp.float32) @ kernel
    logits = logits.reshape(batch, length * self.rank, self.num_experts)
    product = None if beside is None else low_rank.project(inputs, beside)
    return logits, None, product


class MoDE(hydralora.HydraLoRA):
  """A shared `lora_a`, and a mixture of rows of `lora_b` for each rank."""

  alpha: float = 16.0
  router_factory: Callable[..., Any] = MoDERouter

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('each rank of a token has its own experts.')
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    hidden = inputs.astype(dtype) @ lora_a[0].astype(dtype)
    decision = self.route(inputs, tokens, rank=self.rank)
    if decision is not None:
      weights = decision.combine_weights.astype(dtype)
      weights = weights.reshape(*hidden.shape, self.num_experts)
      hidden = (hidden[..., None] * weights).reshape(*hidden.shape[:2], -1)
    rows = lora_b.astype(dtype).swapaxes(0, 1).reshape(-1, outputs.shape[-1])
    update = hidden @ rows * (self.alpha / self.rank)
    return outputs + update.astype(outputs.dtype)

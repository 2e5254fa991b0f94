# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoDE (arXiv 2408.01505): one lora_a, and a router for each of its ranks.

  outputs + alpha / rank * sum_j h_j sum_e w_je lora_b[e, j]
  h = inputs @ lora_a

Each rank j chooses softly, per token, among num_experts rows. From a summary of
the paper (its text was not at hand): the equation. Ours: rank and alpha, the
defaults of MoLoRA.
"""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.core import scores
from moe_peft.methods import hydralora


@dataclasses.dataclass(frozen=True)
class RankScores(scores.TokenScores):
  """Logits for each rank of a token.

  Attributes:
    rank: Number of ranks.
  """

  rank: int = 4

  def units(self, router):
    return self.rank

  def kernel(self, router, features, axis):
    return router.param_with_axes(
        'kernel', scores.KERNEL_INIT,
        (features, self.rank * router.num_experts), (axis, 'unmodeled'),
    )

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    batch, length, features = inputs.shape
    kernel = self.kernel(router, features, router.reads.axis)
    logits = low_rank.project(
        inputs.astype(jnp.float32), low_rank.rows(kernel)
    )
    return logits.reshape(batch, length * self.rank, router.num_experts)


class MoDE(hydralora.HydraLoRA):
  """A shared `lora_a`, and a mixture of rows of `lora_b` for each rank."""

  alpha: float = 16.0

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('each rank of a token has its own experts.')
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    rows = dispatch.down_rows(lora_a.astype(dtype))
    hidden = low_rank.project(inputs.astype(dtype), rows)
    decision = self.route(inputs, tokens, scores=RankScores(rank=self.rank))
    if decision is not None:
      weights = decision.combine_weights.astype(dtype)
      weights = weights.reshape(*hidden.shape, self.num_experts)
      hidden = (hidden[..., None] * weights).reshape(*hidden.shape[:2], -1)
    rows = (lora_b * self.scale).astype(dtype).swapaxes(0, 1)
    update = low_rank.expand(hidden, rows.reshape(-1, outputs.shape[-1]))
    return outputs + update.astype(outputs.dtype)

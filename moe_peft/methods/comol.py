# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""CoMoL (arXiv 2603.00573): experts are cores between one lora_a and lora_b.

  hidden = drop(inputs) @ lora_a                                      [rank]
  weight = softmax(hidden @ kernel)                            [num_experts]
  outputs + alpha / rank * drop(hidden @ sum_e weight_e * core[e]) @ lora_b

Cores are [rank, rank], so many experts cost what one LoRA does, and the router
reads the rank's numbers. From the paper's code: all experts, no loss, kernels
of cores within 1 / sqrt(rank), rank 16, 8 experts, alpha 16, dropout 0.1 and
the sites; reading `inputs` (READS_INPUTS) is its variant without the core
router. Ours: initial values of lora_a and the router are MoLoRA's, and the
dropout on the merged core, which is never built here, is one on what it gives.
"""

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.methods import molora


class CoMoL(molora.MoLoRA):
  """One low-rank pair, and a mixture of cores between its halves.

  Attributes:
    dropout: Rate on the inputs and behind the core, while training.
    reads_inputs: The router reads the layer's inputs, not the rank's numbers.
  """

  num_experts: int = 8
  rank: int = 16
  dropout: float = 0.1
  reads_inputs: bool = False

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('cores are merged, no token travels.')
    lora_a, lora_b = low_rank.lora_kernels(
        self, inputs.shape[-1], outputs.shape[-1], self.site.kernel_axis_names,
        num_a=1, num_b=1,
    )
    core = self.param_with_axes(
        'core', low_rank.within_root(-2),
        (self.num_experts, self.rank, self.rank),
        ('expert', 'rank', 'unmodeled'),
    )
    dtype = self.dtype or outputs.dtype
    rows = dispatch.down_rows(lora_a.astype(dtype))
    dropped = self.drop(inputs.astype(dtype), self.dropout)
    hidden = low_rank.project(dropped, rows)
    if self.reads_inputs:
      decision = self.route(inputs, tokens)
    else:
      decision = self.route(
          hidden.astype(jnp.float32), tokens, in_axis='rank'
      )
    weights = None if decision is None else decision.combine_weights
    mixture = dispatch.AllExperts(hidden, weights)
    mixed = self.drop(mixture.up(core.astype(dtype)), self.dropout)
    update = low_rank.expand(mixed, (lora_b[0] * self.scale).astype(dtype))
    return outputs + update.astype(outputs.dtype)

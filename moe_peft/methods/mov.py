# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixture of vectors, MoV (arXiv 2309.05444): experts are (IA)^3 vectors.

  outputs * sum_e weight_e * scaling[e]

The vectors are merged first and applied once. As in the released code, keys
and values are routed per head, by a kernel `[head_dim, num_experts]` that all
heads share and that reads the head's own key or value; in the MLP the vector
scales the activated hidden (`mlp/act`), which the router reads too.

A network without a module `act` (stock T5X) is adapted at the input of `wo`
(gin/methods/mov_wo.gin): scaling the product of both branches is the same as
scaling the activated one, but the router then reads that product, after
dropout, instead of the activated branch alone.
"""

from typing import ClassVar

from flax import linen as nn
import jax

from moe_peft.core import adapter
from moe_peft.core import low_rank


class MoV(adapter.MoeAdapter):
  """Scales the outputs by a mixture of vectors.

  Attributes:
    residual: Computes `outputs * (1 + sum_e weight_e * (scaling[e] - 1))`. It
      is the paper's formula where weights sum to 1; where they do not (top-k
      without normalization, dropped tokens) what is missing counts as the
      identity (ours). With False the missing weight shrinks the outputs, also
      before any training, as in the released code.
  """

  residual: bool = True
  # Of Adam. Factors near 1 must move far, whatever the width.
  peak_rate: ClassVar[float] = 3e-2

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the scaled outputs, <float>[batch, length, features]."""
    del inputs
    self.require_all_experts(
        'vectors are mixed, and no token has to travel to them.'
    )
    features = outputs.shape[-1]
    axis = self.site.kernel_axis_names[1]
    scaling = self.param_with_axes(
        'scaling',
        nn.initializers.ones,
        (self.num_experts, features),
        ('expert', axis),
    )
    dtype = self.dtype or outputs.dtype
    routing = self.route(
        outputs, tokens, in_axis=axis, num_heads=self.site.num_heads or 1
    )
    if routing is None:
      return (outputs.astype(dtype) * scaling[0].astype(dtype)).astype(
          outputs.dtype
      )
    batch, length, _ = outputs.shape
    weights = routing.combine_weights.astype(dtype)
    vectors = (scaling - 1 if self.residual else scaling).astype(dtype)
    if weights.shape[1] == length:
      scale = low_rank.expand(weights, vectors)
    else:  # One distribution per head of a token.
      weights = weights.reshape(batch, length, -1, self.num_experts)
      vectors = vectors.reshape(self.num_experts, weights.shape[2], -1)
      by_head = jax.vmap(low_rank.expand, in_axes=(2, 1), out_axes=2)
      scale = by_head(weights, vectors).reshape(outputs.shape)
    scale = 1 + scale if self.residual else scale
    return (outputs.astype(dtype) * scale).astype(outputs.dtype)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMEAR (arXiv 2306.03745): experts are merged, once per sequence.

  w = softmax(layer_norm(mean of the tokens) @ kernel + bias)      [experts]
  outputs + f(outputs @ (sum_e w_e down[e]) + ...) @ (sum_e w_e up[e]) + ...

Parameters are averaged, not outputs. From the paper's code: the normed columns
of the router's kernel with scale 0.01, dropout 0.1 on whole experts followed
by normalization, 8 bottleneck adapters; in a decoder the mean is that of the
encoder's outputs. Packed rows hold several sequences and are refused.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import bottleneck


@dataclasses.dataclass(frozen=True)
class NormedScores(scores.SequenceScores):
  """Logits of the mean token, both it and the kernel's columns normed."""

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    """Returns <float32>[batch, 1, num_experts]."""
    source, axis = self.source(router, inputs, tokens)
    features, num_experts = source.shape[-1], router.num_experts
    kernel = self.kernel(router, features, axis)
    column_scale = router.param_with_axes(
        'column_scale', nn.initializers.constant(0.01), (features,), (axis,)
    )
    bias = router.param_with_axes(
        'bias', nn.initializers.zeros, (num_experts,), ('unmodeled',)
    )
    scale = router.param_with_axes(
        'scale', nn.initializers.ones, (features,), (axis,)
    )
    mean = scores.pool(source, tokens, router.reads.causal)
    columns = layer_norm(kernel, 0) * column_scale[:, None]
    return (layer_norm(mean, -1) * scale) @ columns + bias


class SMEARRouter(routing.Router):
  """One distribution per sequence, from its mean token."""

  scores: Any = NormedScores()
  select: Any = selection.Soft(dropout=0.1, normalize=True)


class SMEAR(bottleneck.Bottleneck):
  """One bottleneck adapter per sequence, the weighted mean of the experts."""

  num_experts: int = 8
  rank: int = 24
  router_factory: Callable[..., routing.Router] = SMEARRouter

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    del inputs
    self.require_all_experts('experts are merged before any token meets them.')
    if tokens is not None and tokens.segment_ids is not None:
      raise errors.UserError(
          'SMEAR merges one adapter for each row, but the rows are packed.',
          where='PACKING',
          remedy='Switch packing off (PACKING = False).',
      )
    dtype = self.dtype or outputs.dtype
    experts = self.kernels(outputs.shape[-1])
    axis = self.site.kernel_axis_names[1]
    decision = self.route(outputs, tokens, in_axis=axis)
    weights = jnp.ones((len(outputs), 1))
    if decision is not None:
      weights = decision.combine_weights[:, 0]
    down, down_bias, up, up_bias = (
        jnp.einsum('be,e...->b...', weights, x).astype(dtype) for x in experts
    )
    hidden = outputs.astype(dtype) @ down + down_bias[:, None]
    hidden = getattr(jax.nn, self.activation)(hidden)
    update = hidden @ up + up_bias[:, None]
    return outputs + update.astype(outputs.dtype)


def layer_norm(x: jax.Array, axis: int) -> jax.Array:
  """Returns `x` with mean 0 and variance 1 along `axis`."""
  x = x - x.mean(axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, axis=axis, keepdims=True) + 1e-6)

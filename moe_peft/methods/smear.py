# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMEAR (arXiv 2306.03745): experts are merged, once per sequence.

  w = softmax(layer_norm(mean of the tokens) @ kernel + bias)      [experts]
  outputs + f(outputs @ (sum_e w_e down[e]) + ...) @ (sum_e w_e up[e]) + ...

Parameters are averaged, not outputs. From the paper's code: the normed columns
of the router's kernel with scale 0.01, dropout 0.1 on whole experts followed
by normalization, 8 bottleneck adapters; in a decoder the mean is that of the
encoder's outputs. Ours: the mean of the prompt so far in a decoder without an
encoder, where tokens have adapters of their own, as packed examples have.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import bottleneck


@dataclasses.dataclass(frozen=True)
class NormedScores(scores.SequenceScores):
  """Logits of the mean token, both it and the kernel's columns normed."""

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    """Returns the logits, see `SequenceScores`."""
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
    mean = self.mean(router, source.astype(jnp.float32), tokens)
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
    tokens = tokens_lib.Tokens() if tokens is None else tokens
    dtype = self.dtype or outputs.dtype
    down, down_bias, up, up_bias = (
        x.astype(dtype) for x in self.kernels(outputs.shape[-1])
    )
    axis = self.site.kernel_axis_names[1]
    decision = self.route(outputs, tokens, in_axis=axis)
    weights = jnp.ones((len(outputs), 1, 1), dtype)
    if decision is not None:
      weights = decision.combine_weights.astype(dtype)
    if not self._tokens_differ(tokens):
      weights = weights[:, :1]
    # Where a row has one adapter, einsum merges the kernels first.
    letters = 'bne' if weights.shape[1] == 1 else 'ble'
    merged = lambda x, kernels: jnp.einsum(
        f'bli,eio,{letters}->blo', x, kernels, weights
    )
    hidden = merged(outputs.astype(dtype), down) + weights @ down_bias
    update = merged(self.activate(hidden), up) + weights @ up_bias
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def _tokens_differ(self, tokens: tokens_lib.Tokens) -> bool:
    """Whether tokens of a row may have adapters of their own."""
    alone = self.site.causal and tokens.prompt is None
    return alone or tokens.segment_ids is not None


def layer_norm(x: jax.Array, axis: int, epsilon: float = 1e-6) -> jax.Array:
  """Returns `x` with mean 0 and variance 1 along `axis`."""
  x = x - x.mean(axis=axis, keepdims=True)
  variance = jnp.mean(x**2, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(variance + epsilon)

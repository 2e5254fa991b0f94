# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a router looks at: scores turn features and tokens into logits.

Scores are parts of a `routing.Router`, which their methods get as an argument,
and make their parameters in its scope.
Arithmetic is float32 ("selective precision", Switch, arXiv 2101.03961).
"""

import dataclasses
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import low_rank
from moe_peft.core import prompt_means
from moe_peft.core import tokens as tokens_lib

KERNEL_INIT = nn.initializers.normal(stddev=2e-2)


@dataclasses.dataclass(frozen=True)
class TokenScores:
  """Logits of each token, `inputs @ kernel` (MoLoRA, arXiv 2309.05444)."""

  # Whether what they read is learned in a run, and not given or frozen.
  learned: ClassVar[bool] = True

  def check(self, router: nn.Module) -> None:
    """Raises errors.UserError if the router cannot have these scores."""

  def units(self, router: nn.Module) -> int:
    """Returns how many distributions over experts a token gets."""
    del router
    return 1

  @property
  def per_row(self) -> bool:
    """Whether all tokens of a row that is not packed share their logits."""
    return False

  def kernel(
      self, router: nn.Module, features: int, axis: str
  ) -> jax.Array:
    """Returns the kernel, <float32>[features, num_experts]."""
    return router.param_with_axes(
        'kernel', KERNEL_INIT, (features, router.num_experts),
        (axis, 'unmodeled'),
    )

  def rows(self, router: nn.Module, features: int) -> jax.Array | None:
    """Returns the kernel as rows, if the logits are products with the inputs.

    Args:
      router: The router that the parameters belong to.
      features: Number of features of the inputs.

    Returns:
      <float32>[n, features], or None for scores of something else.
    """
    return low_rank.rows(self.kernel(router, features, router.reads.axis))

  def of_experts(
      self, inputs: jax.Array, kernel: jax.Array
  ) -> jax.Array | None:
    """Returns logits that are made of the experts themselves.

    Args:
      inputs: <float>[batch, length, in].
      kernel: <float>[num_experts, in, rank], the first half of the experts.

    Returns:
      <float32>[batch, length, num_experts]; None for scores of anything else.
    """
    del inputs, kernel
    return None

  def logits(
      self,
      router: nn.Module,
      inputs: jax.Array,
      tokens: tokens_lib.Tokens,
      product: jax.Array | None,
  ) -> jax.Array:
    """Returns the logits.

    Args:
      router: The router.
      inputs: <float>[batch, length, features].
      tokens: What is known of the tokens.
      product: <float32>[batch, length, n], the inputs' products with `rows`,
        or None if they are still to be made.

    Returns:
      <float32>[batch, length * units, num_experts], or what can be broadcast
      to it.
    """
    del tokens
    if product is None:
      rows = self.rows(router, inputs.shape[-1])
      product = low_rank.project(inputs.astype(jnp.float32), rows)
    return product


@dataclasses.dataclass(frozen=True)
class HeadScores(TokenScores):
  """Logits of each head of each token, with one kernel for all heads.

  As in MoV's released code (arXiv 2309.05444): keys and values are routed by
  head. A layer without heads counts as one.
  """

  def check(self, router):
    if router.reads.num_heads is None:
      raise errors.UserError(
          'Only methods that read the outputs of a layer, as MoV, can route by '
          'head; this one reads its inputs.',
          where='scores.HeadScores',
          remedy='Bind the scores of the router to @scores.TokenScores().',
      )

  def units(self, router):
    return router.reads.num_heads

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    del tokens, product
    heads = self.units(router)
    batch, length, features = inputs.shape
    # Heads become rows when they are logits: on a mesh that divides heads, rows
    # of features would be gathered.
    inputs = inputs.reshape(batch, length, heads, features // heads)
    axis = 'kv' if heads > 1 else router.reads.axis
    kernel = self.kernel(router, inputs.shape[-1], axis)
    logits = jnp.einsum('blhd,de->blhe', inputs.astype(jnp.float32), kernel)
    return logits.reshape(batch, length * heads, router.num_experts)


@dataclasses.dataclass(frozen=True)
class SequenceScores(TokenScores):
  """Logits of each example: the mean logits of its real tokens.

  In a decoder a mean over the row would see later tokens, so there it is the
  mean over the prompt: over the encoder's outputs, or, without an encoder, over
  the prompt's tokens so far (prompt_means.py).
  """

  @property
  def per_row(self):
    return True

  def rows(self, router, features):
    if router.reads.causal:  # It scores the prompt and not the inputs.
      return None
    return super().rows(router, features)

  def logits(self, router, inputs, tokens, product):
    source, axis = self.source(router, inputs, tokens)
    if product is None:
      rows = low_rank.rows(self.kernel(router, source.shape[-1], axis))
      product = low_rank.project(source.astype(jnp.float32), rows)
    return self.mean(router, product, tokens)

  def source(self, router, inputs, tokens) -> tuple[jax.Array, str]:
    """Returns what is scored, <float>[batch, n, features], and its axis."""
    if router.reads.causal and tokens.prompt is not None:
      return tokens.prompt, 'embed'
    return inputs, router.reads.axis

  def mean(self, router, features, tokens) -> jax.Array:
    """Means of features of `source`.

    The mean of the logits is the logit of the mean token, and a smaller array.

    Args:
      router: The router.
      features: <float32>[batch, n, k].
      tokens: Padding, packing and prompt.

    Returns:
      <float32>[batch, length, k] if the tokens of a row differ, else
      [batch, 1, k].
    """
    if not router.reads.causal:
      return pool(features, tokens, from_prompt=False)
    if tokens.prompt is not None:
      return pool(features, tokens, from_prompt=True)
    return prompt_means.so_far(router, features, tokens)


def check_temperature(temperature: float) -> None:
  """Raises errors.UserError for a temperature that divides nothing."""
  if not temperature > 0:
    raise errors.UserError(
        f'TEMPERATURE = {temperature} must be above 0.', where='TEMPERATURE'
    )


def pool(
    features: jax.Array, tokens: tokens_lib.Tokens, from_prompt: bool
) -> jax.Array:
  """Mean of the packed example, or row, that each token belongs to.

  Args:
    features: <float32>[batch, source_length, n], of the prompt or of the
      tokens themselves.
    tokens: Padding and packing.
    from_prompt: Whether the features are the prompt's.

  Returns:
    <float32>[batch, length, n] if the rows are packed, else [batch, 1, n].

  Raises:
    errors.UserError: If nothing says which tokens are padding.
  """
  tokens.require_known('A mean over tokens')
  if from_prompt:
    source_valid, source_ids = tokens.prompt_valid, tokens.prompt_segment_ids
  else:
    source_valid, source_ids = tokens.valid, tokens.segment_ids
  if source_valid is None:
    source_valid = jnp.ones(features.shape[:2], bool)
  weights = source_valid[:, None].astype(jnp.float32)
  if tokens.segment_ids is not None and source_ids is not None:
    weights *= tokens.segment_ids[:, :, None] == source_ids[:, None]
  pooled = weights @ features.astype(jnp.float32)
  return pooled / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1.0)

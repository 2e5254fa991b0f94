# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Retrieval over a bank: an example goes to the LoRAs of examples like it.

LoraRetriever (arXiv 2402.09997) embeds an example and a few examples of each
LoRA with a sentence encoder, fine-tuned for that, and takes the LoRA whose mean
embedding is most similar, or three of them with equal weights. Here (ours) the
network itself is the encoder, with its LoRAs: the embedding of an example is
the mean that `scores.SequenceScores` take, scaled to length 1, and each layer
retrieves by its own. So in a decoder alone a token of the prompt is embedded by
the prompt so far, and its first tokens may find another LoRA than the others.
`IndexedExpert` finds the mean embedding of a LoRA's own examples, so no data of
several LoRAs ever come together. The default is one LoRA with the weight 1.
"""

import dataclasses
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalScores(scores.SequenceScores):
  """Cosines of an example's embedding with the centroids of the experts.

  The centroids come with the bank; a centroid of zero is one of an expert that
  is not there.

  Attributes:
    temperature: Divides the cosines.
  """

  learned = False

  temperature: float = 0.1

  def check(self, router):
    scores.check_temperature(self.temperature)

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    embeddings, axis = self.embed(router, inputs, tokens)
    centroids = router.param_with_axes(
        'centroids', nn.initializers.zeros,
        (embeddings.shape[-1], router.num_experts), (axis, 'unmodeled'),
    )
    cosines = low_rank.project(embeddings, _unit(low_rank.rows(centroids)))
    there = jnp.any(centroids != 0, axis=0)
    return selection.mask(cosines / self.temperature, there)

  def embed(
      self, module: nn.Module, inputs: jax.Array, tokens: tokens_lib.Tokens
  ) -> tuple[jax.Array, str]:
    """Embeds the example that each token belongs to.

    Args:
      module: Says what it `reads`, and keeps the sums of a prompt in decoding.
      inputs: <float>[batch, length, features].
      tokens: Padding, packing and prompt.

    Returns:
      <float32>[batch, length or 1, features] of length 1, or 0 where there are
      no real tokens; the logical name of the features.

    Raises:
      errors.UserError: If nothing says which tokens are padding.
    """
    source, axis = self.source(module, inputs, tokens)
    return _unit(self.mean(module, source.astype(jnp.float32), tokens)), axis


class IndexedExpert(molora.MoLoRA):
  """One frozen expert, and the centroid of its examples, which is learned.

  Sows `retrieval_loss`, half the squared distance between the centroid and the
  mean embedding of a batch: over all batches it is least at the mean embedding
  (ours). Examples count equally in an encoder whose rows are not packed, and in
  the decoder behind it; elsewhere tokens do. `python -m moe_peft bank` reads
  the centroid with the expert.
  """

  num_experts: int = 1
  # Of Adam. A mean of unit vectors is as long at any width and ALPHA.
  peak_rate: ClassVar[float] = 2e-2

  @property
  def reads(self) -> routing.Features:
    """What is embedded, as a router over the bank reads it."""
    return routing.Features(
        axis=self.site.kernel_axis_names[0], causal=self.site.causal
    )

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_one_expert('Make a bank of that expert alone.')
    tokens = tokens_lib.Tokens() if tokens is None else tokens
    parts = RetrievalScores()
    source, axis = parts.source(self, inputs, tokens)
    centroid = self.param_with_axes(
        'centroid', nn.initializers.zeros, source.shape[-1:], (axis,)
    )
    if self.is_mutable_collection('intermediates'):  # Not in evaluation.
      embeddings, _ = parts.embed(self, inputs, tokens)
      real = jnp.any(embeddings != 0, axis=-1, keepdims=True)
      if embeddings.shape[1] > 1 and tokens.valid is not None:
        real &= tokens.valid[..., None]
      total = jnp.where(real, embeddings, 0.0).sum(axis=(0, 1))
      mean = jax.lax.stop_gradient(total / jnp.maximum(real.sum(), 1))
      loss = jnp.square(centroid - mean).sum() / 2
      self.sow('intermediates', 'retrieval_loss', loss.reshape(1, 1, 1))
    return super().__call__(inputs, outputs, tokens)


def _unit(x: jax.Array) -> jax.Array:
  """Returns float32 rows of length 1; rows of zeros stay."""
  squares = jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-30))

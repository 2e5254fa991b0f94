# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses that look at what low-rank experts compute, not only at the router.

A method with `losses` sows them (methods/molora.py). No array with
num_experts * features numbers per token is built: products of outputs are
products of rank space.
"""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from moe_peft.core import losses


@struct.dataclass
class Computed:
  """What the experts of a layer compute, before any weight.

  Expert e gives `hidden[..., e, :] @ lora_b[e]`.

  Attributes:
    hidden: <float32>[batch, length, num_experts, rank].
    lora_b: <float32>[num_experts, rank, out].
    combine_weights: <float32>[batch, length, num_experts].
    valid: <bool>[batch, length].
  """

  hidden: jax.Array
  lora_b: jax.Array
  combine_weights: jax.Array
  valid: jax.Array

  def products(self) -> jax.Array:
    """Products of outputs, <float32>[batch, length, experts, experts].

    They are made of the Gram matrix of `lora_b`, which all tokens share, with
    (experts * rank)^2 multiplications a token.
    """
    gram = jnp.einsum('ero,fso->erfs', self.lora_b, self.lora_b)
    half = jnp.einsum('bler,erfs->blefs', self.hidden, gram)
    return jnp.einsum('blefs,blfs->blef', half, self.hidden)


@dataclasses.dataclass(frozen=True)
class Orthogonality:
  """Outputs of the experts of a token should differ, `orthogonality_loss`.

  The mean, over tokens and over pairs of experts that a token uses, of the
  squared norm of the projection of one output on the other (arXiv 2505.22323,
  equation 6; that the norm is squared and averaged is ours, as the paper's code
  could not be read). Zero where tokens use one expert.
  """

  name = 'orthogonality_loss'

  def __call__(self, computed: Computed) -> jax.Array:
    products = computed.products()
    norms = jnp.einsum('blee->ble', products)[..., None, :]
    # While lora_b is zero the loss is zero, and its gradient must be, too.
    projected = products**2 * norms / (norms**2 + 1e-12)
    used = computed.combine_weights > 0
    different = ~jnp.eye(used.shape[-1], dtype=bool)
    pairs = used[..., :, None] & used[..., None, :] & different
    total = jnp.where(pairs, projected, 0.0).sum(axis=(-1, -2))
    count = jnp.maximum(pairs.sum(axis=(-1, -2)), 1)
    return losses.mean_over(total / count, computed.valid)

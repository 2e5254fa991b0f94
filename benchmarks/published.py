# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoLoRA by the formula of its release (arXiv 2309.05444).

Every expert's output is computed, `[batch, length, experts, features]`, and
weighted then. Parameters and results are those of `methods/molora.py`.
"""

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.methods import molora


class PublishedMoLoRA(molora.MoLoRA):
  """Adds a mixture of low-rank updates to the outputs."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    weights = self.route(inputs, tokens).combine_weights
    hidden = jnp.einsum('bli,eir->bler', inputs, lora_a)
    updates = jnp.einsum('bler,ero->bleo', hidden, lora_b)
    update = jnp.einsum('bleo,ble->blo', updates, weights)
    return outputs + self.alpha / self.rank * update

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""DoRA (arXiv 2402.09353): direction and magnitude of a kernel apart.

  V = kernel + alpha / rank * lora_a @ lora_b
  factor = magnitude * |kernel| / stop(|V|), norms of columns     [out_features]
  outputs + (factor - 1) * (outputs - bias) + factor * alpha / rank
          * (inputs @ lora_a) @ lora_b

which is `inputs @ V` with columns of the length magnitude * |kernel|. As in
PEFT's code |V| is a constant to the gradient. |V|^2 is made of |kernel|^2,
lora_a^T kernel and lora_a^T lora_a, so V is never built. Ours: `magnitude` is
relative to the base and begins at 1, whatever the base is; rank 16, alpha 16.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.methods import lora

_TINY = 1e-12  # Columns of zeros keep their length.


class DoRA(lora.LoRA):
  """A LoRA behind which the lengths of columns are learned."""

  rank: int = 16

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_one_expert('Leave it at 1: a column has one length.')
    layer = self.site.frozen() if self.site.frozen else {}
    if 'kernel' not in layer:
      raise errors.UserError(
          f'DoRA reads the kernel of its layer, and {self.site.path} has none.',
          where='SITES', remedy='Use another method for such layers.',
      )
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    magnitude = self.param_with_axes(
        'magnitude', nn.initializers.ones, (outputs.shape[-1],),
        (self.site.kernel_axis_names[1],),
    )
    factor = column_factor(
        layer['kernel'], lora_a[0], lora_b[0] * self.scale, magnitude
    )
    dtype = self.dtype or outputs.dtype
    mixture, _ = self.mix(inputs.astype(dtype), tokens, lora_a.astype(dtype))
    update = mixture.up((lora_b * (self.scale * factor)).astype(dtype))
    products = outputs - layer.get('bias', 0.0)
    change = (factor - 1).astype(dtype) * products.astype(dtype) + update
    return outputs + change.astype(outputs.dtype)


def column_factor(
    kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array,
    magnitude: jax.Array,
) -> jax.Array:
  """What columns of `kernel + lora_a @ lora_b` are multiplied with.

  Args:
    kernel: <float>[in, out].
    lora_a: <float32>[in, rank].
    lora_b: <float32>[rank, out], scaled.
    magnitude: <float32>[out], lengths over those of the kernel.

  Returns:
    <float32>[out], without a gradient but that of the magnitude.
  """
  lora_a, lora_b = jax.lax.stop_gradient((lora_a, lora_b))
  kernel = kernel.astype(jnp.float32)
  before = jnp.sum(kernel**2, axis=0)
  across = jnp.sum((lora_a.T @ kernel) * lora_b, axis=0)
  own = jnp.sum(((lora_a.T @ lora_a) @ lora_b) * lora_b, axis=0)
  after = jnp.maximum(before + 2 * across + own, 0.0)
  return magnitude * jnp.sqrt((before + _TINY) / (after + _TINY))

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters (arXiv 1902.00751) as experts.

  outputs + sum_e weight_e * (f(outputs @ down[e] + down_bias[e]) @ up[e]
                              + up_bias[e])

SiRA's paper names other experts under the same router as future work; here
any router of gin/methods/ can be bound. The adapter reads the outputs of the
layer, as in the original, where it follows the sublayer.
"""

from flax import linen as nn
import jax

from moe_peft import errors
from moe_peft.core import adapter


class Bottleneck(adapter.MoeAdapter):
  """Adds a mixture of two-layer networks of the outputs.

  Attributes:
    rank: Hidden size of each expert.
    activation: Name of a function of `jax.nn`.
  """

  rank: int = 16
  activation: str = 'relu'

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    del inputs
    dtype = self.dtype or outputs.dtype
    down, down_bias, up, up_bias = (
        x.astype(dtype) for x in self.kernels(outputs.shape[-1])
    )
    mixture, _ = self.mix(
        outputs.astype(dtype),
        tokens,
        down,
        down_bias,
        in_axis=self.site.kernel_axis_names[1],
    )
    hidden = self.activate(mixture.hidden)
    update = mixture.replace(hidden=hidden).up(up, up_bias)
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def activate(self, hidden: jax.Array) -> jax.Array:
    """Applies the activation; errors.UserError if there is no such function."""
    function = getattr(jax.nn, self.activation, None)
    if not callable(function):
      raise errors.UserError(
          f'jax.nn has no function {self.activation!r}.',
          where='bottleneck.Bottleneck.activation',
          remedy="Use for example 'relu', 'gelu' or 'silu'.",
      )
    return function(hidden)

  @nn.nowrap
  def kernels(self, features):
    """Returns `down` [e, features, rank], its bias, `up`, and its bias."""
    axis, e, r = self.site.kernel_axis_names[1], self.num_experts, self.rank
    normal, zeros = nn.initializers.normal(stddev=2e-2), nn.initializers.zeros
    return (
        self.param_with_axes(
            'down', normal, (e, features, r), ('expert', axis, 'rank')
        ),
        self.param_with_axes('down_bias', zeros, (e, r), ('expert', 'rank')),
        self.param_with_axes(
            'up', zeros, (e, r, features), ('expert', 'rank', axis)
        ),
        self.param_with_axes('up_bias', zeros, (e, features), ('expert', axis)),
    )

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MTL-LoRA (arXiv 2410.09437): each task turns one LoRA in its own way.

  weight = softmax(table[id] / temperature)
  outputs + alpha / rank
            * (inputs @ lora_a) @ core[id] @ sum_n weight_n * lora_b[n]

All ids share `lora_a` and the `lora_b`; each has a matrix [rank, rank] between
them and weights of its own, so of each id it is one LoRA. From the paper's
code: rank 8, alpha 16, 3 lora_b, a temperature of 0.1, full matrices that begin
as the identity, `lora_a` and the table uniform as torch has it. With values of
that size and temperature the weights are nearly one-hot from the start.
"""

from collections.abc import Sequence
import dataclasses

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import id_scores
from moe_peft.core import low_rank
from moe_peft.core import scores
from moe_peft.methods import hydralora


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpIdScores(id_scores.IdScores):
  """Logits of an id, divided by a temperature.

  Attributes:
    temperature: Divides the table.
  """

  init = staticmethod(low_rank.within_root(-1))

  temperature: float = 0.1

  def check(self, router):
    super().check(router)
    scores.check_temperature(self.temperature)

  def logits(self, router, inputs, tokens, product):
    logits = super().logits(router, inputs, tokens, product)
    return logits / self.temperature


class MTLLoRA(hydralora.HydraLoRA):
  """A shared `lora_a`, a mixture of `lora_b`, and a matrix of each id.

  Attributes:
    ids: EXAMPLE_IDS, the names of the ids or their number.
  """

  num_experts: int = 3
  rank: int = 8
  alpha: float = 16.0
  ids: Sequence[str] | int | None = None

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('one product serves all of them.')
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    num_ids = id_scores.count(self.ids, 'MTL-LoRA')
    core = self.param_with_axes(
        'core', _identity, (num_ids, self.rank, self.rank),
        (None, 'rank', 'unmodeled'),
    )
    dtype = self.dtype or outputs.dtype
    hidden = low_rank.project(
        inputs.astype(dtype), dispatch.down_rows(lora_a.astype(dtype))
    )
    mine = jnp.einsum(
        'blt,trs->blrs', id_scores.one_hot(self, tokens, num_ids), core
    )
    hidden = (hidden[..., None] * mine.astype(dtype)).sum(axis=-2)
    routing = self.route(inputs, tokens)
    weights = None if routing is None else routing.combine_weights
    mixture = dispatch.AllExperts(hidden, weights)
    update = mixture.up((lora_b * self.scale).astype(dtype))
    return outputs + update.astype(outputs.dtype)

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [1, in, rank] and `lora_b` [num_experts, rank, out]."""
    return low_rank.lora_kernels(
        self, in_features, out_features, self.site.kernel_axis_names, num_a=1,
        init_a=low_rank.within_root(-2),
    )


def _identity(key, shape, dtype):
  del key
  return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)

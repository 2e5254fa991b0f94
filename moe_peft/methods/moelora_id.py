# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MOELoRA of Liu et al. (arXiv 2310.18339): experts weighed by the task's id.

  weight = softmax(table[id] @ kernel)
  outputs + alpha / (rank * num_experts)
            * sum_e weight_e * (drop(inputs) @ lora_a[e]) @ lora_b[e]

It shares its name with the MOELoRA of 2402.12851 (moelora.py), and nothing
else. Every layer has a table and a kernel of its own. For one id all experts
together are one LoRA. From the released code: the rank of the paper is that of
all experts together, and so is the one in the scale; the table has one row
more than there are ids, here for tokens without one; `lora_a` is normal with a
deviation of 0.01, the table with 1, the kernel uniform within 1 / sqrt(width);
8 experts of rank 2, a table 64 wide, dropout 0.1. Ours: alpha 16, and one
dropout where the code draws one for each expert.
"""

import dataclasses
import math

from flax import linen as nn
import jax.numpy as jnp

from moe_peft.core import id_scores
from moe_peft.core import low_rank
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedIdScores(id_scores.IdScores):
  """Logits of an embedding of the id.

  Attributes:
    width: Size of the embedding.
  """

  width: int = 64

  def logits(self, router, inputs, tokens, product):
    table = router.param_with_axes(
        'table', nn.initializers.normal(stddev=1.0),
        (1 + self.num_ids, self.width), (None, 'unmodeled'),
    )
    kernel = router.param_with_axes(
        'kernel', low_rank.within_root(-2), (self.width, router.num_experts),
        (None, 'unmodeled'),
    )
    given = id_scores.one_hot(router, tokens, self.num_ids)
    none = 1.0 - given.sum(axis=-1, keepdims=True)
    return jnp.concatenate([none, given], axis=-1) @ table @ kernel


class MOELoRAOfIds(molora.MoLoRA):
  """MoLoRA whose scale is that of one LoRA of all ranks.

  Attributes:
    dropout: Rate on the inputs of experts, while training.
  """

  counts_experts = True  # See mola.by_depth.
  num_experts: int = 8
  rank: int = 2
  dropout: float = 0.1

  @property
  def scale(self) -> float:
    rank = self.rank * self.num_experts
    return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    dropped = self.drop(inputs, self.dropout)
    return super().__call__(dropped, outputs, tokens)

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [num_experts, in, rank] and `lora_b`."""
    return low_rank.lora_kernels(
        self, in_features, out_features, self.site.kernel_axis_names,
        init_a=nn.initializers.normal(stddev=1e-2),
    )

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""AdaMoLE (arXiv 2405.00361): an adaptive number of LoRA experts per token.

  tau = max_threshold * sigmoid(inputs @ threshold_kernel + threshold_bias)
  weight_e = relu(p_e - tau) / sum_j relu(p_j - tau),  p = softmax(logits)

From the paper: 8 experts of rank 4, alpha 16, max_threshold 1 / num_experts
(for which at least one expert is always used), the sites. The auxiliary loss
here is Switch's on p, the released code's is on p - tau.
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
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True)
class ThresholdScores(scores.TokenScores):
  """Logits of the experts, and one of the threshold behind them."""

  def kernel(self, router, features, axis):
    kernel = super().kernel(router, features, axis)
    threshold = router.param_with_axes(
        'threshold_kernel', scores.KERNEL_INIT, (features, 1),
        (axis, 'unmodeled'),
    )
    return jnp.concatenate([kernel, threshold], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(selection.Soft):
  """Keeps what the probabilities exceed a learned threshold by.

  Attributes:
    max_threshold: tau_max; None: 1 / num_experts, the number of the layer, for
      which at least one expert is always used.
  """

  normalize: bool = True
  max_threshold: float | None = None

  def check(self, router):
    self._check_dropout()

  def __call__(self, router, logits, context):
    logits, threshold = logits[..., :-1], logits[..., -1:]
    probs = self.drop(router, self.probs(router, logits, context), context)
    offset = router.param_with_axes(
        'threshold_bias', nn.initializers.zeros, (1,), ('unmodeled',)
    )
    active = context.active
    number = router.num_experts if active is None else active.sum()
    most = self.max_threshold or 1.0 / number
    threshold = most * jax.nn.sigmoid(threshold + offset)
    gates = jax.nn.relu(probs - threshold)
    return self.decide(probs, gates, gates > 0)


class AdaMoLERouter(routing.Router):
  """Keeps the experts whose probability exceeds a learned threshold."""

  scores: Any = ThresholdScores()
  select: Any = Threshold()


class AdaMoLE(molora.MoLoRA):
  """MoLoRA under AdaMoLE's router."""

  num_experts: int = 8
  router_factory: Callable[..., routing.Router] = AdaMoLERouter

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""DynMoLE (arXiv 2504.00661): certain tokens use few experts, unsure ones all.

  entropy = (1 - sum_e p_e^q) / (q - 1),   p = softmax(logits)
  all experts where entropy > entropy_threshold, else the fewest of the highest
  p whose sum reaches `mass`, but at least k; weights are divided by their sum

trained with the mean of that entropy (`tsallis_loss`) and Switch's balance.
Code of a third party calls these defaults the paper's: q 1.1, threshold 0.9,
mass 0.75, k 2, factors 0.01 and 0.001. The largest entropy grows with the
number of experts (1.29, 1.88, 2.42 for 4, 8, 16), so the threshold is another
share of it for each number. Ours: 8 experts of rank 8, and that p is taken
before any noise (the released code was not read).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_peft.core import losses as losses_lib
from moe_peft.core import router_losses
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mass(selection.TopK):
  """The fewest experts that hold a share of the probability.

  Attributes:
    k: The least number of experts.
    mass: The share.
    entropy_threshold: Tokens above it use all experts.
    q: Order of the entropy.
  """

  k: int | None = 2
  normalize: bool = True
  mass: float = 0.75
  entropy_threshold: float = 0.9
  q: float = 1.1

  def check(self, router):
    # `TopK` warns of one normalized expert; here k is only the least number.
    selection.TopK(k=self.k, dropout=self.dropout).check(router)

  def most_selected(self, num_experts):
    return num_experts

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    fixed = jax.lax.stop_gradient(probs)
    ahead = selection.ahead(fixed)
    taken = jnp.where(ahead, fixed[..., None, :], 0.0).sum(axis=-1)
    selected = (taken < self.mass) | (ahead.sum(axis=-1) < self.k)
    unsure = router_losses.tsallis_entropy(fixed, self.q)
    selected |= (unsure > self.entropy_threshold)[..., None]
    return self.decide(probs, probs, selected)


class DynMoLERouter(routing.Router):
  """All experts for unsure tokens, few for others."""

  select: Any = Mass()
  losses: Sequence[Any] = (
      losses_lib.LoadBalance(), losses_lib.RouterZ(), router_losses.Tsallis()
  )


class DynMoLE(molora.MoLoRA):
  """MoLoRA under DynMoLE's router."""

  num_experts: int = 8
  rank: int = 8
  router_factory: Callable[..., routing.Router] = DynMoLERouter

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SMoRA (arXiv 2501.15103): each rank of one LoRA is an expert.

  outputs + alpha * sum_j weight_j * (inputs @ lora_a[j]) @ lora_b[j]

over ranks j, with `weight` the normalized sigmoid scores of the k best
ranks; the paper's factor k and its scale alpha / k give alpha. The load is
balanced by a bias and no loss: see `balance_by_gradient` for how that rule
became a gradient. From the released layer: sigmoid, top-k, normalization, the
bias entering the weights too. Ours: 64 ranks, 8 selected, alpha 1.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasedTopK(selection.TopK):
  """Top-k of scores plus a bias that moves against the load.

  Attributes:
    softmax: Scores are probabilities; else sigmoids of the logits.
    bias_in_gate: The bias enters the weights too, as in SMoRA's released layer;
      without, it only decides who is used (loss-free balancing, 2408.15664).
  """

  k: int | None = 8
  normalize: bool = True
  softmax: bool = False
  bias_in_gate: bool = True

  def probs(self, router, logits, context):
    score = jax.nn.softmax if self.softmax else jax.nn.sigmoid
    return score(selection.mask(logits, context.active))

  def __call__(self, router, logits, context):
    probs = self.drop(router, self.probs(router, logits, context), context)
    bias = router.param_with_axes(
        'bias', nn.initializers.zeros, (router.num_experts,), ('unmodeled',)
    )
    scores = probs + jax.lax.stop_gradient(bias)
    # An expert that does not exist is never selected, whatever its bias is.
    scores = selection.mask(scores, context.active)
    selected = selection.select_top_k(scores, self.num_selected(context))
    gates = scores if self.bias_in_gate else probs
    decision = self.decide(probs, gates, selected, scores)
    return self.balanced(decision, bias, context)

  def balanced(self, decision, bias, context):
    """Returns the decision, with a gradient for the bias."""
    load = losses.mean_over(
        decision.selected.astype(jnp.float32), context.valid()
    )
    # Experts that do not exist would lower the mean below every load.
    excess = load - load.mean(where=context.active)
    gates = balance_by_gradient(decision.gates, bias, excess)
    return dataclasses.replace(decision, gates=gates)


class SMoRARouter(routing.Router):
  """Sigmoid scores, top-k, normalized, with a balancing bias."""

  select: Any = BiasedTopK()


class SMoRA(molora.MoLoRA):
  """MoLoRA whose experts have rank one; `num_experts` is the total rank."""

  num_experts: int = 64
  rank: int = 1
  alpha: float = 1.0
  router_factory: Callable[..., routing.Router] = SMoRARouter


@jax.custom_vjp
def balance_by_gradient(
    gates: jax.Array, bias: jax.Array, excess: jax.Array
) -> jax.Array:
  """Returns `gates`; going back, the bias gets `sign(load - mean(load))`.

  Loss-free balancing (arXiv 2408.15664) moves the bias of overloaded experts
  down and of idle ones up, `bias += u * sign(mean_count - count)`. Written as a
  gradient (ours) it needs no mutable state and runs under every trainer: with
  plain SGD of rate u it is that rule, with Adam nearly so. The gradient does
  not depend on the scale of the loss.

  Args:
    gates: <float32>[batch, length, num_experts].
    bias: <float32>[num_experts].
    excess: <float32>[num_experts], `load - mean(load)`, of the mean selections
      per token.
  """
  del bias, excess
  return gates


def _balance_forward(gates, bias, excess):
  del bias
  return gates, jnp.sign(excess)


def _balance_backward(sign, cotangent):
  return cotangent, sign, jnp.zeros_like(sign)


balance_by_gradient.defvjp(_balance_forward, _balance_backward)

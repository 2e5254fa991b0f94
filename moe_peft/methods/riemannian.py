# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Gate-rescaled Riemannian preconditioning of MoLoRA (arXiv 2502.15828).

  update = alpha / rank * sum_e (q_e u_e + (g_e - q_e) stop(u_e)),
  u_e = (inputs @ lora_a[e]) @ lora_b[e],   q_e = stop(sqrt(g_e))

The value is MoLoRA's; an expert's gradient has the weight sqrt(g_e) and not
g_e, the router's is exact. Gradients of each factor are divided by the Gram
matrix of the other (`site_updates.riemannian`, which the gin file binds). From
the paper's code: 20 experts of rank 4, alpha 16, top-10 normalized, and Adam's
moments of the new gradients. The paper trains experts at a rate of 1e-5 and
routers at 3e-8, which leaves routers almost as they begin; here both have the
rate of the run, and the paper's gradient clipping and dropout are left out.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.core import dispatch
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora


class RiemannianRouter(routing.Router):
  """Normalized top-10."""

  select: Any = selection.TopK(k=10, normalize=True)


class Riemannian(molora.MoLoRA):
  """MoLoRA whose experts' gradients are weighted by roots of gates."""

  num_experts: int = 20
  router_factory: Callable[..., routing.Router] = RiemannianRouter

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_all_experts('its gradient needs all outputs at rank r.')
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype = self.dtype or outputs.dtype
    decision = self.route(inputs, tokens)
    kernel = (lora_b * self.scale).astype(dtype)
    mixture = dispatch.down(
        'all_experts', inputs.astype(dtype), lora_a.astype(dtype), decision
    )
    if decision is None:
      update = mixture.up(kernel)
    else:
      gates = decision.combine_weights
      root = jax.lax.stop_gradient(jnp.sqrt(gates))
      stop = jax.lax.stop_gradient
      seen = mixture.replace(combine_weights=root)
      rest = mixture.replace(
          hidden=stop(mixture.hidden), combine_weights=gates - root
      )
      update = seen.up(kernel) + rest.up(stop(kernel))
    return outputs + update.astype(outputs.dtype)

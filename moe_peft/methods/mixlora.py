# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MixLoRA (arXiv 2404.15159): experts are copies of the MLP that share it.

  hidden_e = f(x wi_0 + s x a0_e b0_e) * (x wi_1 + s x a1_e b1_e)
  y = (sum_e w_e hidden_e) wo + s sum_e w_e hidden_e ao_e bo_e,  s = alpha/rank

Each frozen matrix is multiplied once: `wi` because the low-rank updates are
added to its result, `wo` because it is linear. The adapter sits on `wo`, and is
handed what `wi_0` and `wi_1` read and wrote (`inject.BlockRule`). What goes
into `wo` is the model's own hidden state plus the weighted changes of the
experts; the model's dropout acts on the former only. From the paper: 8 experts,
top-2, normalized, rank 16, alpha 32, plain LoRA on the attention. One expert
at a time is computed, and again in the backward pass, so memory does not grow
with their number.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import adapter
from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.core import selection


class MixLoRARouter(routing.Router):
  """Normalized top-2."""

  select: Any = selection.TopK(k=2, normalize=True)


class MixLoRA(adapter.MoeAdapter):
  """Routed copies of an MLP.

  Attributes:
    rank: Rank of each low-rank update.
    alpha: Updates are scaled by `alpha / rank`.
  """

  num_experts: int = 8
  router_factory: Callable[..., routing.Router] = MixLoRARouter
  rank: int = 16
  alpha: float = 32.0

  @nn.compact
  def __call__(self, inputs, siblings, tokens=None):
    """Returns what `wo` is to read, and what is added to its outputs.

    Args:
      inputs: <float>[batch, length, mlp], what `wo` would read.
      siblings: {name: (inputs, outputs)} of `wi`, or of `wi_0`, `wi_1`, ...
      tokens: What is known of the tokens.

    Raises:
      errors.UserError: If the layer is not `wo` of an MLP.
    """
    self.require_all_experts('experts are whole blocks, run one at a time.')
    names, functions = sorted(siblings), self.site.activations
    if not names or len(names) != len(functions):
      raise errors.UserError(
          f'MixLoRA at {self.site.path} found the branches {names} and the '
          f'activations {functions}.',
          where='SITES',
          remedy='SITES must match the layer `wo` of an MLP with branches wi '
          'or wi_0, wi_1 and a field `activations`.',
      )
    x = siblings[names[0]][0]
    branches = [siblings[name][1] for name in names]
    embed, mlp = x.shape[-1], inputs.shape[-1]
    pairs = {
        name: self._pair(name, embed, mlp, ('embed', 'mlp')) for name in names
    }
    pairs['wo'] = self._pair('wo', mlp, embed, ('mlp', 'embed'))
    decision = self.route(x, tokens, in_axis='embed')
    frozen = product(functions, branches)
    run = jax.checkpoint(
        functools.partial(_expert, functions, names, self.alpha / self.rank)
    )
    changed, update = inputs, 0.0
    for e in range(self.num_experts):
      weight = 1.0
      if decision is not None:
        weight = decision.combine_weights[..., e : e + 1].astype(x.dtype)
      pair = jax.tree.map(lambda p, e=e: p[e].astype(x.dtype), pairs)
      change, added = run(pair, x, branches, frozen, inputs)
      changed += weight * change
      update += weight * added
    return changed, update

  @nn.nowrap
  def _pair(self, name, in_features, out_features, axes):
    """Returns (lora_a, lora_b) of all experts for one matrix."""
    return low_rank.lora_kernels(
        self, in_features, out_features, axes, prefix=f'{name}_'
    )


def _expert(functions, names, scale, pair, x, branches, frozen, inputs):
  """Returns one expert's change of the hidden state, and its own output."""
  apply = lambda name, x: x @ pair[name][0] @ pair[name][1] * scale
  moved = [
      branch + apply(name, x)
      for name, branch in zip(names, branches, strict=True)
  ]
  change = product(functions, moved) - frozen
  return change, apply('wo', inputs + change)


def product(functions, branches) -> jax.Array:
  """Product of the activated branches, <float>[batch, length, mlp]."""
  activate = lambda f, x: x if f == 'linear' else getattr(nn, f)(x)
  activated = [activate(f, x) for f, x in zip(functions, branches, strict=True)]
  return functools.reduce(jnp.multiply, activated)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One adapted dense layer, forward and backward, against its peers.

Gradients are taken of experts, router and inputs, and the output is returned,
so nothing can be left out. The frozen layer is part of every case.
"""

import functools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp

from benchmarks import timing
from moe_peft import capacity
from moe_peft import inject
from moe_peft import routing
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.methods import mov

FROZEN = 'frozen layer'
PLAIN_LORA = 'LoRA of rank E*r'
PUBLISHED = 'published MoLoRA formula'


def published_molora(params: Mapping[str, Any], inputs, outputs, alpha=16.0):
  """MoLoRA as its release writes it: every expert's output, then weights."""
  probs = jax.nn.softmax(inputs @ params['router']['kernel'])
  hidden = jnp.einsum('bsd,edr->bser', inputs, params['lora_a'])
  updates = jnp.einsum('bser,ero->bseo', hidden, params['lora_b'])
  rank = params['lora_a'].shape[-1]
  return outputs + alpha / rank * jnp.einsum('bseo,bse->bso', updates, probs)


def cases(
    features: int, tokens: int, num_experts: int, rank: int
) -> dict[str, timing.Case]:
  """The cases of one table.

  Args:
    features: Inputs and outputs of the layer.
    tokens: Tokens in all, in rows of 256.
    num_experts: E.
    rank: r.
  """
  keys = jax.random.split(jax.random.key(0), 3)
  rows = max(tokens // 256, 1)
  inputs = jax.random.normal(keys[0], (rows, tokens // rows, features))
  kernel = jax.random.normal(keys[1], (features, features)) / features**0.5
  site = inject.Site(path='encoder/layers_0/mlp/wi', causal=False)
  top_2 = functools.partial(
      routing.Router, selection='top_k', num_selected_experts=2
  )
  limited = functools.partial(
      top_2,
      capacity=capacity.Capacity(
          capacity_factor=1.25, counts_selected=True, at_evaluation=True
      ),
  )
  mixture = functools.partial(
      molora.MoLoRA, site=site, num_experts=num_experts, rank=rank
  )
  adapters = {
      PLAIN_LORA: lora.LoRA(site=site, rank=num_experts * rank),
      'MoLoRA soft': mixture(),
      'MoLoRA top-2': mixture(router_factory=top_2),
      'MoLoRA top-2, capacity 1.25': mixture(router_factory=limited),
      'MoLoRA top-2, capacity 1.25, einsum': mixture(
          router_factory=limited, execution='einsum'
      ),
      'MoLoRA top-2, ragged': mixture(
          router_factory=top_2, execution='ragged'
      ),
      'MoV': mov.MoV(site=site, num_experts=num_experts),
  }
  functions = {
      name: (
          functools.partial(_apply, adapter), _params(adapter, keys[2], inputs)
      )
      for name, adapter in adapters.items()
  }
  functions[PUBLISHED] = (published_molora, functions['MoLoRA soft'][1])
  functions = {FROZEN: (lambda params, x, y: y, {}), **functions}
  cotangent = jax.random.normal(keys[2], inputs.shape)
  return {
      name: timing.Case(
          _with_gradients(function), (params, kernel, inputs, cotangent)
      )
      for name, (function, params) in functions.items()
  }


def _apply(adapter, params, inputs, outputs):
  return adapter.apply({'params': params}, inputs, outputs)


def _params(adapter, key, inputs):
  variables = adapter.init(key, inputs, inputs)
  # Zero experts would be no less work, but could be simplified away.
  return jax.tree.map(
      lambda x: x + 0.01 * jax.random.normal(key, x.shape), variables['params']
  )


def _with_gradients(function: Callable[..., jax.Array]):
  """Output and gradients of parameters and inputs; the kernel is frozen."""

  def run(params, kernel, inputs, cotangent):
    outputs, backward = jax.vjp(
        lambda params, x: function(params, x, x @ kernel), params, inputs
    )
    return outputs, backward(cotangent)

  return run

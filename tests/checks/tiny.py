# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Subjects of checks: the tiny network with any adapters on its layers."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.checks import subject as subject_lib
from moe_peft.core import adapter
from moe_peft.core import inject
from moe_peft.core import losses
from tests import tiny_network

NAMES = ('encoder_input_tokens', 'decoder_input_tokens',
         'decoder_target_tokens')


def init(module, key):
  """All variables of a network."""
  return module.init(key, *tiny_network.tokens())


def call(module, params, batch, training):
  """Outputs and what adapters sow."""
  if not isinstance(module, inject.AdaptedModule):  # A bare one knows no ids.
    batch = {k: x for k, x in batch.items() if k != 'example_ids'}
  outputs, state = module.apply(
      {'params': params}, **batch, mutable=['intermediates'],
      rngs={'dropout': jax.random.key(1)} if training else {},
  )
  return outputs, losses.collect(state.get('intermediates', {}))


def packed():
  """A batch with two examples in each row."""
  batch = dict(zip(NAMES, tiny_network.tokens(), strict=True))
  ids = jnp.broadcast_to(
      1 + jnp.arange(tiny_network.LENGTH) // 3, batch[NAMES[0]].shape
  )
  for stack in ('encoder', 'decoder'):
    tokens = batch[f'{stack}_input_tokens']
    batch[f'{stack}_segment_ids'] = jnp.where(tokens > 0, ids, 0)
  return batch


def subject(
    module: inject.AdaptedModule,
    factors: Any = None,
    num_ids: int = 0,
    **fields: Any,
) -> subject_lib.Subject:
  """The subject of an adapted tiny network; examples may have ids in turn."""
  factors = factors or {}

  def loss(module, params, batch):
    outputs, metrics = call(module, params, batch, True)
    target = jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.sum(outputs * target) + losses.total(metrics, factors)

  batch = dict(zip(NAMES, tiny_network.tokens(), strict=True))
  both = packed()
  if num_ids:
    ids = 1 + jnp.arange(tiny_network.BATCH)[:, None] % num_ids
    batch['example_ids'] = ids
    both['example_ids'] = jnp.concatenate([ids, 1 + ids % num_ids], axis=1)
  return subject_lib.Subject(
      module=module, init=init, call=call, loss=loss, batch=batch,
      packed=both, reads=NAMES[1], padding=NAMES[2], loss_factors=factors,
      **fields,
  )


def network(
    make: Any, path: str = '.*/(key|wo)', config: Any = None, **options: Any
) -> inject.AdaptedModule:
  """The tiny network with an adapter on some of its layers."""
  rule = inject.OutputRule(path, functools.partial(make, **options))
  config = config or tiny_network.Config()
  return inject.AdaptedModule(tiny_network.Network(config), (rule,))


def adapted(make: Any, **options: Any) -> subject_lib.Subject:
  """The subject of a tiny network with an adapter on some of its layers."""
  return subject(network(make, **options))


class Scale(adapter.MoeAdapter):
  """Outputs plus a learned multiple of what a mutant makes of them."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    weight = self.param_with_axes(
        'weight', nn.initializers.zeros, (1,), ('unmodeled',)
    )
    return outputs + weight * self.update(inputs, outputs, tokens)

  def update(self, inputs, outputs, tokens):
    """What a mutant changes."""
    del inputs, tokens
    return outputs

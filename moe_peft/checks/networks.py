# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A subject of a network alone: any Linen module that reads token ids."""

from collections.abc import Mapping
import functools
import inspect
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.checks import small
from moe_peft.checks import subject as subject_lib
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import tokens as tokens_lib
from moe_peft.core import trainable

_ROWS, _LENGTH, _IDS = 4, 12, 20
# What networks call their switches of dropout, and whether training sets them.
_SWITCHES = {
    'enable_dropout': True, 'train': True, 'training': True,
    'is_training': True, 'deterministic': False,
}
_T5X = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')


def subject(
    module: inject.AdaptedModule,
    trainable_regex: str = trainable.ADAPTER_REGEX,
    loss_factors: Mapping[str, float] = types.MappingProxyType({}),
) -> subject_lib.Subject:
  """What is checked of an adapted network that has no model around it.

  Args:
    module: The network. It is called with T5X's arguments, or with one argument
      of token ids, <int32>[batch, length], that it requires.
    trainable_regex: Which parameters train.
    loss_factors: Factors of the losses that adapters sow.

  Raises:
    errors.UserError: The network requires another argument.
  """
  reads, arguments = _arguments(module.module)
  padding = 'decoder_target_tokens' if reads in _T5X else reads
  batch = _batch(arguments, _padding_id(module, reads))

  def init(module, key):
    variables = module.init(key, **batch, **_switches(module, False))
    return nn.meta.unbox(dict(variables))

  own = module
  module = small.shrink_module(
      module, functools.partial(init, key=jax.random.key(0))
  )

  def call(module, params, batch, training):
    result, state = module.apply(
        {'params': params}, **batch, **_switches(module, training),
        rngs={'dropout': jax.random.key(1)} if training else {},
        mutable=['intermediates'],
    )
    sown = losses.collect(state.get('intermediates', {}))
    return _outputs(result), sown

  def loss(module, params, batch):
    outputs, metrics = call(module, params, batch, True)
    target = jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.mean(outputs * target) + losses.total(metrics, loss_factors)

  jax.eval_shape(
      lambda key: loss(module, init(module, key)['params'], batch),
      jax.random.key(0),
  )
  return subject_lib.Subject(
      module=module, init=init, call=call, loss=loss, batch=batch,
      reads=reads, padding=padding, trainable_regex=trainable_regex,
      loss_factors=loss_factors, strict=False,
      sizes=small.sizes(own, module),
  )


def _parameters(network: nn.Module) -> Mapping[str, inspect.Parameter]:
  call = inspect.signature(type(network).__call__)
  return dict(list(call.parameters.items())[1:])


def _arguments(network: nn.Module) -> tuple[str, list[str]]:
  """The argument that the outputs are made of, and all that hold ids."""
  required = [
      name for name, x in _parameters(network).items()
      if x.default is x.empty and name not in _SWITCHES
      and x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)
  ]
  if set(required) <= set(_T5X) and 'decoder_input_tokens' in required:
    return 'decoder_input_tokens', required
  if len(required) != 1:
    raise errors.UserError(
        f'{type(network).__name__} is called with {", ".join(required)}; which '
        'of them are token ids is not known.', 'MODULE',
        'Wrap it in a module that is called with the ids alone, or as the '
        'networks of T5X are.',
    )
  return required[0], required


def _padding_id(module: inject.AdaptedModule, reads: str) -> int | None:
  """0 if the network knows it as padding, None if it knows of none."""
  ids = jnp.zeros((1, 1), jnp.int32)
  arguments = dict.fromkeys(_T5X, ids) if reads in _T5X else {reads: ids}
  tokens = module.describe_tokens(tokens_lib.Call(arguments, False))
  return None if tokens.valid is None or tokens.valid.any() else 0


def _batch(names: list[str], padding_id: int | None) -> dict[str, jax.Array]:
  """Random ids; where there is padding, rows are of different lengths."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(_LENGTH // 3, _LENGTH - 3, _ROWS)
  real = np.arange(_LENGTH) < lengths[:, None]
  batch = {}
  for name in names:
    ids = rng.integers(1, _IDS, (_ROWS, _LENGTH))
    if padding_id is not None:
      ids = np.where(real, ids, padding_id)
    batch[name] = jnp.asarray(ids, jnp.int32)
  return batch


def _switches(module: nn.Module, training: bool) -> dict[str, bool]:
  network = module.module if isinstance(
      module, inject.AdaptedModule) else module
  return {
      name: training == _SWITCHES[name]
      for name in _parameters(network) if name in _SWITCHES
  }


def _outputs(result: Any) -> jax.Array:
  """The outputs of all tokens, of what networks return."""
  if isinstance(result, Mapping):
    result = result['logits']
  result = getattr(result, 'logits', result)
  return result[0] if isinstance(result, tuple) else result

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of what a mixture is: one expert, experts in another order, execution.

Each builds the same network with other adapters on the same layers.
"""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.checks import outcome
from moe_peft.checks import subject as subject_lib
from moe_peft.core import dispatch
from moe_peft.core import id_scores
from moe_peft.core import trainable

_LORA, _IA3 = {'lora_a', 'lora_b'}, {'scaling'}


class _Plain(nn.Module):
  """LoRA and (IA)^3 as their papers write them, of the arrays of one expert.

  Attributes:
    scale: `alpha / rank` of LoRA.
  """

  scale: float

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    get = lambda name: self.get_variable('params', name)[0]
    if self.has_variable('params', 'scaling'):
      return outputs * get('scaling')
    return outputs + self.scale * ((inputs @ get('lora_a')) @ get('lora_b'))


def one_expert(subject: subject_lib.Subject) -> None:
  """With one expert the method is LoRA (2106.09685) or (IA)^3 (2205.05638)."""
  if not subject.sites:
    raise outcome.Skipped('no layer has an adapter.MoeAdapter')
  single = subject_lib.with_adapters(
      subject.module, lambda adapter, name: _resized(adapter, name, 1)
  )
  shapes = subject.shapes(single)
  params = subject_lib.moved({
      path: subject.base_params[path]
      if path in subject.base_params else jnp.zeros(x.shape, x.dtype)
      for path, x in shapes.items()
  }, subject.noise)
  replaced = []

  def plain(adapter, name):
    names = _names(shapes, adapter.site.path)
    known = names == _IA3 or (names == _LORA and hasattr(adapter, 'alpha'))
    if not known:
      return _resized(adapter, name, 1)
    replaced.append(adapter.site.path)
    scale = 1.0
    if names == _LORA:
      alone = _resized(adapter, None, 1)  # Its scale may be another.
      plain_scale = alone.alpha / getattr(alone, 'rank', 1)
      scale = getattr(alone, 'scale', plain_scale)
    return _Plain(scale, name=name)

  reference = subject_lib.with_adapters(subject.module, plain)
  want, _ = subject.compiled(reference, False)(params, subject.batch)
  if not replaced:
    raise outcome.Skipped(
        'an expert of this method is neither a low-rank pair nor a vector'
    )
  got, _ = subject.compiled(single, False)(params, subject.batch)
  outcome.close(got, want, 'Outputs with one expert and of the plain method')


def permutation(subject: subject_lib.Subject) -> None:
  """Experts have no order: the same ones in another order give the same."""
  _require_router(subject)
  if any(path.endswith('layer_index') for path in subject.params):
    raise outcome.Skipped('layers of this scan have the first experts only')
  if any(
      isinstance(getattr(site.router, 'scores', None), id_scores.ExpertOfId)
      for site in subject.sites.values()
  ):
    raise outcome.Skipped('each expert is that of an id')
  more = subject_lib.with_adapters(
      subject.module,
      lambda adapter, name: _resized(adapter, name, adapter.num_experts + 1)
      if adapter.num_experts > 1 else _resized(adapter, name, 1),
  )
  larger = subject.shapes(more)
  flipped = {
      path: _flipped(x, larger[path].shape)
      for path, x in subject.moved.items()
  }
  want, _ = subject.evaluate(subject.moved, subject.batch)
  got, _ = subject.evaluate(flipped, subject.batch)
  outcome.close(got, want, 'Outputs with the experts in another order')


def executions(subject: subject_lib.Subject) -> None:
  """The executions are ways to compute the same, drops included."""
  _require_router(subject)
  want, _ = subject.train(subject.moved, subject.batch)
  refused, compared = '', 0
  for execution in dispatch.EXECUTIONS:
    module = subject_lib.with_adapters(
        subject.module,
        lambda adapter, name, execution=execution: adapter.copy(
            name=name, execution=execution
        ),
    )
    try:
      got, _ = subject.compiled(module, True)(subject.moved, subject.batch)
    except errors.UserError as error:
      refused = error.what
      continue
    compared += 1
    outcome.close(got, want, f'Outputs with {execution!r} as the execution')
  if compared < 2:
    raise outcome.Skipped(refused)


def _require_router(subject: subject_lib.Subject) -> None:
  if not subject.has_routers:
    raise outcome.Skipped('no layer has a router')


def _resized(adapter: nn.Module, name: str, num_experts: int) -> nn.Module:
  return adapter.copy(name=name, num_experts=num_experts)


def _names(shapes: Mapping[str, Any], layer: str) -> set[str]:
  """Names of the parameters of the adapter of a layer."""
  scope = subject_lib.adapter_scope(layer)
  return {
      path.removeprefix(scope)
      for path in shapes
      if path.startswith(scope) and not trainable.is_constant(path)
  }


def _flipped(x: Any, larger: tuple[int, ...]) -> np.ndarray:
  """The experts of an array in the opposite order.

  Args:
    x: A parameter.
    larger: Its shape with one more expert: the axes that grow hold experts,
      the last of what such an axis is made of.
  """
  x = np.asarray(x)
  for axis, (size, grown) in enumerate(zip(x.shape, larger, strict=True)):
    if grown > size:
      inner = size // math.gcd(size, grown)
      parts = x.reshape(*x.shape[:axis], -1, inner, *x.shape[axis + 1:])
      x = np.flip(parts, axis + 1).reshape(x.shape)
  return x

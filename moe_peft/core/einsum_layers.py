# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers that are an einsum of inputs and a kernel, as Gemma's are.

`flax.linen.Einsum` has the equation as an attribute or gets it with the call
(`layer(x, einsum_str)`), Gemma's gets it first (`layer('BTD,NDH->BTNH', x)`).
Either way it says which axes are tokens and which are features.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import string
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EinsumLayer:
  """One call of such a layer.

  Attributes:
    inputs: The array among its arguments.
    equation: Its equation, inputs first, kernel second.
  """

  inputs: jax.Array
  equation: str

  def flat_inputs(self) -> jax.Array:
    """Returns `[*tokens, in_features]`."""
    inputs, _, _ = self._axes()
    tokens = self._tokens()
    x = jnp.einsum(f'{inputs}->{tokens}{_without(inputs, tokens)}', self.inputs)
    return x.reshape(*x.shape[: len(tokens)], -1)

  def flat_outputs(self, outputs: jax.Array) -> jax.Array:
    """Returns `[*tokens, out_features]`."""
    _, _, names = self._axes()
    tokens = self._tokens()
    y = jnp.einsum(f'{names}->{tokens}{_without(names, tokens)}', outputs)
    return y.reshape(*y.shape[: len(tokens)], -1)

  def restored(self, flat: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `flat_outputs`, for outputs of the shape of `like`."""
    _, _, names = self._axes()
    order = self._tokens() + _without(names, self._tokens())
    sizes = dict(zip(names, like.shape, strict=True))
    y = flat.reshape([sizes[name] for name in order])
    return jnp.einsum(f'{order}->{names}', y)

  def num_heads(self, outputs: jax.Array) -> int | None:
    """Size of the first of two feature axes of the outputs, else None."""
    _, _, names = self._axes()
    features = _without(names, self._tokens())
    if len(features) != 2:
      return None
    return outputs.shape[names.index(features[0])]

  def _axes(self) -> tuple[str, str, str]:
    """Letters of inputs, kernel and outputs, dots written out."""
    operands, outputs = self.equation.replace(' ', '').split('->')
    inputs, kernel = operands.split(',')
    unused = _without(string.ascii_letters, self.equation)
    dots = unused[: self.inputs.ndim - len(inputs.replace('...', ''))]
    write_out = lambda names: names.replace('...', dots)
    return write_out(inputs), kernel, write_out(outputs)

  def _tokens(self) -> str:
    inputs, kernel, outputs = self._axes()
    return ''.join(x for x in inputs if x in outputs and x not in kernel)


def find(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> EinsumLayer | None:
  """What a call of `module` is, if it is an einsum of one input and a kernel.

  Args:
    module: Any module.
    args: Arguments of the call.
    kwargs: Keyword arguments of the call.
  """
  if len(args) == 2 and isinstance(args[0], str):
    equation, inputs = args
  elif isinstance(module, nn.Einsum) and args:
    # As Flax has it: what the call says takes precedence.
    given = args[1] if len(args) > 1 else kwargs.get('einsum_str')
    equation, inputs = given or module.einsum_str, args[0]
  else:
    return None
  two = isinstance(equation, str) and equation.count(',') == 1
  return EinsumLayer(inputs, equation) if two and '->' in equation else None


def _without(names: str, others: str) -> str:
  return ''.join(name for name in names if name not in others)

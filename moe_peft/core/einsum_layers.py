# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers that are an einsum of inputs and a kernel, as Gemma's are.

`flax.linen.Einsum` has the equation as an attribute or gets it with the call
(`layer(x, einsum_str)`), Gemma's gets it first (`layer('BTD,NDH->BTNH', x)`).
Either way it says which axes are tokens and which are features.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import string
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EinsumLayer:
  """One call of such a layer, with the interface of `dense_layers.DenseLayer`.

  Attributes:
    inputs: The array among its arguments.
    equation: Its equation, inputs first, kernel second.
    next_fun: Runs the layer on other inputs, and on its own by default.
    siblings: What the siblings that a rule names have read and written.
  """

  inputs: jax.Array
  equation: str
  next_fun: Callable[..., jax.Array] | None = None
  siblings: Mapping[str, tuple[jax.Array, jax.Array]] = dataclasses.field(
      default_factory=dict
  )

  def run(self, flat_inputs: jax.Array | None = None) -> jax.Array:
    """Runs the layer, on other inputs if given; returns its outputs."""
    if flat_inputs is None:
      return self.next_fun()
    inputs, _, _ = self._axes()
    order = self._tokens() + _without(inputs, self._tokens())
    return self.next_fun(_unflatten(flat_inputs, order, inputs, self.inputs))

  def flat_inputs(self, inputs: jax.Array | None = None) -> jax.Array:
    """Returns `[*tokens, in_features]`, of the layer's inputs by default."""
    names, _, _ = self._axes()
    tokens = self._tokens()
    x = jnp.einsum(
        f'{names}->{tokens}{_without(names, tokens)}',
        self.inputs if inputs is None else inputs,
    )
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
    return _unflatten(flat, order, names, like)

  def num_heads(self, outputs: jax.Array) -> int | None:
    """Size of the first of two feature axes of the outputs, else None."""
    _, _, names = self._axes()
    features = _without(names, self._tokens())
    if len(features) != 2:
      return None
    return outputs.shape[names.index(features[0])]

  def frozen(self) -> dict[str, jax.Array]:
    """None of its own parameters is known to be a matrix of features."""
    return {}

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
    module: nn.Module,
    next_fun: Callable[..., jax.Array],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    siblings: Mapping[str, tuple[jax.Array, jax.Array]],
) -> EinsumLayer | None:
  """The call of a layer that is an einsum of one input and a kernel.

  Args:
    module: Any module.
    next_fun: Runs it.
    args: Arguments of the call.
    kwargs: Keyword arguments of the call.
    siblings: See `EinsumLayer`.

  Returns:
    The call, or None if the module is no such layer.
  """
  if len(args) == 2 and isinstance(args[0], str):
    equation, inputs = args
    run = lambda x=inputs: next_fun(equation, x, **kwargs)
  elif isinstance(module, nn.Einsum) and args:
    # As in Flax, the equation of the call takes precedence.
    given = args[1] if len(args) > 1 else kwargs.get('einsum_str')
    equation, inputs = given or module.einsum_str, args[0]
    run = lambda x=inputs: next_fun(x, *args[1:], **kwargs)
  else:
    return None
  two = isinstance(equation, str) and equation.count(',') == 1
  if not two or '->' not in equation:
    return None
  return EinsumLayer(inputs, equation, run, siblings)


def _unflatten(
    flat: jax.Array, order: str, names: str, like: jax.Array
) -> jax.Array:
  """Gives flat features the axes of `like`; `order` has tokens first."""
  sizes = dict(zip(names, like.shape, strict=True))
  return jnp.einsum(
      f'{order}->{names}', flat.reshape([sizes[name] for name in order])
  )


def _without(names: str, others: str) -> str:
  return ''.join(name for name in names if name not in others)

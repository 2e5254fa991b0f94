# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense layers as rules see them: features in one axis, tokens before it.

`DenseLayer` is one call of a dense layer; `einsum_layers.EinsumLayer` is the
same for layers that are an einsum. A rule runs the layer itself, because
`param_with_axes` gives a parameter to the module on top of Flax's stack, which
would be the adapter if the adapter ran the layer.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from flax import linen as nn
from flax.core import meta
import jax

from moe_peft.core import sites


@dataclasses.dataclass(frozen=True)
class DenseLayer:
  """One call of a layer.

  Attributes:
    next_fun: Runs the layer.
    args: Arguments of the call; the inputs come first.
    kwargs: Keyword arguments of the call.
    num_inputs: Trailing axes of the inputs that the layer contracts.
    module: The layer.
    siblings: What the siblings that the rule names have read and written, as
      `{name: (inputs, outputs)}`.
  """

  next_fun: Callable[..., jax.Array]
  args: Sequence[Any]
  kwargs: Mapping[str, Any]
  num_inputs: int
  siblings: Mapping[str, tuple[jax.Array, jax.Array]]
  module: nn.Module

  @property
  def inputs(self) -> jax.Array:
    """The array that the layer reads."""
    return self.args[0]

  def run(self, flat_inputs: jax.Array | None = None) -> jax.Array:
    """Runs the layer, on other inputs if given; returns its outputs."""
    if flat_inputs is None:
      return self.next_fun(*self.args, **self.kwargs)
    inputs = flat_inputs.reshape(self.inputs.shape)
    return self.next_fun(inputs, *self.args[1:], **self.kwargs)

  def flat_inputs(self, inputs: jax.Array | None = None) -> jax.Array:
    """Returns `[*tokens, in_features]`, of the layer's inputs by default."""
    inputs = self.inputs if inputs is None else inputs
    return inputs.reshape(*self._tokens(), -1)

  def flat_outputs(self, outputs: jax.Array) -> jax.Array:
    """Returns `[*tokens, out_features]`."""
    return outputs.reshape(*self._tokens(), -1)

  def restored(self, flat: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `flat_outputs`, for outputs of the shape of `like`."""
    return flat.reshape(like.shape)

  def num_heads(self, outputs: jax.Array) -> int | None:
    """Size of the first of two feature axes of the outputs, else None."""
    two = outputs.ndim == len(self._tokens()) + 2
    return outputs.shape[-2] if two else None

  def frozen(self) -> dict[str, jax.Array]:
    """The layer's own parameters, see `sites.Site.frozen`; once it has run."""
    # A quantized kernel is opened: rules read floats.
    params = meta.unbox(self.module.variables.get('params', {}))
    features = self.flat_inputs().shape[-1]
    shapes = {'kernel': (features, -1), 'bias': (-1,)}
    return {
        name: jax.lax.stop_gradient(params[name]).reshape(shape)
        for name, shape in shapes.items()
        if name in params
    }

  def _tokens(self) -> tuple[int, ...]:
    return self.inputs.shape[: self.inputs.ndim - self.num_inputs]


def find(
    module: nn.Module,
    next_fun: Callable[..., jax.Array],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    siblings: Mapping[str, tuple[jax.Array, jax.Array]],
) -> DenseLayer:
  """The call of a dense layer; see the attributes of `DenseLayer`."""
  if not args:  # Called by keyword.
    signature = inspect.signature(type(module).__call__)
    bound = signature.bind(module, **kwargs)
    args, kwargs = bound.args[1:], bound.kwargs
  num_inputs = sites.num_input_axes(module)
  return DenseLayer(next_fun, args, kwargs, num_inputs, siblings, module)

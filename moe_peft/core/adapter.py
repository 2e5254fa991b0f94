# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base class of all adapters: make parameters, route, sow.

A method (methods/) subclasses `MoeAdapter` and says in `__call__` what an
expert is. Who uses it is the router's business (routing.py), how it is run
that of the execution (dispatch.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import dispatch
from moe_peft.core import inject
from moe_peft.core import routing as routing_lib


class MoeAdapter(nn.Module):
  """Changes what goes through one layer, with a mixture of experts.

  Called as `adapter(inputs, outputs, tokens)`, with `<float>[batch, length,
  features]` inputs and outputs of the layer; returns new outputs.

  Attributes:
    site: The layer it sits on.
    num_experts: Number of experts. With one expert there is no router.
    router_factory: Builds the router. A factory and not a module: one module
      given to many adapters would be one router shared by all.
    execution: 'auto', 'all_experts', 'einsum' or 'ragged'.
    dtype: Type of the experts' arithmetic, by default that of the layer's
      outputs. Routers are always float32.
    experts_by_depth: Number of experts in each part of the stack, bottom to
      top, for layers inside a scan, whose arrays must have one shape: experts
      beyond the layer's number are masked. Set by methods/mola.py.
  """

  site: inject.Site = inject.Site()
  num_experts: int = 1
  router_factory: Callable[..., Any] = routing_lib.Router
  execution: str = 'auto'
  dtype: Any | None = None
  experts_by_depth: tuple[int, ...] | None = None

  @nn.nowrap
  def param_with_axes(
      self,
      name: str,
      init: Callable[..., jax.Array],
      shape: Sequence[int],
      axes: Sequence[str],
  ) -> jax.Array:
    """Returns a float32 parameter of this adapter with logical axes.

    An axis `expert` of size one, which no mesh can divide, becomes
    `unmodeled`.

    Raises:
      errors.UserError: If the mesh does not divide the experts.
    """
    parts = jax.sharding.get_abstract_mesh().shape.get('expert', 1)
    names = []
    for size, axis in zip(shape, axes, strict=True):
      if axis == 'expert' and size > 1 and size % parts:
        raise errors.UserError(
            f'NUM_EXPERTS = {size} at {self.site.path} cannot be divided over '
            f'NUM_EXPERT_PARTITIONS = {parts}. Use a multiple of {parts}, or '
            'NUM_EXPERT_PARTITIONS = 1.'
        )
      names.append('unmodeled' if axis == 'expert' and size == 1 else axis)
    return partitioning.param_with_axes(
        name, init, tuple(shape), jnp.float32, axes=tuple(names), module=self
    )

  @nn.nowrap
  def route(
      self,
      features: jax.Array,
      tokens: routing_lib.Tokens | None,
      *,
      in_axis: str | None = None,
      num_heads: int | None = None,
      beside: jax.Array | None = None,
      name: str = 'router',
      **router_fields,
  ) -> routing_lib.Routing | None:
    """Runs the router and sows what it reports.

    Args:
      features: <float>[batch, length, features] what the router reads.
      tokens: What is known of the tokens.
      in_axis: Logical name of the features; by default the layer's inputs'.
      num_heads: Heads in the features (1 if the layer has none); None for
        features that are never routed by head.
      beside: Matrix to be multiplied with the features in the same matmul.
      name: Scope of the router.
      **router_fields: Further fields of the router, for methods that bring
        their own.

    Returns:
      The routing, or None if there is only one expert.
    """
    if self.num_experts < 1:
      raise errors.UserError(
          f'NUM_EXPERTS = {self.num_experts} must be at least 1.'
      )
    if self.num_experts == 1:
      return None
    router = self.router_factory(
        num_experts=self.num_experts,
        in_axis=in_axis or self.site.kernel_axis_names[0],
        causal=self.site.causal,
        num_heads=num_heads,
        name=name,
        **router_fields,
    )
    routing = router(features, tokens, beside, self._active())
    for metric, value in routing.metrics.items():
      # Three axes: T5X's models and Flaxformer's scans expect them.
      self.sow('intermediates', metric, value.reshape(1, 1, 1))
    if not self.is_initializing():  # No part of a model's state.
      weights = routing.combine_weights
      shape = (*features.shape[:2], -1, weights.shape[-1])
      self.sow('routing', 'combine_weights', weights.reshape(shape).mean(2))
    return routing

  @nn.nowrap
  def _active(self) -> jax.Array | None:
    """Returns <bool>[num_experts], or None if this layer has all of them."""
    if self.experts_by_depth is None:
      return None
    # Numbered by inject.AdaptedModule once the stack is initialized.
    index = self.param_with_axes(
        'layer_index', nn.initializers.zeros, (1,), ('unmodeled',)
    )
    index = jax.lax.stop_gradient(index[0]).astype(jnp.int32)
    parts = len(self.experts_by_depth)
    part = index * parts // self.site.num_layers
    return jnp.arange(self.num_experts) < jnp.array(self.experts_by_depth)[part]

  @nn.nowrap
  def mix(
      self,
      inputs: jax.Array,
      tokens: routing_lib.Tokens | None,
      kernel: jax.Array,
      bias: jax.Array | None = None,
      in_axis: str | None = None,
  ):
    """Routes, and runs the first half of the experts.

    Args:
      inputs: <float>[batch, length, in].
      tokens: What is known of the tokens.
      kernel: <float>[num_experts or 1, in, rank].
      bias: <float>[num_experts or 1, rank], or None.
      in_axis: Logical name of the inputs, as in `route`.

    Returns:
      (mixture, routing): a mixture of dispatch.py, with `hidden` and `up`, and
      the routing, None if there is one expert.
    """
    ours = self.execution in ('auto', 'all_experts')
    routing = self.route(
        inputs,
        tokens,
        in_axis=in_axis,
        beside=dispatch.beside(kernel) if ours else None,
    )
    execution = dispatch.choose(
        self.execution, routing, self.num_experts, kernel.shape[-1]
    )
    return dispatch.down(execution, inputs, kernel, routing, bias), routing

  @nn.nowrap
  def require_all_experts(self, why: str) -> None:
    """Raises errors.UserError if another execution was asked for."""
    if self.execution not in ('auto', 'all_experts'):
      raise errors.UserError(
          f'{type(self).__name__}.execution = {self.execution!r}: {why} Use '
          "'auto' or 'all_experts'."
      )

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
from moe_peft.core import low_rank
from moe_peft.core import observe
from moe_peft.core import routing as routing_lib
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib


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

  site: sites.Site = sites.Site()
  num_experts: int = 1
  router_factory: Callable[..., routing_lib.Router] = routing_lib.Router
  execution: str = 'auto'
  dtype: Any | None = None
  experts_by_depth: tuple[int, ...] | None = None

  @property
  def starts_at_base(self) -> bool:
    """Whether a fresh adapter changes nothing, as most methods have it."""
    return True

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
            f'NUM_EXPERT_PARTITIONS = {parts}.',
            where='NUM_EXPERTS',
            remedy=f'Use a multiple of {parts}, or NUM_EXPERT_PARTITIONS = 1.',
        )
      names.append('unmodeled' if axis == 'expert' and size == 1 else axis)
    return partitioning.param_with_axes(
        name, init, tuple(shape), jnp.float32, axes=tuple(names), module=self
    )

  @nn.nowrap
  def route(
      self,
      features: jax.Array,
      tokens: tokens_lib.Tokens | None,
      *,
      in_axis: str | None = None,
      num_heads: int | None = None,
      name: str = 'router',
      **router_fields: Any,
  ) -> routing_lib.Routing | None:
    """Runs the router and sows what it reports.

    Args:
      features: <float>[batch, length, features] what the router reads.
      tokens: What is known of the tokens.
      in_axis: Logical name of the features; by default the layer's inputs'.
      num_heads: Heads in the features (1 if the layer has none); None for
        features that are never routed by head.
      name: Scope of the router.
      **router_fields: Further fields of the router, for methods that bring
        their own.

    Returns:
      The routing, or None if there is only one expert.
    """
    router = self._router(in_axis, num_heads, name, **router_fields)
    if router is None:
      return None
    self._require_tokens(features)
    active = self._active()
    return self._sow(router(features, tokens, active=active), features, active)

  @nn.nowrap
  def mix(
      self,
      inputs: jax.Array,
      tokens: tokens_lib.Tokens | None,
      kernel: jax.Array,
      bias: jax.Array | None = None,
      in_axis: str | None = None,
  ):
    """Routes, and runs the first half of the experts.

    The router's kernel and the experts' share one matmul where that is the same
    arithmetic: one is faster than two.

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
    routing, product = self._routed(inputs, tokens, kernel, in_axis)
    if routing is None:
      return dispatch.down('all_experts', inputs, kernel, None, bias), None
    execution = dispatch.choose(
        self.execution, routing, self.num_experts, kernel.shape[-1]
    )
    mixture = dispatch.down(execution, inputs, kernel, routing, bias, product)
    return mixture, routing

  @nn.nowrap
  def _routed(
      self, inputs, tokens, kernel, in_axis=None
  ) -> tuple[routing_lib.Routing | None, jax.Array | None]:
    """Routes; returns the routing, and the products with the kernel if made."""
    router = self._router(in_axis, None, 'router')
    if router is None:
      return None, None
    self._require_tokens(inputs)
    product, logits = None, self._expert_logits(router, inputs, kernel)
    rows = router.rows(inputs.shape[-1]) if logits is None else None
    all_experts = self.execution in ('auto', 'all_experts')
    float32 = inputs.dtype == kernel.dtype == jnp.float32
    if rows is not None and all_experts and float32:
      ours = dispatch.down_rows(kernel)
      both = low_rank.project(inputs, jnp.concatenate([ours, rows]))
      product, logits = jnp.split(both, [len(ours)], axis=-1)
    elif rows is not None:
      logits = low_rank.project(inputs.astype(jnp.float32), rows)
    active = self._active()
    routing = router(inputs, tokens, logits, active)
    return self._sow(routing, inputs, active), product

  @nn.nowrap
  def _expert_logits(self, router, inputs, kernel) -> jax.Array | None:
    """Logits of all experts that are made of their own kernels, or None."""
    return router.scores.of_experts(inputs, kernel)

  @nn.nowrap
  def _router(
      self, in_axis, num_heads, name, **router_fields
  ) -> routing_lib.Router | None:
    """Makes the router; None if there is only one expert."""
    if not isinstance(self.num_experts, int) or self.num_experts < 1:
      raise errors.UserError(
          f'NUM_EXPERTS = {self.num_experts!r} must be a whole number and at '
          'least 1.',
          where='NUM_EXPERTS',
      )
    if self.num_experts == 1:
      return None
    return self.router_factory(
        num_experts=self.num_experts,
        reads=routing_lib.Features(
            axis=in_axis or self.site.kernel_axis_names[0],
            num_heads=num_heads,
            causal=self.site.causal,
        ),
        name=name,
        **router_fields,
    )

  @nn.nowrap
  def _sow(self, routing, features, active) -> routing_lib.Routing:
    """Sows what a router reports."""
    for metric, value in routing.metrics.items():
      # T5X's models and Flaxformer's scans expect three axes.
      self.sow('intermediates', metric, value.reshape(1, 1, 1))
    if not self.is_initializing():  # What is sown is no state of a model.
      weights = routing.combine_weights
      if self.experts_by_depth is not None:
        weights = jnp.where(active, weights, observe.ABSENT)
      shape = (*features.shape[:2], -1, weights.shape[-1])
      self.sow('routing', 'combine_weights', weights.reshape(shape).mean(2))
    return routing

  @nn.nowrap
  def _active(self) -> jax.Array | None:
    """Returns <bool>[num_experts], or None if this layer has all of them."""
    if self.experts_by_depth is None:
      return None
    # inject.AdaptedModule numbers the layers once the stack is initialized.
    index = self.param_with_axes(
        'layer_index', nn.initializers.zeros, (1,), ('unmodeled',)
    )
    index = jnp.round(jax.lax.stop_gradient(index[0])).astype(jnp.int32)
    parts = len(self.experts_by_depth)
    part = index * parts // self.site.num_layers
    return jnp.arange(self.num_experts) < jnp.array(self.experts_by_depth)[part]

  @nn.nowrap
  def _require_tokens(self, features: jax.Array) -> None:
    """Raises errors.UserError for features that are not those of tokens."""
    if features.ndim != 3:
      raise errors.UserError(
          f'{self.site.path} has features of {features.ndim} axes, and a '
          'router reads [batch, length, features].', where='SITES',
          remedy='Leave such layers out, or give them a rule of their own with '
          'one expert.',
      )

  @nn.nowrap
  def drop(self, x: jax.Array, rate: float) -> jax.Array:
    """Drops numbers while training, and scales the others by 1 / (1 - rate)."""
    training = self.has_rng('dropout')
    return nn.Dropout(rate, deterministic=not training)(x)

  @nn.nowrap
  def require_all_experts(self, why: str) -> None:
    """Raises errors.UserError if another execution was asked for."""
    if self.execution not in ('auto', 'all_experts'):
      raise errors.UserError(
          f'{type(self).__name__} cannot run as {self.execution!r}: {why}',
          where='adapter.MoeAdapter.execution',
          remedy="Use 'auto' or 'all_experts'.",
      )

  @nn.nowrap
  def require_one_expert(self, remedy: str) -> None:
    """Raises errors.UserError if there are several."""
    if self.num_experts != 1:
      raise errors.UserError(
          f'{type(self).__name__} has one expert, and NUM_EXPERTS = '
          f'{self.num_experts}.',
          where='NUM_EXPERTS',
          remedy=remedy,
      )

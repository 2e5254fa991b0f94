# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every expert is worth: the loss without it.

An expert is taken away as if it had never been there: its logit is minus
infinity, so a softmax gives its share to the others, and a top-k router takes
the next best one. `moe_peft.cli.prune` removes experts in the same sense.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import partitioning
from moe_peft.core import routing
from moe_peft.core import sites
from moe_peft.core import trainable
from moe_peft.runs import site_names

Params = Mapping[str, Any]
Batches = Mapping[str, Mapping[str, np.ndarray]]
Masks = Mapping[str, Any]
Change = Callable[
    [str, inspect.BoundArguments, Callable[[], routing.Routing]],
    routing.Routing,
]


def apply_overruled(
    function: Callable[..., Any], change: Change, *args: Any, **kwargs: Any
) -> Any:
  """Calls a function of a model whose routers are overruled.

  Must run while JAX traces: the routers of a compiled function stay as they
  are.

  Args:
    function: Applies an adapted model.
    change: Gets the path of a site, the arguments that its router is called
      with, and a function that routes with them as they are then; returns the
      `routing.Routing` that counts.
    *args: Arguments of the function.
    **kwargs: More of them.
  """

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    if (
        not isinstance(module, routing.Router)
        or context.method_name != '__call__'
    ):
      return next_fun(*args, **kwargs)
    site = '/'.join(module.path).partition(f'/{sites.ADAPTER_SCOPE}/')[0]
    signature = inspect.signature(type(module).__call__)
    call = signature.bind(module, *args, **kwargs)
    # The router is bound to `next_fun`.
    return change(site, call, lambda: next_fun(*call.args[1:], **call.kwargs))

  with nn.intercept_methods(intercept):
    return function(*args, **kwargs)


def apply_masked(
    function: Callable[..., Any], masks: Masks, *args: Any
) -> Any:
  """Calls a function of a model in which experts are missing.

  Must run while JAX traces, as `apply_overruled`.

  Args:
    function: Applies an adapted model.
    masks: <bool>[num_experts] by site, False for an expert that is missing.
    *args: Arguments of the function.
  """

  def mask(site, call, route):
    if site in masks:
      active, there = call.arguments.get('active'), masks[site]
      call.arguments['active'] = there if active is None else active & there
    return route()

  return apply_overruled(function, mask, *args)


def routers(model: Any, params: Params, batch: Any) -> dict[str, nn.Module]:
  """The router of every routed site, by tracing the model.

  Raises:
    errors.UserError: If there is none, or the layers run in a scan, where one
      router stands for all layers.
  """
  if getattr(model.module, 'scan_layers', False):
    raise errors.UserError(
        'Experts of single layers cannot be taken away inside a scan.',
        where='SCAN_LAYERS',
        remedy='Only runs with SCAN_LAYERS = False can be ablated or pruned.',
    )
  _, sites = adapted_sites.trace(
      model.score, trainable.unflatten(params), dict(batch)
  )
  found = {
      path: site.router
      for path, site in sites.items()
      if site.router is not None
  }
  if not found:
    raise errors.UserError(
        'No site has a router; where there is one expert, none can be taken '
        'away.',
        where='ADAPTER_RULES',
    )
  return {site: found[site] for site in sorted(found, key=site_names.order)}


def loss_fn(model: Any, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
  """Compiles the losses of a batch under several masks at once.

  Returns:
    (params, batch, masks) -> <float32>[n], mean nats per target token, with
    masks <bool>[n, num_experts] by site: one pass, `jax.vmap` over the masks.
  """

  def losses(params, batch, masks):
    nested = trainable.unflatten(params)
    tokens = jnp.maximum(batch['decoder_loss_weights'].sum(), 1)
    loss = lambda m: -apply_masked(model.score, m, nested, batch).sum() / tokens
    return jax.vmap(loss)(masks)

  return jax.jit(
      losses, in_shardings=(None, partitioning.batch_sharding(mesh), None)
  )


def leave_one_out(
    model: Any,
    params: Params,
    batches: Batches,
    mesh: jax.sharding.Mesh,
    on_site: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Losses of every task without each expert of each site.

  Args:
    model: A `LanguageModel`.
    params: Flat parameters.
    batches: Model features by task.
    mesh: Where the model runs.
    on_site: Called after each site.

  Returns:
    The losses with nothing taken away, <float>[num_tasks], and without each
    expert, <float>[num_experts, num_tasks] by site. Nats per target token.
  """
  sizes = {
      site: router.num_experts
      for site, router in routers(
          model, params, next(iter(batches.values()))
      ).items()
  }
  most = max(sizes.values())
  compiled = loss_fn(model, mesh)
  # Every call has masks of the same shapes, so that one program serves all.
  everything = {s: np.ones((most, e), bool) for s, e in sizes.items()}
  evaluate = lambda masks: np.array([
      jax.device_get(compiled(params, dict(batch), masks))
      for batch in batches.values()
  ])  # [task, most]
  with partitioning.use_mesh(mesh):
    loss = evaluate(everything)[:, 0]
    without = {}
    for site, num_experts in sizes.items():
      mask = np.ones((most, num_experts), bool)
      mask[:num_experts] = ~np.eye(num_experts, dtype=bool)
      losses = evaluate({**everything, site: mask})
      without[site] = losses[:, :num_experts].T
      on_site()
  return loss, without

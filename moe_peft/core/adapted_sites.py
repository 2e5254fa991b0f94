# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which adapters and routers a model has, found by tracing it.

The model runs once on shapes, and every adapter that runs is looked at. Its
fields are what gin made them, so nothing is guessed from parameter names.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax

from moe_peft.core import adapter as adapter_lib
from moe_peft.core import routing as routing_lib
from moe_peft.core import sites


@dataclasses.dataclass(frozen=True)
class TracedSite:
  """A layer with its adapter; one stands for all layers of a scan.

  Attributes:
    adapter: The adapter. Its fields may be read; its methods need a scope.
    router: The router, the last to run if there are several (AdaMix); None
      with one expert.
    routing: What the router returns, with `jax.ShapeDtypeStruct` for arrays.
  """

  adapter: adapter_lib.MoeAdapter
  router: nn.Module | None = None
  routing: routing_lib.Routing | None = None


def trace(
    function: Callable[..., Any], *args: Any
) -> tuple[Any, dict[str, TracedSite]]:
  """Calls a function on shapes, and looks at the adapters that run.

  Args:
    function: Initializes or applies an adapted model.
    *args: Its arguments: trees of arrays or of their shapes.

  Returns:
    The result with shapes for arrays, and the sites by path of their layer, as
    in `encoder/layers_0/mlp/wo`, in the order in which they run.
  """
  adapters: dict[str, TracedSite] = {}
  routers: dict[str, dict[str, Any]] = {}

  def look(next_fun, args, kwargs, context):
    result = next_fun(*args, **kwargs)
    module = context.module
    site = '/'.join(module.path).rpartition(f'/{sites.ADAPTER_SCOPE}')[0]
    if context.method_name != '__call__':
      return result
    if isinstance(module, adapter_lib.MoeAdapter):
      adapters[site] = TracedSite(module)
    elif isinstance(result, routing_lib.Routing):
      routers[site] = {'router': module, 'routing': jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), result
      )}
    return result

  with nn.intercept_methods(look):
    # A new function: JAX would not run one again that it has traced before.
    result = jax.eval_shape(lambda *args: function(*args), *args)
  for site, found in routers.items():
    adapters[site] = dataclasses.replace(adapters[site], **found)
  return result, adapters

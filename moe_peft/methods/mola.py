# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""MoLA (arXiv 2402.08562): a number of experts for each part of the stack.

Experts are MoLoRA's, the gate is the normalized top-2. From the paper: rank
8, alpha 16, more experts in higher layers (2/4/6/8).

`by_depth` gives other methods such numbers. Outside of a scan every layer has
exactly its own experts. Inside one all layers must have arrays of one shape,
so they have the largest number, and each masks those beyond its own: they get
no weight and no gradient, and count in no loss. Methods whose scale,
initializer or capacity is made for one number are refused there.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from moe_peft import errors
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.methods import molora


class MoLARouter(routing.Router):
  """Normalized top-2."""

  select: Any = selection.TopK(k=2, normalize=True)


class MoLA(molora.MoLoRA):
  """MoLoRA under MoLA's router."""

  num_experts: int = 8
  rank: int = 8
  router_factory: Callable[..., routing.Router] = MoLARouter


def by_depth(
    adapter_factory: Callable[..., Any] = MoLA,
    experts_by_depth: Sequence[int] = (2, 4, 6, 8),
    site: sites.Site = sites.Site(),
    name: str | None = None,
) -> nn.Module:
  """Builds an adapter with the number of experts of its layer.

  Args:
    adapter_factory: The method.
    experts_by_depth: Numbers of experts from bottom to top; the stack is cut
      into as many equal parts.
    site: The layer.
    name: Scope of the adapter.

  Raises:
    errors.UserError: If the depth of the stack is not known, there are more
      parts than layers, or the method counts its experts inside a scan.
  """
  numbers, depth = tuple(experts_by_depth), site.num_layers
  if depth is None:
    raise errors.UserError(
        f'The model does not tell how many layers the stack of {site.path} has '
        '(config.num_encoder_layers, num_decoder_layers or num_layers).',
        where='mola.by_depth',
        remedy='Use the method without by_depth.',
    )
  if not numbers or len(numbers) > depth:
    raise errors.UserError(
        f'EXPERTS_BY_DEPTH = {numbers} has {len(numbers)} parts for the '
        f'{depth} layers of the stack of {site.path}.',
        where='EXPERTS_BY_DEPTH',
        remedy=f'Give 1 to {depth} numbers.',
    )
  if site.layer is not None:
    number = numbers[site.layer * len(numbers) // depth]
    return adapter_factory(site=site, num_experts=number, name=name)
  adapter = adapter_factory(
      site=site,
      num_experts=max(numbers),
      experts_by_depth=numbers,
      name=name,
  )
  if len(set(numbers)) > 1:
    _check_masked(adapter)
  return adapter


def _check_masked(adapter: Any) -> None:
  """Raises errors.UserError for what is made for the largest number alone."""
  router = adapter.router_factory(num_experts=adapter.num_experts, parent=None)
  capacity = router.capacity
  if capacity is not None and capacity.capacity_factor is not None:
    what = 'a capacity_factor'
  elif getattr(adapter, 'counts_experts', False):
    what = type(adapter).__name__
  else:
    return
  raise errors.UserError(
      f'Inside a scan {what} goes by the largest of EXPERTS_BY_DEPTH = '
      f'{adapter.experts_by_depth}, in layers with fewer experts too.',
      where='SCAN_LAYERS',
      remedy='Set SCAN_LAYERS = False, or one number of experts.',
  )

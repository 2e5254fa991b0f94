# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which options of a router go together."""

from typing import Any

from moe_peft import errors
from moe_peft.core import capacity as capacity_lib

OPTIONS = {
    'score': ('softmax', 'sigmoid'),
    'selection': ('all', 'top_k', 'threshold', 'random', 'expert_choice'),
    'unit': ('token', 'head', 'sequence', 'embedding', 'batch'),
    'load_balance': ('switch', 'sira'),
}


def check(router: Any) -> None:
  """Raises errors.UserError for options that cannot be."""
  name = 'routing.Router'
  for field, choices in OPTIONS.items():
    if getattr(router, field) not in choices:
      raise errors.UserError(
          f'{name}.{field} = {getattr(router, field)!r}; choose one of '
          f'{", ".join(choices)}.'
      )
  k = router.num_selected_experts
  needs_k = router.selection in ('top_k', 'random')
  if needs_k != (k is not None):
    raise errors.UserError(
        f"{name}.selection = {router.selection!r} "
        + (
            f'needs {name}.num_selected_experts (NUM_SELECTED_EXPERTS).'
            if needs_k
            else f'does not use {name}.num_selected_experts = {k}; remove the '
            f"binding, or bind {name}.selection = 'top_k'."
        )
    )
  if k is not None and not 1 <= k <= router.num_experts:
    raise errors.UserError(
        f'{name}.num_selected_experts = {k} (NUM_SELECTED_EXPERTS) is not '
        f'between 1 and NUM_EXPERTS = {router.num_experts}.'
    )
  for field in ('gate_dropout', 'jitter'):
    if not 0.0 <= getattr(router, field) < 1.0:
      raise errors.UserError(
          f'{name}.{field} = {getattr(router, field)} must be at least 0 and '
          'below 1.'
      )
  if router.unit == 'head' and router.num_heads is None:
    raise errors.UserError(
        f"{name}.unit = 'head' is for methods that read a layer's outputs, as "
        f"MoV; this one reads its inputs. Bind {name}.unit = 'token'."
    )
  if router.unit == 'batch' and router.selection != 'random':
    raise errors.UserError(
        f"{name}.unit = 'batch' is for {name}.selection = 'random'; use unit "
        "= 'sequence' to route whole examples."
    )
  if router.selection == 'expert_choice':
    if router.causal:
      raise errors.UserError(
          f"{name}.selection = 'expert_choice' compares a token with later "
          'ones and is for encoders only. Restrict SITES to encoder layers, '
          "for example SITES = '.*encoder/.*/(wi_0|wo)', or use 'top_k'."
      )
    if router.capacity is None:
      raise errors.UserError(
          f"{name}.selection = 'expert_choice' needs {name}.capacity = "
          '@capacity.Capacity(), with a capacity_factor.'
      )
  if router.capacity is not None:
    priority_matters = router.selection != 'expert_choice'
    capacity_lib.check(
        router.capacity, router.selection, router.causal and priority_matters
    )

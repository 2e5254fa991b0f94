# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What an adapter computes, as exported folders say it.

The options are read from the adapter and its router themselves, as gin made
them. What depends on more than the token it is applied to is refused.
"""

from collections.abc import Sequence
import re
from typing import Any

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import adamix
from moe_peft.methods import adamole
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import sira
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora

# Exact classes: another subclass may compute something else. These differ from
# MoLoRA, with one or several `lora_a`, and MoV only in training and routing.
_KINDS = {
    molora.MoLoRA: 'low_rank',
    lora.LoRA: 'low_rank',
    sira.SiRA: 'low_rank',
    moelora.MoELoRA: 'low_rank',
    hydralora.HydraLoRA: 'low_rank',
    mosld.MoSLD: 'low_rank',
    adamole.AdaMoLE: 'low_rank',
    smora.SMoRA: 'low_rank',
    mola.MoLA: 'low_rank',
    smoe_dropout.SMoEDropout: 'low_rank',
    mov.MoV: 'vector',
    ia3.IA3: 'vector',
}
# Exact classes too. Some differ only while training. `adamix.RandomChoice` uses
# all experts at evaluation, with equal weights.
_SCORES = (
    scores.TokenScores,
    scores.HeadScores,
    adamole.ThresholdScores,
    adamix.NoScores,
    smoe_dropout.FrozenScores,
)
_SELECTIONS = {
    selection.Soft: 'all',
    selection.TopK: 'top_k',
    smoe_dropout.GrowingTopK: 'top_k',
    smora.BiasedTopK: 'top_k',
    adamole.Threshold: 'threshold',
    adamix.RandomChoice: 'uniform',
}


def refusal(
    layer: str, method: str, why: str, where: str, remedy: str = ''
) -> errors.UserError:
  """The error of an adapter that cannot be exported."""
  return errors.UserError(
      f'{method} (at {layer}) cannot be exported: {why}', where, remedy
  )


def read(
    layer: str,
    site: adapted_sites.TracedSite,
    rules: Sequence[inject.OutputRule],
) -> dict[str, Any]:
  """Reads the options of an adapter.

  Args:
    layer: Path of its layer.
    site: The adapter with its router.
    rules: Of the adapted model; the first that matches the layer made it.

  Returns:
    `method`, the name of its class, and the options of
    `torch_experts.Experts` but for those that its arrays tell.

  Raises:
    errors.UserError: If it computes what the formats do not have.
  """
  adapter = site.adapter
  method, kind = type(adapter).__name__, _KINDS.get(type(adapter))
  rule = next(r for r in rules if re.fullmatch(r.path, layer))
  at_input = type(rule) is inject.InputRule
  if kind is None or not (at_input or type(rule) is inject.OutputRule):
    known = ', '.join(cls.__name__ for cls in _KINDS)
    raise refusal(
        layer, method, 'there is no such method in the formats.',
        'ADAPTER_RULES', f'These methods can be exported: {known}.',
    )
  if at_input and kind == 'low_rank':
    raise refusal(
        layer, method, 'it changes the inputs of its layer.', 'ADAPTER_RULES'
    )
  spec = {
      'method': method,
      'kind': kind,
      'num_experts': adapter.num_experts,
      'site_input': at_input,
      'router': None,
      'num_heads': 1,
  }
  if kind == 'low_rank':
    spec |= {'rank': adapter.rank, 'alpha': float(adapter.alpha)}
  else:
    spec['residual'] = adapter.residual
  if adapter.num_experts > 1:
    _check_router(layer, method, site.router)
    spec |= _router_spec(site.router)
  return spec


def _check_router(layer: str, method: str, router: routing.Router) -> None:
  """Raises errors.UserError if a router reads more than its own token."""
  parts = {
      'scores': (type(router.scores), _SCORES),
      'select': (type(router.select), _SELECTIONS),
  }
  for field, (part, known) in parts.items():
    if part not in known:
      raise refusal(
          layer, method,
          f'there is no {part.__name__} in the formats, which route each token '
          'by itself.',
          f'routing.Router.{field}',
          f'These can be exported: {", ".join(x.__name__ for x in known)}.',
      )
  if type(router).__call__ is not routing.Router.__call__:
    raise refusal(
        layer, method,
        f'its router is a {type(router).__name__}, which is more than a '
        'composition of scores and a selection.',
        'router_factory',
    )
  if router.capacity is not None and router.capacity.at_evaluation:
    raise refusal(
        layer, method, 'tokens are dropped depending on their neighbors.',
        'capacity.Capacity.at_evaluation',
        'Export with --gin.capacity.Capacity.at_evaluation=False.',
    )


def _router_spec(router: routing.Router) -> dict[str, Any]:
  """Options of the router, by the names of format 1, which stay as they are."""
  select = router.select
  biased = isinstance(select, smora.BiasedTopK)
  threshold = getattr(select, 'max_threshold', None)
  by_head = isinstance(router.scores, scores.HeadScores)
  return {
      'router': {
          'score': 'sigmoid' if biased else 'softmax',
          'selection': _SELECTIONS[type(select)],
          'num_selected_experts': getattr(select, 'k', None),
          'renormalise': select.normalize,
          'max_threshold': threshold or 1.0 / router.num_experts,
          'balancing_bias': biased,
          'bias_in_gate': biased,
      },
      'num_heads': router.reads.num_heads if by_head else 1,
  }

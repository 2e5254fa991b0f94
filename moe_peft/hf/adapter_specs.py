# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which adapters the exported formats can hold, and their options there.

The classes are exact: another subclass may compute something else.
"""

from collections.abc import Sequence
import re
from typing import Any

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import id_scores
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import adamix
from moe_peft.methods import adamole
from moe_peft.methods import bank
from moe_peft.methods import bottleneck
from moe_peft.methods import comol
from moe_peft.methods import dora
from moe_peft.methods import dynmole
from moe_peft.methods import expert_choice
from moe_peft.methods import flylora
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import ldmole
from moe_peft.methods import lora
from moe_peft.methods import mixlora
from moe_peft.methods import mlae
from moe_peft.methods import mode
from moe_peft.methods import modula
from moe_peft.methods import moelora
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mor_lora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import retrieval
from moe_peft.methods import riemannian
from moe_peft.methods import sira
from moe_peft.methods import smear
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora
from moe_peft.methods import spectral
from moe_peft.methods import ttlora
from moe_peft.methods import xlora

# What each adapter computes. Adapters of a kind differ in training, in routing
# and in what experts share.
_KINDS = {
    molora.MoLoRA: 'low_rank',
    lora.LoRA: 'low_rank',
    sira.SiRA: 'low_rank',
    moelora.MoELoRA: 'low_rank',
    hydralora.HydraLoRA: 'low_rank',
    mosld.MoSLD: 'low_rank',
    adamix.AdaMix: 'low_rank',
    adamole.AdaMoLE: 'low_rank',
    smora.SMoRA: 'low_rank',
    mola.MoLA: 'low_rank',
    smoe_dropout.SMoEDropout: 'low_rank',
    expert_choice.ExpertChoice: 'low_rank',
    mode.MoDE: 'low_rank',
    comol.CoMoL: 'low_rank',
    dynmole.DynMoLE: 'low_rank',
    flylora.FlyLoRA: 'low_rank',
    ldmole.LDMoLE: 'low_rank',
    mlae.MLAE: 'low_rank',
    modula.MoDULARes: 'low_rank',
    mor_lora.MoRLoRA: 'low_rank',
    riemannian.Riemannian: 'low_rank',
    ttlora.TTLoRA: 'low_rank',
    dora.DoRA: 'low_rank',
    spectral.PiSSA: 'low_rank',
    spectral.MiLoRA: 'low_rank',
    spectral.MiCA: 'low_rank',
    spectral.OLoRA: 'low_rank',
    spectral.GOAT: 'low_rank',
    bank.Bank: 'low_rank',
    mov.MoV: 'vector',
    ia3.IA3: 'vector',
    bottleneck.Bottleneck: 'bottleneck',
    smear.SMEAR: 'bottleneck',
    mixlora.MixLoRA: 'block',
}
_RULES = {
    inject.OutputRule: ('low_rank', 'vector', 'bottleneck'),
    adamix.ConsistencyRule: ('low_rank', 'vector', 'bottleneck'),
    xlora.TwoPasses: ('low_rank',),
    inject.InputRule: ('vector',),
    inject.BlockRule: ('block',),
}
# Options of each kind besides the router: fields of the adapter.
_FIELDS = {
    'low_rank': ('rank', 'alpha'),
    'vector': ('residual',),
    'bottleneck': ('rank', 'activation'),
    'block': ('rank', 'alpha'),
}
_SCORES = (
    scores.TokenScores,
    scores.HeadScores,
    scores.SequenceScores,
    adamole.ThresholdScores,
    adamix.NoScores,
    mode.RankScores,
    smear.NormedScores,
    smoe_dropout.FrozenScores,
    flylora.GivenLogits,
    ldmole.LambdaScores,
    bank.ArrowScores,
    bank.SpectRScores,
    bank.GateScores,
    bank.NoScores,
    bank.RandomScores,
    retrieval.RetrievalScores,
    xlora.ClassifierScores,
)
# `adamix.RandomChoice` uses all experts at evaluation, with equal weights.
_SELECTIONS = {
    selection.Soft: 'all',
    selection.TopK: 'top_k',
    smoe_dropout.GrowingTopK: 'top_k',
    smora.BiasedTopK: 'top_k',
    adamole.Threshold: 'threshold',
    adamix.RandomChoice: 'uniform',
    expert_choice.ChooseTokens: 'experts_choose',
    dynmole.Mass: 'mass',
    flylora.Largest: 'top_k',
    ldmole.Sparsegen: 'sparsegen',
    mor_lora.StraightThrough: 'top_k',
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
    rules: Rules of the adapted model; the first that matches the layer made it.

  Returns:
    The options of `torch_experts.Experts` but for those that its arrays tell,
    and `method`, the name of its class, `causal`, whether later tokens must
    not matter, `functions`, those of the branches of its MLP, and
    `experts_by_depth` of a layer inside a scan.

  Raises:
    errors.UserError: If it computes what the formats do not have.
  """
  adapter, method = site.adapter, type(site.adapter).__name__
  rule = next(r for r in rules if re.fullmatch(r.path, layer))
  kind = _kind(layer, site, rule)
  spec = {
      'method': method,
      'kind': kind,
      'num_experts': adapter.num_experts,
      'site_input': type(rule) is inject.InputRule,
      'router': None,
      'num_heads': 1,
      'causal': adapter.site.causal,
      'functions': adapter.site.activations,
      'experts_by_depth': adapter.experts_by_depth,
      **{name: getattr(adapter, name) for name in _FIELDS[kind]},
  }
  if kind == 'bottleneck':
    spec['merged'] = isinstance(adapter, smear.SMEAR)
  if 'alpha' in spec:
    spec['alpha'] = _alpha(adapter)
  if isinstance(adapter, dora.DoRA):
    spec['scaled'] = True
  if isinstance(adapter, modula.MoDULARes):
    spec['always_on'] = adapter.rank
  if isinstance(adapter, spectral.PiSSA):  # What it began with, subtracted.
    spec['always_on'] = adapter.rank * adapter.num_experts
  if adapter.num_experts > 1:
    _check_router(layer, method, site.router)
    spec |= _router_spec(site.router)
    if getattr(adapter, 'active', None) is not None:
      raise refusal(
          layer, method, 'the formats have all experts of a bank.',
          'ACTIVE_EXPERTS', 'Take the others out (python -m moe_peft bank '
          'remove) and train, or score, the run over what stays.',
      )
  return spec


def _kind(
    layer: str, site: adapted_sites.TracedSite, rule: inject.OutputRule
) -> str:
  """The kind of an adapter; raises errors.UserError if it is of none."""
  method, kind = type(site.adapter).__name__, _KINDS.get(type(site.adapter))
  if isinstance(getattr(site.router, 'scores', None), id_scores.IdScores):
    raise refusal(
        layer, method, 'the formats are told no ids of examples.',
        '--example_id', 'For each id it is a plain LoRA: give --example_id=ID.',
    )
  if kind is None:
    known = ', '.join(cls.__name__ for cls in _KINDS)
    raise refusal(
        layer, method, 'there is no such method in the formats.',
        'ADAPTER_RULES', f'These methods can be exported: {known}.',
    )
  if kind not in _RULES.get(type(rule), ()):
    raise refusal(
        layer, method, f'the formats have none under a {type(rule).__name__}.',
        'ADAPTER_RULES',
    )
  return kind


def _alpha(adapter: Any) -> float:
  """The alpha with which `alpha / rank` is the factor of the update."""
  plain = adapter.alpha / adapter.rank
  scale = getattr(adapter, 'scale', plain)
  return float(adapter.alpha if scale == plain else scale * adapter.rank)


def _check_router(layer: str, method: str, router: routing.Router) -> None:
  """Raises errors.UserError if the formats do not have such a router."""
  parts = {
      'scores': (type(router.scores), _SCORES),
      'select': (type(router.select), _SELECTIONS),
  }
  for field, (part, known) in parts.items():
    if part not in known:
      raise refusal(
          layer, method, f'there is no {part.__name__} in the formats.',
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
  if getattr(router.scores, 'layerwise', False):
    raise refusal(
        layer, method, 'PEFT numbers the layers of an X-LoRA in the order of '
        'torch, which our files do not have.', 'LAYERWISE',
        'Train with LAYERWISE = False.',
    )
  _check_capacity(layer, method, router)


def _check_capacity(layer: str, method: str, router: routing.Router) -> None:
  """Raises errors.UserError where a token depends on others of its batch."""
  capacity, choosing = router.capacity, router.select.limits_evaluation
  if choosing and (capacity.group_size or router.scores.units(router) > 1):
    raise refusal(
        layer, method, 'its experts do not choose among whole tokens of a row.',
        'capacity.Capacity.group_size',
        'Train with TokenScores and --gin.capacity.Capacity.group_size=None.',
    )
  if capacity is not None and capacity.at_evaluation and not choosing:
    raise refusal(
        layer, method, 'tokens are dropped depending on their neighbors.',
        'capacity.Capacity.at_evaluation',
        'Export with --gin.capacity.Capacity.at_evaluation=False.',
    )


def _router_spec(router: routing.Router) -> dict[str, Any]:
  """Options of the router, by the names of format 1, which stay as they are."""
  select, parts = router.select, router.scores
  biased = isinstance(select, smora.BiasedTopK)
  by_head = isinstance(parts, scores.HeadScores)
  options = {
      'score': 'sigmoid' if biased and not select.softmax else 'softmax',
      'selection': _SELECTIONS[type(select)],
      'num_selected_experts': getattr(select, 'k', None),
      'renormalise': select.normalize,
      'max_threshold': getattr(select, 'max_threshold', None),
      'balancing_bias': biased,
      'bias_in_gate': biased and select.bias_in_gate,
  }
  if isinstance(select, flylora.Largest):
    options |= {'score': 'logits', 'magnitude': select.magnitude, 'gate': 1.0}
  if isinstance(select, mor_lora.StraightThrough):
    options['gate'] = 1.0 / select.k
  if isinstance(select, dynmole.Mass):
    names = ('mass', 'entropy_threshold', 'q')
    options |= {name: getattr(select, name) for name in names}
  if isinstance(parts, ldmole.LambdaScores):
    options['lambda_units'] = parts.hidden
  if isinstance(parts, bank.NoScores):
    options['selection'] = 'uniform'
  if isinstance(parts, bank.ArrowScores):
    name = 'spectr' if isinstance(parts, bank.SpectRScores) else 'arrow'
    options |= {'experts': name, 'temperature': float(parts.temperature)}
  options |= {'gates': True} if isinstance(parts, bank.GateScores) else {}
  if isinstance(parts, retrieval.RetrievalScores):
    options |= {'centroids': True, 'temperature': float(parts.temperature)}
  if isinstance(parts, xlora.ClassifierScores):
    options |= {'first_pass': True, 'temperature': float(parts.temperature)}
  if isinstance(parts, mode.RankScores):
    options['units'] = parts.rank
  if isinstance(parts, scores.SequenceScores):
    options['sequence'] = 'prompt' if router.reads.causal else 'inputs'
    options['normed'] = isinstance(parts, smear.NormedScores)
  if select.limits_evaluation:
    options['capacity_factor'] = router.capacity.capacity_factor
    options['expert_capacity'] = router.capacity.expert_capacity
  return {
      'router': options,
      'num_heads': router.reads.num_heads if by_head else 1,
  }

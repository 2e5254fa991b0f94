# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What each method is on a model: a row of `python -m moe_peft methods`.

All is read from the gin files and from one trace of the adapted network, so a
new method needs no entry here.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

import jax

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_methods
from moe_peft.checks import subject
from moe_peft.core import adapted_sites
from moe_peft.core import id_scores
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.hf import adapter_specs
from moe_peft.models import language_model
from moe_peft.training import budget

_LENGTHS = {'inputs': 8, 'targets': 8}
# Macros without a value in the files of methods: ten ids, each with a feature
# of its own, for as many experts.
_GIVEN = {
    'GROWTH_STEPS': None, 'EXAMPLE_IDS': 10,
    'FEATURES': tuple((str(number),) for number in range(10)),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One method.

  Attributes:
    method: Name of its gin file.
    arxiv: Id of its paper; empty if it has none there.
    trainable: Parameters that train.
    size: Macro and value that a budget has chosen, `RANK = 3`; empty without,
      and where what trains has no size.
    mergeable: 'yes', 'no', 'by id' if it is a LoRA for each id of EXAMPLE_IDS,
      or 'collapsed': only with constant weights, which changes what it
      computes.
    exports: Formats of `python -m moe_peft hf export`.
    causal: 'yes', 'prompt' if decoders route by the prompt (the encoder's
      outputs, or the prompt so far), 'no' if it adapts encoders only.
    executions: 'three', 'one' (all_experts), or empty without a router.
    refusal: Why the method cannot be had on this model; else empty.
  """

  method: str
  arxiv: str
  trainable: int = 0
  size: str = ''
  mergeable: str = ''
  exports: str = ''
  causal: str = ''
  executions: str = ''
  refusal: str = ''


def names() -> list[str]:
  """Names of all methods."""
  folder = gin_files.resource('gin/methods')
  return sorted(file.stem for file in folder.glob('*.gin'))


def row(
    name: str, model: language_model.LanguageModel,
    param_budget: float | None = None,
) -> Row:
  """What a method is on a model.

  Args:
    name: Of a file of gin/methods/.
    model: The model, with or without adapters.
    param_budget: Parameters to train, or a share of the base below 1; None: the
      sizes of the file.
  """
  file = gin_methods.MethodFile(name)
  for macro, value in _GIVEN.items():
    if macro in file.options:
      file.set(macro, value)
  text = gin_files.resource(f'gin/methods/{name}.gin').read_text('utf-8')
  found = re.search(r'^#[^\n]*?(\d{4}\.\d{5})', text, re.M)
  result = Row(name, found[1] if found else '')
  try:
    size = '' if param_budget is None else _fit(file, model, param_budget)
    shapes, sites = _trace(file, model)
    trained, _ = trainable.split(
        shapes, file.value('TRAINABLE_REGEX'), required=False
    )
  except errors.UserError as error:
    return dataclasses.replace(result, refusal=error.what)
  return dataclasses.replace(
      result, trainable=trainable.num_trained(trained), size=size,
      executions=_executions(file, model, sites), causal=_causal(sites),
      **_exports(
          sites, file.value('ADAPTER_RULES'),
          decoder='encoder_input_tokens' not in model.features,
      ),
  )


def _adapted(
    file: gin_methods.MethodFile, model: language_model.LanguageModel
) -> language_model.LanguageModel:
  module = model.module
  base = getattr(module, 'module', module)
  return dataclasses.replace(
      model, module=inject.AdaptedModule(base, file.value('ADAPTER_RULES'))
  )


def _trace(
    file: gin_methods.MethodFile, model: language_model.LanguageModel
) -> tuple[dict[str, Any], dict[str, adapted_sites.TracedSite]]:
  """Shapes of all parameters, and the adapters."""
  adapted = _adapted(file, model)
  variables, sites = adapted_sites.trace(
      lambda: adapted.init(jax.random.key(0), _LENGTHS)
  )
  return trainable.flatten(variables['params']), sites


def _fit(
    file: gin_methods.MethodFile, model: language_model.LanguageModel,
    param_budget: float,
) -> str:
  """Gives the file the largest size of a budget; returns what it set."""
  macro = next((x for x in budget.SIZE_MACROS if x in file.macros), None)
  if macro is None:
    return ''
  given, smallest = file.macros[macro], 1
  if macro == 'NUM_EXPERTS':
    smallest = max(2, file.macros.get('NUM_SELECTED_EXPERTS') or 0)

  @functools.cache
  def shapes(size: int) -> Mapping[str, Any]:
    file.set(macro, size)
    return _trace(file, model)[0]

  def count(size: int) -> int:
    trained, _ = trainable.split(
        shapes(size), file.value('TRAINABLE_REGEX'), required=False
    )
    return trainable.num_trained(trained)

  if count(smallest) == count(smallest + 1):
    file.set(macro, given)  # What trains has no size, as a bank's router.
    return ''
  allowed = budget.limit(param_budget, shapes(smallest))
  size = budget.solve(count, allowed, smallest, macro)
  file.set(macro, size)
  return f'{macro} = {size}'


def _executions(file, model, sites) -> str:
  """How its experts can run."""
  if not any(site.router is not None for site in sites.values()):
    return ''
  adapted = _adapted(file, model)
  module = subject.with_adapters(
      adapted.module,
      lambda adapter, name: adapter.copy(name=name, execution='ragged'),
  )
  other = dataclasses.replace(adapted, module=module)
  try:
    jax.eval_shape(lambda: other.init(jax.random.key(0), _LENGTHS))
  except errors.UserError:
    return 'one'
  return 'three'


def _causal(sites: Mapping[str, adapted_sites.TracedSite]) -> str:
  causal = [site for site in sites.values() if site.adapter.site.causal]
  if not causal:
    return 'no' if sites else 'yes'
  by_row = [
      x for x in causal
      if x.router and x.router.scores.per_row and not _told_ids(x)
  ]
  return 'prompt' if by_row else 'yes'


def _told_ids(site: adapted_sites.TracedSite) -> bool:
  """Whether its weights are those of the id of an example."""
  scores = getattr(site.router, 'scores', None)
  return isinstance(scores, id_scores.IdScores)


def _exports(sites, rules, decoder) -> dict[str, str]:
  """Whether it can be merged, and the formats that hold it."""
  if not sites:  # All of the model trains.
    return {'mergeable': 'yes', 'exports': 'merged'}
  if all(_told_ids(site) for site in sites.values()):
    return {'mergeable': 'by id', 'exports': 'a LoRA for each id'}
  try:
    specs = [
        adapter_specs.read(layer, site, rules) for layer, site in sites.items()
    ]
  except errors.UserError:
    return {'mergeable': 'no', 'exports': ''}
  routed = [
      spec for spec in specs
      if spec['router'] and spec['router']['selection'] != 'uniform'
  ]
  if any(spec['router'].get('first_pass') for spec in routed):
    return {'mergeable': 'collapsed', 'exports': 'peft' if decoder else ''}
  kinds = {spec['kind'] for spec in specs}
  plain = kinds <= {'low_rank', 'block'}
  scaled = any(spec.get('scaled') for spec in specs)
  # Of llama.cpp, which has no T5 and no DoRA.
  gguf = ' gguf' if plain and decoder and not scaled else ''
  if not routed and kinds <= {'low_rank', 'vector', 'block'}:
    return {'mergeable': 'yes', 'exports': f'peft merged full{gguf}'}
  units = any(x['router'].get('units', 1) > 1 for x in routed)
  collapses = kinds == {'low_rank'} and not units
  return {
      'mergeable': 'collapsed' if collapses else 'no',
      'exports': 'peft full' + (' experts' if plain else ''),
  }

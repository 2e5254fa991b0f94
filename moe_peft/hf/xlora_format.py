# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""X-LoRA folders of PEFT: a classifier, and the LoRAs that it weighs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import sites as core_sites
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import lora_config
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib
from moe_peft.hf import xlora_config
from moe_peft.methods import xlora

EXPERT = 'expert_{}'  # Folder of an expert.
# The last hidden states of transformers, as our networks name them.
_HIDDEN_STATES = 'decoder/decoder_norm'


def write(
    folder: Path,
    base_model: str,
    experts: Sequence[Path],
    classifier: xlora_config.Classifier,
) -> None:
  """Writes configuration and classifier.

  Args:
    folder: Existing folder.
    base_model: Name or path of the base; may be empty.
    experts: Folders of the LoRAs, where they will lie.
    classifier: The classifier.
  """
  first, first_bias = classifier.matrices[0]
  depth, dropout = len(classifier.matrices), classifier.dropout
  folders.write_json(folder / folders.ADAPTER_CONFIG, {
      'peft_type': xlora_config.KIND,
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base_model or None,
      'inference_mode': True,
      'hidden_size': len(first),
      'adapters': numbered(experts),
      'xlora_depth': depth,
      # PEFT's default where no layer is hidden.
      'xlora_size': len(first_bias) if depth > 1 else 2048,
      'xlora_dropout_p': dropout,
      'layerwise_scalings': False,
      'softmax_temperature': classifier.temperature,
      'top_k_lora': classifier.num_selected,
      'global_scaling_weight': classifier.scale,
  })
  tensors = {}
  scopes = xlora_config.scopes(depth, dropout)
  for scope, (kernel, bias) in zip(scopes, classifier.matrices, strict=True):
    tensors[f'{scope}.weight'] = lazy_arrays.of(kernel.T)
    tensors[f'{scope}.bias'] = lazy_arrays.of(bias)
  lazy_arrays.write_safetensors(folder / folders.ADAPTER_WEIGHTS, tensors)


def numbered(experts: Sequence[Path]) -> dict[str, str]:
  """Folders of experts as the field `adapters` has them.

  PEFT activates experts by number: any other key is passed over.
  """
  return {str(index): str(path) for index, path in enumerate(experts)}


def config_of(folder: Path, fields: Mapping[str, Any]) -> Any:
  """The `XLoraConfig` of an exported folder, wherever it lies now.

  Args:
    folder: The folder, with its experts inside.
    fields: What its `adapter_config.json` holds.

  Raises:
    errors.UserError: If the experts are not there, or not as they were written.
  """
  peft = folders.import_extra('peft', 'the folder holds an adapter')
  adapters = fields.get('adapters')
  if not isinstance(adapters, dict):
    raise errors.UserError(
        f'adapters of {folder / folders.ADAPTER_CONFIG} must give each expert '
        'its folder.', where=folder, remedy='Export it again.',
    )
  experts = [folder / EXPERT.format(index) for index in range(len(adapters))]
  for expert in experts:
    file = expert / folders.ADAPTER_CONFIG
    lora_config.check_names(file, folders.read_json(file))
  config = peft.PeftConfig.from_pretrained(str(folder))
  config.adapters = numbered(experts)
  return config


def is_one(sites: Sequence[sites_lib.AdaptedSite]) -> bool:
  """Whether a first pass weighs the experts of any of these."""
  return any(
      site.routed and site.spec['router'].get('first_pass') for site in sites
  )


def of_run(
    trained: trained_lib.Trained, sites: Sequence[sites_lib.AdaptedSite]
) -> xlora_config.Classifier:
  """The classifier of a run.

  Args:
    trained: The run.
    sites: Its adapters.

  Raises:
    errors.UserError: If PEFT's X-LoRA computes something else.
  """
  rule = next(
      x for x in trained.module.rules if isinstance(x, xlora.TwoPasses)
  )
  _check(trained, sites, rule)
  router, num_experts = sites[0].spec['router'], sites[0].spec['num_experts']
  selected = router['num_selected_experts'] or num_experts
  matrices = [
      tuple(np.asarray(trained.params[f'{x}/{y}']) for y in ('kernel', 'bias'))
      for x in xlora.scopes(rule.depth)
  ]
  return xlora_config.Classifier(
      matrices, rule.dropout, router['temperature'],
      selected if selected < num_experts else None,
  )


def _check(
    trained: trained_lib.Trained,
    sites: Sequence[sites_lib.AdaptedSite],
    rule: xlora.TwoPasses,
) -> None:
  """Raises errors.UserError for what PEFT's X-LoRA has not."""
  if trained.network.task_type != 'CAUSAL_LM':
    raise errors.UserError(
        "PEFT's X-LoRA knows causal models alone, and no other format has a "
        'pass before the pass.', where='--format',
        remedy='Keep the run, or collapse it (--collapse ROWS.jsonl).',
    )
  routers = {str(site.spec['router']) for site in sites}
  if len(routers) > 1:
    raise errors.UserError(
        "PEFT's X-LoRA weighs all adapted layers alike, and here some have "
        'another router.', where='ADAPTER_RULES',
    )
  _check_selection(sites[0].spec['router'])
  pattern = core_sites.compile_path(rule.hidden_states)
  if not pattern.fullmatch(_HIDDEN_STATES):
    raise errors.UserError(
        f"PEFT's X-LoRA reads the outputs of {_HIDDEN_STATES}, and this one "
        'does not.', where='HIDDEN_STATES',
    )
  if trained.changed:
    raise errors.UserError(
        f'The run trained {min(trained.changed)} too, which an X-LoRA has no '
        'room for.', where='TRAINABLE_REGEX',
    )


def _check_selection(router: Mapping[str, Any]) -> None:
  """Raises errors.UserError for weights that PEFT's X-LoRA has not."""
  if (
      router['selection'] not in ('all', 'top_k')
      or router['score'] != 'softmax'
      or router['renormalise'] or router['balancing_bias'] or 'gate' in router
  ):
    raise errors.UserError(
        "PEFT's X-LoRA has the weights of all experts, or the largest of them, "
        'as the softmax gives them.', where='routing.Router.select',
        remedy='Train with selection.TopK and normalize = False.',
    )

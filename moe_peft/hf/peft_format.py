# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT wants them: `adapter_config.json` and its tensors.

LoRA and (IA)^3 are methods of PEFT. Everything that is routed becomes
`MOE_PEFT`, the method of `peft_tuner.py`, which travels in the folder.
"""

from collections.abc import Sequence
import inspect
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import merge
from moe_peft.hf import sites as sites_lib

_PREFIX = 'base_model.model.'
TUNER_FILE = 'moe_peft_tuner.py'
# torch keeps [out, in] where T5X keeps [in, out].
_TRANSPOSED = ('lora_a', 'lora_b', 'router', 'threshold_router')

Sites = Sequence[sites_lib.AdaptedSite]


def write_adapter(folder: Path, sites: Sites, base_model: str) -> str:
  """Writes all adapters of a model; returns their PEFT type.

  Args:
    folder: Existing folder.
    sites: The adapters.
    base_model: Name or path of the base.
  """
  kind = sites_lib.native(sites)
  build = {'LORA': _lora, 'IA3': _ia3, None: _moe_peft}[kind]
  config, tensors = build(sites)
  folders.write_json(
      folder / folders.ADAPTER_CONFIG,
      {
          'task_type': 'SEQ_2_SEQ_LM',
          'base_model_name_or_path': base_model,
          'inference_mode': True,
          **config,
      },
  )
  lazy_arrays.write_safetensors(
      folder / folders.ADAPTER_WEIGHTS,
      {name: lazy_arrays.of(array) for name, array in tensors.items()},
  )
  if kind is None:
    (folder / TUNER_FILE).write_text(single_file('peft_tuner'), 'utf-8')
  return config['peft_type']


def _regex(modules: Sequence[str]) -> str:
  # A list would be matched by suffix; a string must match the whole name.
  return '|'.join(re.escape(module) for module in sorted(modules))


def _lora(sites: Sites):
  ranks = {site.hf_module: site.spec['rank'] for site in sites}
  alphas = {site.hf_module: site.spec['alpha'] for site in sites}
  rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
  tensors = {}
  for site in sites:
    prefix = f'{_PREFIX}{site.hf_module}.'
    tensors[f'{prefix}lora_A.weight'] = site.tensors['lora_a'][0].T
    tensors[f'{prefix}lora_B.weight'] = site.tensors['lora_b'][0].T
  config = {
      'peft_type': 'LORA',
      'r': rank,
      'lora_alpha': alpha,
      'rank_pattern': {re.escape(k): v for k, v in ranks.items() if v != rank},
      'alpha_pattern': {
          re.escape(k): v for k, v in alphas.items() if v != alpha
      },
      'lora_dropout': 0.0,
      'bias': 'none',
      'use_rslora': False,
      'target_modules': _regex(ranks),
  }
  return config, tensors


def _ia3(sites: Sites):
  tensors: dict[str, np.ndarray] = {}
  at_input = set()
  for site in sites:
    module, feedforward = merge.scaled_module(site)
    name = f'{_PREFIX}{module}.ia3_l'
    if name in tensors:
      raise errors.UserError(
          f'Two vectors scale {module}; PEFT has room for one.', where='SITES',
          remedy='Restrict SITES, so that one of them stays.',
      )
    vector = site.tensors['scaling'][0]
    tensors[name] = vector[None] if feedforward else vector[:, None]
    if feedforward:
      at_input.add(module)
  modules = [k.removeprefix(_PREFIX).removesuffix('.ia3_l') for k in tensors]
  config = {
      'peft_type': 'IA3',
      'target_modules': _regex(modules),
      'feedforward_modules': _regex(list(at_input)),
      'fan_in_fan_out': False,
  }
  return config, tensors


def _moe_peft(sites: Sites):
  tensors = {}
  for site in sites:
    prefix = f'{_PREFIX}{site.hf_module}.moe_peft_experts.'
    for name, array in torch_tensors(site).items():
      tensors[prefix + name] = array
  config = {
      'peft_type': 'MOE_PEFT',
      'format_version': 1,
      'target_modules': _regex([site.hf_module for site in sites]),
      'groups': groups(sites),
  }
  return config, tensors


def groups(sites: Sites) -> list[dict[str, Any]]:
  """Sites with equal options together, as `peft_tuner.MoePeftConfig` says."""
  by_spec: dict[str, list[str]] = {}
  for site in sites:
    key = json.dumps(site.spec, sort_keys=True)
    by_spec.setdefault(key, []).append(site.hf_module)
  return [
      {'modules': _regex(modules), **json.loads(key)}
      for key, modules in by_spec.items()
  ]


def torch_tensors(site: sites_lib.AdaptedSite) -> dict[str, np.ndarray]:
  """Tensors as `torch_experts.Experts` holds them."""
  return {
      name: array.swapaxes(-1, -2) if name in _TRANSPOSED else array
      for name, array in site.tensors.items()
  }


def single_file(module: str) -> str:
  """Source of 'peft_tuner' or 'remote_model' with `torch_experts` in it."""
  here = Path(inspect.getfile(folders)).parent
  source = (here / f'{module}.py').read_text('utf-8')
  experts = (here / 'torch_experts.py').read_text('utf-8')
  body = experts[experts.index('import torch\n') :]
  marker = re.compile(
      r'# Exported folders hold one file.*\n(from moe_peft\.hf.*\n)+'
  )
  joined, count = marker.subn(lambda _: body, source)
  if count != 1:
    raise ValueError(f'{module}.py must import torch_experts once')
  return joined

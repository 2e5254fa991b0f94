# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT adapter folders: native LoRA and IA3, and our method MOE_PEFT."""

from collections.abc import Mapping, Sequence
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
from moe_peft.hf import trained as trained_lib

_PREFIX = 'base_model.model.'
TUNER_FILE = 'moe_peft_tuner.py'

Sites = Sequence[sites_lib.AdaptedSite]


def write_adapter(
    folder: Path, trained: trained_lib.Trained, sites: Sites, base_model: str,
    saved: Sequence[str] = (),
) -> str:
  """Writes all adapters of a model; returns their PEFT type.

  Args:
    folder: Existing folder.
    trained: The model.
    sites: The adapters.
    base_model: Name or path of the base.
    saved: Hugging Face tensors of the base that are part of the adapter.

  Raises:
    errors.UserError: If PEFT has no room for all of them.
  """
  modules = [layer.module for layer in trained.layers.values()]
  kind = sites_lib.native(sites)
  build = {'LORA': _lora, 'IA3': _ia3, None: _moe_peft}[kind]
  config, tensors = build(sites, modules)
  targets = {site.layer.module for site in sites}
  config['modules_to_save'] = _modules_to_save(trained, saved, targets)
  folders.write_json(
      folder / folders.ADAPTER_CONFIG,
      {
          'task_type': trained.network.task_type,
          'base_model_name_or_path': base_model,
          'inference_mode': True,
          **config,
      },
  )
  tensors = {name: lazy_arrays.of(array) for name, array in tensors.items()}
  base = trained.hf_tensors()
  tensors |= {
      f'{_PREFIX}{name}': tensor
      for name, tensor in base.items()
      if name.rpartition('.')[0] in (config['modules_to_save'] or ())
  }
  lazy_arrays.write_safetensors(folder / folders.ADAPTER_WEIGHTS, tensors)
  if kind is None:
    (folder / TUNER_FILE).write_text(single_file('peft_tuner'), 'utf-8')
  return config['peft_type']


def _modules_to_save(trained, saved, targets) -> list[str] | None:
  """Modules of the base that were trained too, whole."""
  modules = sorted({name.rpartition('.')[0] for name in saved})
  lost = targets | trained.shared_modules
  lost = [module for module in modules if module in lost]
  if lost:
    raise errors.UserError(
        f'The run trained {lost[0]} too, which PEFT cannot keep beside the '
        'adapter: it has an adapter of its own, or other layers share it.',
        where='TRAINABLE_REGEX',
        remedy='Use --format full, or --format merged for methods without a '
        'router.',
    )
  return modules or None


def _target_modules(
    targets: Sequence[str], modules: Sequence[str]
) -> list[str]:
  """A list, which servers read; of last names, if these match nothing else."""
  names = {target.rpartition('.')[2] for target in targets}
  same = {x for x in modules if x.rpartition('.')[2] in names}
  return sorted(names if same == set(targets) else set(targets))


def _regex(modules: Sequence[str]) -> str:
  # A list would be matched by suffix; a string must match the whole name.
  return '|'.join(re.escape(module) for module in sorted(modules))


def _lora(sites: Sites, modules: Sequence[str]):
  return lora(lora_pairs(sites), modules)


def lora(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    modules: Sequence[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The fields of `adapter_config.json` and the tensors of a plain LoRA.

  Args:
    pairs: A [rank, in], B [out, rank] and their scale, by module.
    modules: All modules of the base that could be adapted.
  """
  rank = max(len(down) for down, _, _ in pairs.values())
  scales = {scale for _, _, scale in pairs.values()}
  # One rank and one scale for all: servers read no patterns.
  common = scales.pop() if len(scales) == 1 else 1.0
  tensors = {}
  for module, (down, up, scale) in pairs.items():
    missing = rank - len(down)
    factor = np.float32(scale / common)
    tensors[f'{_PREFIX}{module}.lora_A.weight'] = np.pad(
        down, ((0, missing), (0, 0))
    )
    tensors[f'{_PREFIX}{module}.lora_B.weight'] = np.pad(
        up * factor, ((0, 0), (0, missing))
    )
  config = {
      'peft_type': 'LORA',
      'r': rank,
      'lora_alpha': common * rank,
      'lora_dropout': 0.0,
      'bias': 'none',
      'use_rslora': False,
      'target_modules': _target_modules(list(pairs), modules),
  }
  return config, tensors


def lora_pairs(
    sites: Sites,
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
  """The LoRA of each module: A [rank, in], B [out, rank] and their scale.

  Where several layers of ours are one module, their ranks stand side by side.
  """
  pairs = {}
  for module, parts in _by_module(sites).items():
    scales = {site.spec['alpha'] / site.spec['rank'] for site in parts}
    scale = scales.pop() if len(scales) == 1 else 1.0
    down = np.concatenate([site.tensors['lora_a'][0].T for site in parts])
    ups = [_placed(site, scale) for site in parts]
    pairs[module] = down, np.concatenate(ups, axis=1), scale
  return pairs


def _placed(site: sites_lib.AdaptedSite, scale: float) -> np.ndarray:
  """`B` [module's outputs, rank], zero outside of the layer's rows."""
  own = np.float32(site.spec['alpha'] / site.spec['rank'] / scale)
  up = site.tensors['lora_b'][0].T * own
  if site.layer.rows is None:
    return up
  start, stop = site.layer.rows
  return np.pad(up, ((start, site.layer.width - stop), (0, 0)))


def _ia3(sites: Sites, modules: Sequence[str]):
  del modules
  vectors: dict[str, np.ndarray] = {}
  at_input = set()
  for site in sites:
    layer, feedforward = merge.scaled_layer(site)
    vector = site.tensors['scaling'][0]
    if layer.rows is not None:
      start, stop = layer.rows
      vector = np.pad(vector, (start, layer.width - stop), constant_values=1)
    if layer.module in vectors and layer.rows is None:
      raise errors.UserError(
          f'Two vectors scale {layer.module}; PEFT has room for one.',
          where='SITES', remedy='Restrict SITES, so that one of them stays.',
      )
    vectors[layer.module] = vectors.get(layer.module, 1) * vector
    if feedforward:
      at_input.add(layer.module)
  tensors = {
      f'{_PREFIX}{module}.ia3_l': (
          vector[None] if module in at_input else vector[:, None]
      )
      for module, vector in vectors.items()
  }
  config = {
      'peft_type': 'IA3',
      'target_modules': _regex(list(vectors)),
      'feedforward_modules': _regex(list(at_input)),
      'fan_in_fan_out': False,
  }
  return config, tensors


def _moe_peft(sites: Sites, modules: Sequence[str]):
  del modules
  config = {
      'peft_type': 'MOE_PEFT',
      'format_version': 1,
      'target_modules': _regex({site.layer.module for site in sites}),
      'groups': groups(sites),
  }
  tensors = expert_tensors(sites, 'moe_peft_experts')
  return config, {f'{_PREFIX}{k}': v for k, v in tensors.items()}


def groups(sites: Sites) -> list[dict[str, Any]]:
  """Sites with equal options together, as `peft_tuner.MoePeftConfig` says."""
  by_spec: dict[str, list[str]] = {}
  for module, parts in _by_module(sites).items():
    specs = [dict(site.spec) for site in parts]
    spec = {'parts': specs} if len(specs) > 1 else specs[0]
    by_spec.setdefault(json.dumps(spec, sort_keys=True), []).append(module)
  return [
      {'modules': _regex(modules), **json.loads(key)}
      for key, modules in by_spec.items()
  ]


def expert_tensors(sites: Sites, scope: str) -> dict[str, np.ndarray]:
  """Tensors of the experts' modules, `scope` in the adapted ones, by name."""
  tensors = {}
  for module, parts in _by_module(sites).items():
    for index, site in enumerate(parts):
      part = f'.parts.{index}' if len(parts) > 1 else ''
      for name, array in site.torch_tensors.items():
        tensors[f'{module}.{scope}{part}.{name}'] = array
  return tensors


def _by_module(sites: Sites) -> Mapping[str, list[sites_lib.AdaptedSite]]:
  grouped: dict[str, list[sites_lib.AdaptedSite]] = {}
  for site in sites:
    grouped.setdefault(site.layer.module, []).append(site)
  return grouped


_SHARED = ('expert_shapes', 'torch_router', 'torch_experts')
_IMPORTS = re.compile(
    r'(# Exported folders hold one file.*\n)?(from moe_peft\.hf.*\n)+'
)


def single_file(module: str) -> str:
  """Source of 'peft_tuner' or 'remote_model' with what it needs of ours."""
  here = Path(__file__).parent
  read = lambda name: (here / f'{name}.py').read_text('utf-8')
  # The sources without the docstrings of their modules.
  bodies = [read(name).split('"""', 2)[2] for name in _SHARED]
  shared = ''.join(_IMPORTS.sub('', body) for body in bodies)
  joined, count = _IMPORTS.subn(lambda _: shared, read(module))
  if count != 1:
    raise ValueError(f'{module}.py must import torch_experts once')
  return joined

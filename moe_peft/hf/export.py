# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained model to a folder that transformers and peft load."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import architecture
from moe_peft.hf import card
from moe_peft.hf import collapse as collapse_lib
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import merge
from moe_peft.hf import peft_format
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import tokenizer
from moe_peft.hf import trained as trained_lib

FORMATS = ('peft', 'merged', 'full', 'experts')
BASE_FOLDER = 'base'
MODEL_FILE = 'modeling_moe_peft_t5.py'
_NOT_MERGEABLE = (
    'The experts act token by token, so they cannot be merged into the '
    'weights, and no mean of them computes the same.'
)


def export(trained: trained_lib.Trained, out: Path, file_format: str) -> None:
  """Writes a folder.

  Args:
    trained: The model.
    out: Folder to write; appears when it is whole.
    file_format: One of `FORMATS`.

  Raises:
    errors.UserError: If the format cannot hold the method.
  """
  write = {
      'peft': _write_peft,
      'merged': _write_merged,
      'full': _write_full,
      'experts': _write_experts,
  }[file_format]
  sites = trained.sites if file_format != 'merged' else _sites_or_none(trained)
  if file_format == 'merged':
    merge.refuse_routed(sites, 'merged')
  with folders.written_whole(out) as folder:
    write(folder, trained, sites, out)


def export_collapsed(
    trained: trained_lib.Trained,
    out: Path,
    calibration: Path,
    rank: int | None = None,
    per_task: bool = False,
) -> list[Mapping[str, float]]:
  """Writes one ordinary LoRA, or one for each task in a folder of its own.

  Args:
    trained: A model with routed low-rank experts.
    out: Folder to write.
    calibration: JSON Lines with 'inputs' and 'targets', and 'task' if
      `per_task`.
    rank: Rank to cut to.
    per_task: Whether gates are averaged task by task.

  Returns:
    The measured losses, see `collapse.Collapsed`.
  """
  rows = collapse_lib.read_rows(calibration)
  if per_task and not all(isinstance(row.get('task'), str) for row in rows):
    raise errors.UserError(
        f'--per_task needs a key "task" in each line of {calibration}.'
    )
  tasks = sorted({row['task'] for row in rows}) if per_task else ['']
  if any('/' in task or task.startswith('.') for task in tasks):
    raise errors.UserError(
        f'The tasks of {calibration} name folders, so they must not contain / '
        'nor begin with a dot.'
    )
  measured = []
  with folders.written_whole(out) as folder:
    for task in tasks:
      part = [row for row in rows if not per_task or row['task'] == task]
      collapsed = collapse_lib.collapse(trained, part, rank)
      target = folder / task
      target.mkdir(exist_ok=True)
      _write_collapsed(target, trained, collapsed, out / task, calibration.name)
      measured.append(collapsed.losses)
  return measured


def _sites_or_none(trained) -> Sequence[sites_lib.AdaptedSite]:
  """A fully fine-tuned model has no adapters, and can be written merged."""
  return trained.sites if trained.module.rules else []


def _parity(effect: float) -> str:
  return (
      'Parity: `parity.safetensors` holds tokens and the float32 logits that '
      f'JAX computes for them; the adapter moves them by up to {effect:.3g}. '
      '`python -m moe_peft hf verify DIR` loads this folder in torch, prints '
      'the largest difference and fails above 1e-4.'
  )


def _write_peft(folder, trained, sites, out) -> None:
  base_model = _base_for_adapter(folder, trained, out)
  kind = peft_format.write_adapter(folder, sites, base_model)
  effect = fixture.write(folder, trained)
  tokenizer.write(folder, trained)
  notes = [_parity(effect)]
  if kind == 'MOE_PEFT':
    notes += [_NOT_MERGEABLE, 'Written for peft 0.21, run with 0.21.2.']
  card.write(folder, trained, sites, kind, trained.base_model, notes)


def _base_for_adapter(folder: Path, trained, out: Path) -> str:
  """Name of the base; a base without one is written beside the adapter."""
  if trained.base_model:
    return trained.base_model
  base = folder / BASE_FOLDER
  base.mkdir()
  _write_weights(
      base, trained_lib.hf_shapes(trained), architecture.to_hf(trained.config)
  )
  tokenizer.write(base, trained)
  return str(out / BASE_FOLDER)


def _write_weights(
    folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
  folders.write_json(folder / 'config.json', config)
  folders.write_json(
      folder / 'generation_config.json', architecture.GENERATION_CONFIG
  )
  folders.write_tensors(
      folder / folders.WEIGHTS,
      {name: (shape, np.float32) for name, (shape, _) in tensors.items()},
      lambda name: tensors[name][1](),
  )


def _write_merged(folder, trained, sites, out) -> None:
  del out
  tensors = merge.merged_tensors(trained, sites)
  _write_weights(folder, tensors, architecture.to_hf(trained.config))
  effect = fixture.write(folder, trained)
  tokenizer.write(folder, trained)
  card.write(
      folder, trained, sites, 'merged', trained.base_model, [_parity(effect)]
  )


def _write_full(folder, trained, sites, out) -> None:
  del out
  tensors = dict(trained_lib.hf_shapes(trained))
  for site in sites:
    for name, array in peft_format.torch_tensors(site).items():
      tensors[f'{site.hf_module}.experts.{name}'] = (
          array.shape,
          lambda array=array: array,
      )
  module = MODEL_FILE.removesuffix('.py')
  name = 'MoePeftT5ForConditionalGeneration'
  config = {
      **architecture.to_hf(trained.config),
      'model_type': 'moe_peft_t5',
      'architectures': [name],
      'auto_map': {
          'AutoConfig': f'{module}.MoePeftT5Config',
          'AutoModelForSeq2SeqLM': f'{module}.{name}',
      },
      'moe_peft_groups': peft_format.groups(sites),
  }
  _write_weights(folder, tensors, config)
  (folder / MODEL_FILE).write_text(
      peft_format.single_file('remote_model'), 'utf-8'
  )
  effect = fixture.write(folder, trained)
  tokenizer.write(folder, trained)
  notes = [_parity(effect)]
  if any(site.routed for site in sites):
    notes.append(_NOT_MERGEABLE)
  card.write(folder, trained, sites, 'full', trained.base_model, notes)


def _write_experts(folder, trained, sites, out) -> None:
  """Each expert as an adapter of its own, and the routers."""
  base_model = _base_for_adapter(folder, trained, out)
  for index in range(max(site.spec['num_experts'] for site in sites)):
    target = folder / f'expert_{index}'
    target.mkdir()
    peft_format.write_adapter(
        target, [_one_expert(s, index) for s in sites if _has(s, index)],
        base_model,
    )
  routers = {}
  for site in sites:
    for name, array in peft_format.torch_tensors(site).items():
      if name not in ('lora_a', 'lora_b', 'scaling'):
        routers[f'{site.hf_module}.{name}'] = array
  folders.save_tensors(folder / 'router.safetensors', routers)
  tokenizer.write(folder, trained)
  note = (
      '**Not equal to the trained model.** Each `expert_N` is one expert '
      'alone, for inspection; `router.safetensors` holds the routers. No call '
      'of PEFT combines them as the model does: a mean, a sum or '
      '`add_weighted_adapter` computes something else. For the same results '
      'use `--format peft`.'
  )
  card.write(folder, trained, sites, 'experts', trained.base_model, [note])


def _has(site, index: int) -> bool:
  return index < site.spec['num_experts']


def _one_expert(site, index: int) -> sites_lib.AdaptedSite:
  names = ('lora_a', 'lora_b', 'scaling')
  return dataclasses.replace(
      site,
      method={'low_rank': 'LoRA', 'vector': 'IA3'}[site.spec['kind']],
      spec={
          **site.spec, 'num_experts': 1, 'router': None, 'shared_a': False
      },
      # A shared lora_a has one entry, which every expert gets.
      tensors={
          name: array[index : index + 1] if len(array) > 1 else array
          for name, array in site.tensors.items()
          if name in names
      },
  )


def _write_collapsed(folder, trained, collapsed, out, calibration) -> None:
  base_model = _base_for_adapter(folder, trained, out)
  peft_format.write_adapter(folder, collapsed.sites, base_model)
  effect = fixture.write(folder, trained, collapsed.params)
  tokenizer.write(folder, trained)
  losses = collapsed.losses
  note = (
      f'**Not equal to the trained model.** {sites_lib.methods(trained.sites)} '
      'routes token by token; here each expert has a constant weight, its '
      f'mean over {collapsed.num_examples} examples of `{calibration}`. Mean '
      'loss of a target token on the same examples, in nats:'
      '\n\n| routed | collapsed (this) | bare base |\n| --- | --- | --- |\n'
      f'| {losses["routed"]:.4f} | {losses["collapsed"]:.4f} | '
      f'{losses["base"]:.4f} |\n\n'
      f'Collapsing costs {losses["collapsed"] - losses["routed"]:+.4f} nats.'
  )
  card.write(
      folder,
      trained,
      collapsed.sites,
      'LORA',
      trained.base_model,
      [note, _parity(effect)],
  )

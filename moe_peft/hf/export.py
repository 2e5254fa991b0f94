# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained model to a folder that transformers and peft load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_peft import atomic
from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import card
from moe_peft.hf import collapse as collapse_lib
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import merge
from moe_peft.hf import peft_format
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import t5_base
from moe_peft.hf import tokenizer
from moe_peft.hf import trained as trained_lib

BASE_FOLDER = 'base'
MODEL_FILE = 'modeling_moe_peft_t5.py'
ROUTERS_FILE = 'router.safetensors'
_NOT_MERGEABLE = (
    'The experts act token by token, so they cannot be merged into the '
    'weights, and no mean of them computes the same.'
)
_NOT_EQUAL = '**Not equal to the trained model.** '
_EXPERTS_ALONE = (
    _NOT_EQUAL + 'Each `expert_N` is one expert alone, for inspection; '
    f'`{ROUTERS_FILE}` holds the routers. No call of PEFT combines them as the '
    'model does: a mean, a sum or `add_weighted_adapter` computes something '
    'else. For the same results use `--format peft`.'
)


def export(
    trained: trained_lib.Trained,
    out: Path,
    file_format: str,
    force: bool = False,
) -> None:
  """Writes a folder.

  Args:
    trained: The model.
    out: Folder to write; appears when it is whole.
    file_format: A key of `FORMATS`.
    force: As of `atomic.new_folder`.

  Raises:
    errors.UserError: If the format cannot hold the method, or not all that
      was trained.
  """
  if file_format in ('peft', 'experts'):
    _check_base(trained)
  with atomic.new_folder(out, '--out', force) as folder:
    FORMATS[file_format](folder, trained, out)
    tokenizer.write(folder, trained)


def export_collapsed(
    trained: trained_lib.Trained,
    out: Path,
    calibration: Path,
    rank: int | None = None,
    per_task: bool = False,
    force: bool = False,
) -> list[Mapping[str, float]]:
  """Writes one ordinary LoRA, or one for each task in a folder of its own.

  Args:
    trained: A model with routed low-rank experts.
    out: Folder to write.
    calibration: JSON Lines with 'inputs' and 'targets', and 'task' if
      `per_task`.
    rank: Rank to cut to.
    per_task: Whether gates are averaged task by task.
    force: As of `atomic.new_folder`.

  Returns:
    The measured losses, see `collapse.Collapsed`.

  Raises:
    errors.UserError: If the rows cannot be used, the experts are vectors, or
      parameters of the base were trained too.
  """
  _check_base(trained)
  rows = collapse_lib.read_rows(calibration)
  tasks, measured = [''], []
  if per_task:
    tasks = sorted({str(row.get('task', '')) for row in rows})
  for task in tasks if per_task else ():
    if not task or '/' in task or task.startswith('.'):
      raise errors.UserError(
          f'--per_task makes a folder for each "task", and {task!r} is no name '
          'of one.', where='--per_task',
          remedy=f'Give each line of {calibration} a "task" without / that '
          'does not begin with a dot.',
      )
  measure = collapse_lib.measure_fn(trained)
  with atomic.new_folder(out, '--out', force) as folder:
    for task in tasks:
      part = [row for row in rows if not per_task or row['task'] == task]
      collapsed = collapse_lib.collapse(trained, part, rank, measure)
      target = folder / task
      target.mkdir(exist_ok=True)
      _write_collapsed(target, trained, collapsed, out / task, calibration.name)
      tokenizer.write(target, trained)
      measured.append(collapsed.losses)
  return measured


def _check_base(trained: trained_lib.Trained) -> None:
  """Raises errors.UserError if an adapter would leave out what was trained.

  A base without a name is written beside its adapter, as it was trained.
  """
  if trained.base_model and trained.changed:
    raise errors.UserError(
        f'The run trained {len(trained.changed)} parameters of the base too, '
        f'such as {min(trained.changed)}; an adapter of {trained.base_model} '
        'would leave them out.', where='TRAINABLE_REGEX',
        remedy='Use --format full, or --format merged for methods without a '
        'router.',
    )


def _write_fixture(folder, trained, params=None) -> str:
  """Writes tokens and logits; returns the card's paragraph about them."""
  effect = fixture.write(folder, trained, params)
  return (
      'Parity: `parity.safetensors` holds tokens and the float32 logits that '
      f'JAX computes for them; the adapter moves them by up to {effect:.3g}. '
      '`python -m moe_peft hf verify DIR` loads this folder in torch, prints '
      'the largest difference and fails above 1e-4.'
  )


def _write_peft(folder: Path, trained: trained_lib.Trained, out: Path) -> None:
  kind = peft_format.write_adapter(
      folder, trained.sites, _base_for_adapter(folder, trained, out)
  )
  notes = [_write_fixture(folder, trained)]
  if kind == 'MOE_PEFT':
    notes += [_NOT_MERGEABLE, 'Written for peft 0.21, run with 0.21.2.']
  card.write(folder, trained, trained.sites, kind, notes)


def _base_for_adapter(folder: Path, trained, out: Path) -> str:
  """Name of the base; a base without one is written beside the adapter."""
  if trained.base_model:
    return trained.base_model
  base = folder / BASE_FOLDER
  base.mkdir()
  _write_model(base, trained.hf_tensors(), t5_base.to_hf(trained.config))
  tokenizer.write(base, trained)
  return str(out / BASE_FOLDER)


def _write_model(
    folder: Path,
    tensors: Mapping[str, lazy_arrays.LazyArray],
    config: Mapping[str, Any],
) -> None:
  folders.write_json(folder / base_config.FILE, config)
  folders.write_json(
      folder / 'generation_config.json', t5_base.GENERATION_CONFIG
  )
  lazy_arrays.write_safetensors(folder / folders.WEIGHTS, tensors)


def _write_merged(folder: Path, trained: trained_lib.Trained, _: Path) -> None:
  # A fully fine-tuned model has no adapters, and is written as it is.
  sites = trained.sites if trained.module.rules else []
  tensors = merge.merged_tensors(trained, sites)
  _write_model(folder, tensors, t5_base.to_hf(trained.config))
  card.write(
      folder, trained, sites, 'merged', [_write_fixture(folder, trained)]
  )


def _write_full(folder: Path, trained: trained_lib.Trained, _: Path) -> None:
  sites = trained.sites
  tensors = trained.hf_tensors()
  for site in sites:
    for name, array in peft_format.torch_tensors(site).items():
      tensors[f'{site.hf_module}.experts.{name}'] = lazy_arrays.of(array)
  module, name = MODEL_FILE.removesuffix('.py'), 'MoePeftT5'
  config = {
      **t5_base.to_hf(trained.config),
      'model_type': 'moe_peft_t5',
      'architectures': [f'{name}ForConditionalGeneration'],
      'auto_map': {
          'AutoConfig': f'{module}.{name}Config',
          'AutoModelForSeq2SeqLM': f'{module}.{name}ForConditionalGeneration',
      },
      'moe_peft_groups': peft_format.groups(sites),
  }
  _write_model(folder, tensors, config)
  source = peft_format.single_file('remote_model')
  (folder / MODEL_FILE).write_text(source, 'utf-8')
  notes = [_write_fixture(folder, trained)]
  if any(site.routed for site in sites):
    notes.append(_NOT_MERGEABLE)
  card.write(folder, trained, sites, 'full', notes)


def _write_experts(folder: Path, trained: trained_lib.Trained, out: Path):
  """Each expert as an adapter of its own, and the routers."""
  base_model = _base_for_adapter(folder, trained, out)
  for index in range(max(site.spec['num_experts'] for site in trained.sites)):
    target = folder / f'expert_{index}'
    target.mkdir()
    alone = [
        _one_expert(site, index)
        for site in trained.sites
        if index < site.spec['num_experts']
    ]
    peft_format.write_adapter(target, alone, base_model)
  routers = {
      f'{site.hf_module}.{name}': lazy_arrays.of(array)
      for site in trained.sites
      for name, array in peft_format.torch_tensors(site).items()
      if name not in sites_lib.EXPERT_TENSORS
  }
  lazy_arrays.write_safetensors(folder / ROUTERS_FILE, routers)
  card.write(folder, trained, trained.sites, 'experts', [_EXPERTS_ALONE])


def _one_expert(site, index: int) -> sites_lib.AdaptedSite:
  # A shared lora_a has one entry, which every expert gets.
  tensors = {
      name: array[index : index + 1] if len(array) > 1 else array
      for name, array in site.tensors.items()
      if name in sites_lib.EXPERT_TENSORS
  }
  return sites_lib.one_expert(site, tensors)


def _write_collapsed(folder, trained, collapsed, out, calibration) -> None:
  base_model = _base_for_adapter(folder, trained, out)
  peft_format.write_adapter(folder, collapsed.sites, base_model)
  parity = _write_fixture(folder, trained, collapsed.params)
  routed, alone, base = (
      collapsed.losses[name] for name in ('routed', 'collapsed', 'base')
  )
  note = (
      f'{_NOT_EQUAL}{sites_lib.methods(trained.sites)} routes token by token; '
      'here each expert has a constant weight, its mean over '
      f'{collapsed.num_examples} examples of `{calibration}`. Mean loss of a '
      'target token on the same examples, in nats:\n\n'
      '| routed | collapsed (this) | bare base |\n| --- | --- | --- |\n'
      f'| {routed:.4f} | {alone:.4f} | {base:.4f} |\n\n'
      f'Collapsing costs {alone - routed:+.4f} nats.'
  )
  card.write(folder, trained, collapsed.sites, 'LORA', [note, parity])


FORMATS = {
    'peft': _write_peft,
    'merged': _write_merged,
    'full': _write_full,
    'experts': _write_experts,
}

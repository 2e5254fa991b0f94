# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The exported formats: one writer each."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import card
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import folds
from moe_peft.hf import gguf_lora
from moe_peft.hf import import_base
from moe_peft.hf import lazy_arrays
from moe_peft.hf import merge
from moe_peft.hf import peft_format
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import tokenizer
from moe_peft.hf import trained as trained_lib
from moe_peft.hf import xlora_config
from moe_peft.hf import xlora_format

MODEL_FILE = 'modeling_moe_peft.py'
ROUTERS_FILE = 'router.safetensors'
DTYPES = {
    'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)
}
_ROUTED = (
    'Which experts act depends on the tokens, so they cannot be merged into '
    'the weights, and no mean of them computes the same.'
)
_CHOOSING = (
    'Its experts choose among the tokens of a row, as many as the length of '
    'the row with its padding allows: pad rows as in training, to {} tokens.'
)
_EXPERTS_ALONE = (
    '**Not equal to the trained model.** Each `expert_N` is one expert alone, '
    f'for inspection; `{ROUTERS_FILE}` holds the routers. No call of PEFT '
    'combines them as the model does: a mean, a sum or `add_weighted_adapter` '
    'computes something else. For the same results use `--format peft`.'
)

_XLORA = (
    'PEFT finds the experts at the paths of `adapters` in '
    '`adapter_config.json`: change them where the folder is moved. It reads '
    'every text twice, and keeps no cache while it generates.'
)


@dataclasses.dataclass(frozen=True)
class Job:
  """What a writer writes.

  Attributes:
    folder: Where to.
    out: The name that the folder will have.
    trained: The model.
    sites: The adapters to write, its own or what they were collapsed to.
    params: Flat parameters of which the exported model computes the logits.
    notes: Paragraphs that the card begins with.
    dtype: Type of the weights of `merged`, a key of `DTYPES`.
  """

  folder: Path
  out: Path
  trained: trained_lib.Trained
  sites: Sequence[sites_lib.AdaptedSite]
  params: Mapping[str, np.ndarray]
  notes: Sequence[str] = ()
  dtype: str = 'float32'


def write(job: Job, file_format: str) -> None:
  """Writes a folder that is there; arguments and errors as of
  `export.export`."""
  if job.dtype not in DTYPES:
    raise errors.UserError(
        f'Weights are not written as {job.dtype!r}.', where='--dtype',
        remedy=f'Choose from {", ".join(DTYPES)}.',
    )
  if job.dtype != 'float32' and file_format != 'merged':
    raise errors.UserError(
        'Experts and routers are float32, and what computes the same as the '
        'run is.', where='--dtype',
        remedy='Leave it out, or use --format merged.',
    )
  if not job.sites and file_format not in ('merged', 'full'):
    raise errors.UserError(
        'The run has no adapters, so there is nothing to export but the model.',
        where='ADAPTER_RULES', remedy='Use --format merged.',
    )
  if xlora_format.is_one(job.sites) and file_format != 'peft':
    raise errors.UserError(
        'Its weights come from another pass of the whole model, which only '
        "PEFT's X-LoRA has.", where='--format', remedy='Use --format peft.',
    )
  tokenizer.write(job.folder, job.trained)
  FORMATS[file_format](job)


def _write_card(job: Job, kind: str, notes: Sequence[str]) -> None:
  router = [s.spec['router'] or {} for s in job.sites]
  more = []
  if any(site.routed for site in job.sites) and kind != 'experts':
    more.append(_ROUTED)
  if any(x.get('selection') == 'experts_choose' for x in router):
    more.append(_CHOOSING.format('the length of the inputs'))
  card.write(
      job.folder, job.trained, job.sites, kind, [*job.notes, *notes, *more]
  )


def _write_fixture(job: Job) -> str:
  """Writes tokens and logits; returns the card's paragraph about them."""
  effect = fixture.write(job.folder, job.trained, job.params)
  return (
      'Parity: `parity.safetensors` holds tokens and the float32 logits that '
      f'JAX computes for them; the adapter moves them by up to {effect:.3g}. '
      '`python -m moe_peft hf verify DIR` loads this folder in torch, prints '
      'the largest difference and fails above 1e-5 of the largest logit.'
  )


def _write_peft(job: Job) -> None:
  trained = job.trained
  if xlora_format.is_one(job.sites):
    _write_xlora(job)
    return
  saved = trained.changed_tensors() if trained.base_model else ()
  kind = peft_format.write_adapter(
      job.folder, trained, job.sites, _base_for_adapter(job), saved
  )
  notes = [_write_fixture(job)]
  if kind == 'MOE_PEFT':
    notes.append('Written for peft 0.21, run with 0.21.2.')
  if saved:
    notes.append(
        'Parameters of the base were trained too and are part of the adapter '
        '(`modules_to_save`), which vLLM and llama.cpp refuse.'
    )
  _write_card(job, kind, notes)


def _write_xlora(job: Job) -> None:
  classifier = xlora_format.of_run(job.trained, job.sites)
  base_model = _base_for_adapter(job)
  names = _write_each_expert(job, base_model)
  out = job.out.expanduser().absolute()
  xlora_format.write(
      job.folder, base_model, [out / name for name in names], classifier
  )
  _write_card(job, xlora_config.KIND, [_write_fixture(job), _XLORA])


def _write_each_expert(job: Job, base_model: str) -> list[str]:
  """Writes each expert as a LoRA of its own; returns the names of folders."""
  names = []
  for index in range(max(site.spec['num_experts'] for site in job.sites)):
    names.append(xlora_format.EXPERT.format(index))
    target = job.folder / names[-1]
    target.mkdir()
    alone = [
        expert
        for site in job.sites
        if index < site.spec['num_experts']
        for expert in folds.experts(site, index)
    ]
    peft_format.write_adapter(target, job.trained, alone, base_model)
  return names


def _base_for_adapter(job: Job) -> str:
  """Name of the base; a base without one is written beside the adapter."""
  trained = job.trained
  if trained.base_model:
    return trained.base_model
  base = job.folder / card.BASE_FOLDER
  base.mkdir()
  write_model(base, trained, trained.hf_tensors())
  tokenizer.write(base, trained)
  return str(job.out / card.BASE_FOLDER)


def write_model(
    folder: Path,
    trained: trained_lib.Trained,
    tensors: Mapping[str, lazy_arrays.LazyArray],
    **changes: Any,
) -> None:
  """Writes a model folder; `changes` are of its `config.json`."""
  config = trained.hf_config_json()
  folders.write_json(folder / base_config.FILE, config | changes)
  tokenizer.write_generation_config(folder, trained, config)
  lazy_arrays.write_safetensors(folder / folders.WEIGHTS, tensors)


def _write_merged(job: Job) -> None:
  tensors = job.trained.stored(merge.merged_tensors(job.trained, job.sites))
  dtype = DTYPES[job.dtype]
  tensors = {
      name: dataclasses.replace(x, dtype=dtype) for name, x in tensors.items()
  }
  write_model(job.folder, job.trained, tensors, torch_dtype=job.dtype)
  if job.dtype != 'float32':  # The logits are those of the rounded weights.
    params = import_base.read_params(job.folder, job.trained.layout)
    job = dataclasses.replace(job, params=params)
  _write_card(job, 'merged', [_write_fixture(job)])


def _write_full(job: Job) -> None:
  tensors = job.trained.hf_tensors()
  experts = peft_format.expert_tensors(job.sites, 'experts')
  tensors |= {name: lazy_arrays.of(array) for name, array in experts.items()}
  base = job.trained.hf_config_json()['architectures'][0]
  module = MODEL_FILE.removesuffix('.py')
  write_model(
      job.folder,
      job.trained,
      tensors,
      model_type='moe_peft',
      architectures=['MoePeftModel'],
      auto_map={
          'AutoConfig': f'{module}.MoePeftConfig',
          job.trained.network.auto: f'{module}.MoePeftModel',
      },
      moe_peft_base=base,
      moe_peft_groups=peft_format.groups(job.sites),
  )
  source = peft_format.single_file('remote_model')
  source += (
      f'\n\nfrom transformers import {base}\n\n'
      f'MoePeftConfig, MoePeftModel = with_experts({base})\n'
  )
  (job.folder / MODEL_FILE).write_text(source, 'utf-8')
  _write_card(job, 'full', [_write_fixture(job)])


def _write_experts(job: Job) -> None:
  """Each expert as an adapter of its own, and the routers."""
  if job.trained.base_model and job.trained.changed:
    raise errors.UserError(
        f'The run trained {min(job.trained.changed)} too, which single experts '
        'would leave out.', where='TRAINABLE_REGEX', remedy='Use --format full.'
    )
  _write_each_expert(job, _base_for_adapter(job))
  routers = {
      f'{site.layer.module}.{name}': lazy_arrays.of(array)
      for site in job.sites
      for name, array in site.torch_tensors.items()
      if name not in site.expert_tensors
  }
  lazy_arrays.write_safetensors(job.folder / ROUTERS_FILE, routers)
  _write_card(job, 'experts', [_EXPERTS_ALONE])


def _write_gguf(job: Job) -> None:
  gguf_lora.write(job.folder, job.trained, job.sites)
  _write_card(job, 'gguf', [
      f'`llama-server -m BASE.gguf --lora {gguf_lora.FILE}`, with a GGUF file '
      'of the base.'
  ])


FORMATS: Mapping[str, Callable[[Job], None]] = {
    'peft': _write_peft,
    'merged': _write_merged,
    'full': _write_full,
    'experts': _write_experts,
    'gguf': _write_gguf,
}

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The LoRAs that a bank is made of: PEFT folders, and finished runs."""

from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
from pathlib import Path
import re
from typing import Any

import jax
import numpy as np

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_trust
from moe_peft.core import adapted_sites
from moe_peft.core import sites as core_sites
from moe_peft.core import trainable
from moe_peft.experts import bank_base
from moe_peft.experts import bank_file
from moe_peft.hf import entries
from moe_peft.hf import folders
from moe_peft.hf import import_experts
from moe_peft.methods import bank as bank_method
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.methods import retrieval
from moe_peft.runs import t5x_run
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run

# What a router over a bank keeps of an expert, by its name in a run of that
# expert alone. The expert's folder has a file of each.
COLUMNS = {'gate': 'gates', 'centroid': 'centroids'}
# The method file of a router that reads it.
ROUTERS = {'gates': 'bank_phatgoose.gin', 'centroids': 'bank_retrieval.gin'}
_CARD = 'README.md'
_LICENCE = re.compile(r'^license:\s*["\']?([\w.+-]{1,64})["\']?\s*$', re.M)
_SCOPE = f'/{core_sites.ADAPTER_SCOPE}/'
# Adapters whose update is `scale * lora_a @ lora_b`. Subclasses are not among
# them: DoRA and PiSSA compute something else.
_PLAIN = (
    lora.LoRA, molora.MoLoRA, bank_method.GatedExpert, retrieval.IndexedExpert
)


@dataclasses.dataclass(frozen=True)
class Expert:
  """A LoRA, whatever it was read from.

  Attributes:
    record: What is known of it.
    pairs: A [in, rank] and B [rank, out] of each layer that it adapts, the
      scale in B, by the layer's path without a scan.
    columns: What routers keep of it, by the names of `COLUMNS`: an array
      [features] for each layer; without those that it does not have.
  """

  record: bank_file.Record
  pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
  columns: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(
      default_factory=dict
  )

  @property
  def rank(self) -> int:
    return max(down.shape[1] for down, _ in self.pairs.values())


def of_run(name: str, folder: Path, trust: bool) -> tuple[Expert, Any, Any]:
  """Reads the LoRA of a run, its newest checkpoint.

  Args:
    name: The expert's name.
    folder: MODEL_DIR.
    trust: As in `gin_files.load_gin`.

  Returns:
    The expert; the configuration of its network; the identity of its base.

  Raises:
    errors.UserError: If the run has no checkpoint, is no LoRA, has changed its
      base, or is of T5X.
  """
  if t5x_run.checkpoints(folder):
    raise errors.UserError(
        f'{folder} is a run of T5X.', '--from',
        'Export it with python -m moe_peft hf export, and give that folder.',
    )
  gin_files.load_gin(
      [str(folder / gin_trust.FILE)], [], trust=trust,
      defaults={'MODEL_DIR': str(folder)},
  )
  experiment = run.build()
  setup = experiment_lib.prepare(experiment)
  if changed := [k for k in setup.trainable if not trainable.is_adapter(k)]:
    raise errors.UserError(
        f'{folder} has trained {min(changed)} too, and experts share one base.',
        where='--from', remedy='Give runs that have trained adapters alone.',
    )
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    params = jax.device_get(loop.restore_params(setup, checkpointer))
  lengths = experiment.task_feature_lengths
  _, traced = adapted_sites.trace(
      lambda: experiment.model.init(jax.random.key(0), lengths)
  )
  scales = _scales(folder, traced)
  by_layer: dict[str, dict[str, np.ndarray]] = {}
  for path, array in entries.unstack({
      k: np.asarray(v) for k, v in params.items() if trainable.is_adapter(k)
  }).items():
    layer, _, parameter = path.partition(_SCOPE)
    by_layer.setdefault(layer, {})[parameter] = array
  pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  columns: dict[str, dict[str, np.ndarray]] = {}
  for layer, found in by_layer.items():
    one = re.sub(r'^(\w+)/layers_\d+/', r'\1/\1/', layer)
    scale = scales[layer if layer in scales else one]
    pairs[layer] = found['lora_a'][0], found['lora_b'][0] * np.float32(scale)
    for key in COLUMNS.keys() & found.keys():
      columns.setdefault(COLUMNS[key], {})[layer] = found[key]
  identity, checked, licence = setup.base, 'fingerprint', ''
  path = experiment.initial_checkpoint_path
  if path is not None and (known := bank_file.find(Path(path))) is not None:
    identity = known.base
    if columns:  # They are trained over a bank of one expert, which is this.
      checked, licence = known.experts[0].checked, known.experts[0].licence
  record = bank_file.Record(
      name=name, source=str(folder), kind='run', checked=checked,
      licence=licence,
      trained_on=experiment.mixture_or_task_name,
      rank=_rank(pairs), layers=len(pairs), sha256=_digest(pairs),
  )
  config = experiment.model.module.module.config
  return Expert(record, pairs, columns), config, identity


def is_run(folder: Path) -> bool:
  """Whether a folder is that of a run."""
  return (folder / gin_trust.FILE).is_file()


def _scales(folder: Path, traced: Mapping[str, Any]) -> dict[str, float]:
  """The factor of each layer's update, by path, of a run that is one LoRA."""
  for path, site in traced.items():
    adapter = site.adapter
    if type(adapter) not in _PLAIN or site.router is not None:
      raise errors.UserError(
          f'{folder} is no plain LoRA: at {path} it has a '
          f'{type(adapter).__name__} (NUM_EXPERTS = {adapter.num_experts}).',
          where='--from',
          remedy='Give runs of gin/methods/lora.gin, or what python -m '
          'moe_peft hf export writes of others: --format experts of a mixture, '
          '--format peft of what is one LoRA there.',
      )
  if not traced:
    raise errors.UserError(f'{folder} has no adapters.', where='--from')
  return {path: site.adapter.scale for path, site in traced.items()}


def of_peft(
    name: str, folder: Path, base: bank_base.Base, unchecked: bool = False
) -> Expert:
  """Reads a PEFT folder, or one of a bank.

  Args:
    name: The expert's name.
    folder: The folder.
    base: What it must have been trained on.
    unchecked: Whether a base of another name is taken for this one.

  Raises:
    errors.UserError: If it holds no plain LoRA, or was trained on another base.
  """
  fields = folders.read_json(folder / folders.ADAPTER_CONFIG)
  checked = base.check_name(
      folder, fields.get('base_model_name_or_path'), unchecked
  )
  modules = import_experts.read_folder(folder, base.module_shapes)
  pairs = {}
  for path, layer in base.layers.items():
    if layer.module in modules and layer.scales is None:
      down, up, scale = modules[layer.module]
      down, up = _own_ranks(down, up[slice(*(layer.rows or (None,)))])
      pairs[path] = down.T, up.T * np.float32(scale)
  columns = {}
  for column in COLUMNS.values():
    if (folder / f'{column}.safetensors').is_file():
      tensors = folders.Tensors(folder, column)
      columns[column] = {path: tensors[path] for path in tensors.shapes}
  record = bank_file.Record(
      name=name, source=str(folder), kind='peft', checked=checked,
      licence=licence_of(folder), rank=_rank(pairs), layers=len(pairs),
      sha256=_digest(pairs),
  )
  return Expert(record, pairs, columns)


def _own_ranks(
    down: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A [rank, in] and B [out, rank] of a layer without what fills up the rank.

  Of Phi, `peft_format` sets the ranks of layers that are one module side by
  side, zero in the rows of the others, and gives all modules as many.
  """
  used = up.any(axis=0)
  used[0] |= not used.any()  # One stays of a layer to which nothing is added.
  return down[used], up[:, used]


def of_bank(
    folder: Path, record: bank_file.Record, base: bank_base.Base
) -> Expert:
  """Reads an expert of a bank, from the folder of its experts."""
  return with_record(of_peft(record.name, folder / record.name, base), record)


def with_record(expert: Expert, record: bank_file.Record) -> Expert:
  """An expert read from a bank's folder, with what the bank knows of it.

  Layers at which it is zero are not its own.
  """
  pairs = {k: pair for k, pair in expert.pairs.items() if np.any(pair[1])}
  return Expert(record, pairs or expert.pairs, expert.columns)


def licence_of(folder: Path) -> str:
  """The licence that the card of a folder names; '' for none."""
  card = folder / _CARD
  if not card.is_file():
    return ''
  text = card.read_text(encoding='utf-8', errors='replace')
  _, _, rest = text.partition('---\n')
  found = _LICENCE.search(rest.partition('\n---')[0]) if rest else None
  return found[1] if found else ''


def _rank(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> int:
  return max(down.shape[1] for down, _ in pairs.values())


def _digest(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
  """SHA-256 over the arrays by path."""
  digest = hashlib.sha256()
  for path, pair in sorted(pairs.items()):
    for array in pair:
      digest.update(f'{path} {array.shape}\n'.encode())
      digest.update(np.ascontiguousarray(array, np.float32).tobytes())
  return digest.hexdigest()

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The experts of a bank as PEFT has them: LoRA folders, ARROW, XLORA.

Arrow has no folder of its own: it is the experts' folders and a call of
`create_arrow_model`. X-LoRA's classifier reads the last hidden state of the
base; no router of a bank does, but one that is constant is a classifier of
zeros. So `xlora/` is the uniform average, from which PEFT may train, or what
the classifier makes that came with the experts.
"""

from collections.abc import Mapping
import json
import os
from pathlib import Path

import numpy as np

from moe_peft import errors
from moe_peft.experts import bank_base
from moe_peft.experts import bank_experts
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import peft_format
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import xlora_config
from moe_peft.hf import xlora_format

FOLDER = 'experts'


def write(
    folder: Path,
    expert: bank_experts.Expert,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    base: bank_base.Base,
) -> None:
  """Writes one expert into the folder of a bank.

  Args:
    folder: The bank.
    expert: The expert.
    pairs: Its arrays in the bank, by path of the layer.
    base: The base.
  """
  target = folder / FOLDER / expert.record.name
  target.mkdir(parents=True)
  sites = [
      sites_lib.AdaptedSite(
          path, 'LoRA',
          sites_lib.low_rank(rank=len(up), alpha=float(len(up))),
          {'lora_a': down[None], 'lora_b': up[None]}, base.layers[path],
      )
      for path, (down, up) in pairs.items()
  ]
  modules = [layer.module for layer in base.layers.values()]
  config, tensors = peft_format.lora(peft_format.lora_pairs(sites), modules)
  folders.write_json(target / folders.ADAPTER_CONFIG, {
      'task_type': base.network.task_type,
      'base_model_name_or_path': base.name or None,
      'inference_mode': True,
      **config,
  })
  lazy_arrays.write_safetensors(
      target / folders.ADAPTER_WEIGHTS,
      {name: lazy_arrays.of(array) for name, array in tensors.items()},
  )
  for name, column in expert.columns.items():
    lazy_arrays.write_safetensors(
        target / f'{name}.safetensors',
        {path: lazy_arrays.of(x) for path, x in column.items()},
    )


def write_xlora(
    folder: Path, bank_dir: Path, names: list[str], base: bank_base.Base,
    classifier: xlora_config.Classifier | None,
) -> None:
  """Writes `xlora/`, the X-LoRA of a bank.

  Args:
    folder: The bank.
    bank_dir: Where it will lie.
    names: Names of the experts.
    base: The base.
    classifier: What weighs the experts; None: it begins as their average.
  """
  target = folder / 'xlora'
  target.mkdir()
  if classifier is None:
    zeros = np.zeros((base.config.emb_dim, len(names)), np.float32)
    classifier = xlora_config.Classifier([(zeros, zeros[0])])
  xlora_format.write(
      target, base.name, [bank_dir / FOLDER / name for name in names],
      classifier,
  )


def experts_in(folder: Path) -> list[tuple[str, Path]] | None:
  """Names and folders of the experts that a folder holds.

  That is one of an X-LoRA, or one with LoRA folders inside, as PEFT saves a
  model with several adapters, Arrow's among them, and as a bank has them.

  Returns:
    None if it is an expert itself, or a run.

  Raises:
    errors.UserError: If an X-LoRA names experts that are not there.
  """
  file = folder / folders.ADAPTER_CONFIG
  if file.is_file():
    return _of_xlora(file) if is_xlora(folder) else None
  if bank_experts.is_run(folder):
    return None
  inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
  found = [
      (child.name, child) for child in sorted(inside.iterdir())
      if (child / folders.ADAPTER_CONFIG).is_file()
      and not _is_router(child / folders.ADAPTER_CONFIG)
  ]
  if not found:
    raise errors.UserError(
        f'{folder} is neither a run (it has no config.gin) nor a PEFT folder '
        f'(it has no {folders.ADAPTER_CONFIG}), and holds no such folders.',
        where='--from',
    )
  return found


def is_xlora(folder: Path) -> bool:
  """Whether a folder is a PEFT folder of an X-LoRA."""
  file = folder / folders.ADAPTER_CONFIG
  if not file.is_file():
    return False
  return folders.read_json(file).get('peft_type') == xlora_config.KIND


def _is_router(file: Path) -> bool:
  """Whether this is what PEFT saves of a router beside its experts.

  Arrow's is a LoRA whose weights nobody uses. An expert may have any name.
  """
  fields = folders.read_json(file)
  return (
      fields.get('peft_type') == xlora_config.KIND
      or fields.get('arrow_config') is not None
  )


def _of_xlora(file: Path) -> list[tuple[str, Path]]:
  """The experts of an X-LoRA; they may have moved together with it."""
  adapters = folders.read_json(file).get('adapters')
  if not isinstance(adapters, dict) or not all(
      isinstance(x, str) for x in adapters.values()
  ):
    raise errors.UserError(
        f'adapters of {file} must give each expert its folder.', where=file,
    )
  found = []
  for path in adapters.values():
    places = Path(path), file.parent / path, file.parent / Path(path).name
    # A text that is too long for a path is none: Path.is_file would fail.
    there = lambda x: os.path.isfile(x / folders.ADAPTER_CONFIG)
    folder = next(filter(there, places), None)
    if folder is None:
      raise errors.UserError(
          f'{file} names the expert {json.dumps(path)[:200]}, which is no '
          'folder here.',
          where=file,
          remedy='Fetch the experts, and write their folders into the file. '
          'Or give them with --from one by one, without the classifier.',
      )
    found.append((folder.name, folder))
  return found

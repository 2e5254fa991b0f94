# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `--from` of a bank names: experts, and the classifier of an X-LoRA."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft.experts import bank_base
from moe_peft.experts import bank_experts
from moe_peft.experts import bank_file
from moe_peft.experts import bank_peft
from moe_peft.hf import folders
from moe_peft.hf import xlora_config


def read(
    sources: Sequence[str], base_path: str, base: bank_base.Base | None,
    unchecked: bool, trust: bool,
) -> tuple[bank_base.Base, list[bank_experts.Expert]]:
  """Reads the experts of the sources, in their order.

  Args:
    sources: As of `bank.build`.
    base_path: As of `bank.build`.
    base: The base; None: it is read, with the first run.
    unchecked: As of `bank.build`.
    trust: As of `bank.build`.

  Raises:
    errors.UserError: As of `bank.build`.
  """
  found = [x for source in sources for x in _named(source)]
  runs: dict[str, Any] = {
      name: bank_experts.of_run(name, folder, trust)
      for name, folder in found if bank_experts.is_run(folder)
  }
  if base is None:
    config = next((config for _, config, _ in runs.values()), None)
    base = bank_base.read(base_path, config)
  experts = []
  for name, folder in found:
    if name in runs:
      expert, _, identity = runs[name]
      base.check_run(folder, identity)
      base.check_layers(folder, expert.pairs)
    else:
      expert = _of_folder(name, folder, base, unchecked)
    experts.append(expert)
  return base, experts


def _of_folder(
    name: str, folder: Path, base: bank_base.Base, unchecked: bool
) -> bank_experts.Expert:
  """A PEFT folder; one of a bank keeps what the bank knows of it."""
  expert = bank_experts.of_peft(name, folder, base, unchecked)
  if folder.parent.name != bank_peft.FOLDER:
    return expert
  other = bank_file.find(folder.parent.parent)
  known = {x.name: x for x in other.experts} if other else {}
  if folder.name not in known:
    return expert
  record = dataclasses.replace(known[folder.name], name=name)
  if other.base != base.identity:  # Its fingerprint was that of another base.
    record = dataclasses.replace(record, checked=expert.record.checked)
  return bank_experts.with_record(expert, record)


def _named(source: str) -> list[tuple[str, Path]]:
  """The experts that one --from names: one folder, or those inside of it."""
  name, folder = _split(source)
  found = bank_peft.experts_in(folder)
  if found is not None:
    return found
  name = name or folder.absolute().name
  return [(name, folder)]


def _split(source: str) -> tuple[str, Path]:
  """The name, '' if none is given, and the folder of one --from."""
  name, equals, text = source.partition('=')
  if not equals or '/' in name:
    name, text = '', source
  folder = Path(text).expanduser()
  if not folder.is_dir():
    raise errors.UserError(f'{folder} is no folder.', where='--from')
  return name, folder


def xlora(sources: Sequence[str]) -> Path | None:
  """The X-LoRA that a bank is made of; None if it is made of LoRAs.

  Raises:
    errors.UserError: For an X-LoRA beside anything else.
  """
  split = [_split(source)[1] for source in sources]
  found = [folder for folder in split if bank_peft.is_xlora(folder)]
  if found and len(sources) > 1:
    raise errors.UserError(
        f'The classifier of the X-LoRA {found[0]} weighs its own experts '
        'alone.', where='--from',
        remedy='Give it alone to bank build. Or give the folders of its '
        'experts, one by one: then the classifier is left out.',
    )
  return found[0] if found else None


def classifier(
    folder: Path, base: bank_base.Base, unchecked: bool
) -> xlora_config.Classifier:
  """Reads the classifier of an X-LoRA.

  Args:
    folder: The X-LoRA.
    base: What it must have been trained on.
    unchecked: As of `bank.build`.

  Raises:
    errors.UserError: If it is of another base, or not understood.
  """
  if base.network.task_type != 'CAUSAL_LM':
    raise errors.UserError(
        f"{folder} is an X-LoRA, and PEFT's knows causal models alone.",
        where='--base', remedy='Give the decoder that it was trained on.',
    )
  fields = folders.read_json(folder / folders.ADAPTER_CONFIG)
  base.check_name(folder, fields.get('base_model_name_or_path'), unchecked)
  return xlora_config.read(folder, base.config.emb_dim)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`bank.json`: where the experts of a bank come from."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

from moe_peft import errors
from moe_peft.hf import entries
from moe_peft.runs import json_file

FILE = 'bank.json'
# Names of experts are names of folders, too.
NAME = re.compile(r'\w[\w.-]{0,99}', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of an expert.

  Attributes:
    name: Its name in the bank.
    source: Where it was read.
    kind: 'peft' or 'run'.
    checked: What said that it belongs to the base: 'fingerprint', 'name', or
      'shapes' alone.
    licence: As its card says; '' where nothing does.
    trained_on: The task of a run.
    rank: Its own rank.
    layers: How many layers it adapts.
    sha256: Over its arrays as they were read.
  """

  name: str
  source: str
  kind: str
  checked: str
  licence: str = ''
  trained_on: str = ''
  rank: int = 0
  layers: int = 0
  sha256: str = ''


@dataclasses.dataclass(frozen=True)
class Bank:
  """A bank.

  Attributes:
    experts: Its experts, in their order.
    base: The identity of the base, see `base_identity.of`.
    base_model: Name of the base on the Hub; '' if it has none.
    config: The base's `config.json`.
    layout: Layout of its parameters.
    rank: Rank of the experts, those of a lower one filled with zeros.
    classifier: Where the X-LoRA was read whose experts these are and whose
      classifier is kept; '' for none.
  """

  experts: Sequence[Record]
  base: Mapping[str, Any]
  base_model: str
  config: Mapping[str, Any]
  layout: str
  rank: int
  classifier: str = ''

  @property
  def names(self) -> list[str]:
    return [record.name for record in self.experts]

  def write(self, folder: Path) -> None:
    json_file.write(folder / FILE, dataclasses.asdict(self), indent=2)


def find(path: Path) -> Bank | None:
  """The bank that a base is, given by its folder or `checkpoint_0`; or None."""
  folder = path.parent if path.name.startswith('checkpoint_') else path
  if not (folder.expanduser() / FILE).is_file():
    return None
  return read(folder.expanduser())


def read(folder: Path) -> Bank:
  """The file of a bank.

  Raises:
    errors.UserError: If there is none, or it is damaged.
  """
  fields = json_file.read(folder / FILE)
  if fields is None:
    raise errors.UserError(
        f'{folder} is no bank: it has no {FILE}.', where=folder,
        remedy='Make one with python -m moe_peft bank build.',
    )
  kinds = {field.name: field.type for field in dataclasses.fields(Record)}
  experts = tuple(
      Record(**{name: x.get(name, kind) for name, kind in kinds.items()})
      for x in fields.objects('experts')
  )
  for expert in experts:
    if not NAME.fullmatch(expert.name):  # It would lead out of the folder.
      raise json_file.damaged(
          folder / FILE, f'{expert.name!r:.80} is no name of an expert.'
      )
  if fields.get('layout', str) not in entries.LAYOUTS:
    raise fields.error('layout', f'must be one of {", ".join(entries.LAYOUTS)}')
  return Bank(
      experts=experts,
      base=fields.get('base', dict),
      base_model=fields.get('base_model', str),
      config=fields.get('config', dict),
      layout=fields.get('layout', str),
      rank=fields.get('rank', int),
      classifier=fields.get('classifier', str, ''),
  )

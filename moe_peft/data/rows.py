# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The row: one example before tokenization."""

from collections.abc import Callable, Iterable
import dataclasses
import hashlib
from typing import Any

SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Row:
  """One question with its answer.

  Attributes:
    inputs: what the model reads, instruction prefix included.
    targets: the right answer.
    words: dictionary words that occur in the row; all are of one split (word
      tasks only).
    choices: the possible answers (rank classification), empty otherwise.
    place: file and line, for messages; of local files only.
  """

  inputs: str
  targets: str
  words: tuple[str, ...] = ()
  choices: tuple[str, ...] = ()
  place: str = dataclasses.field(default='', compare=False)


def stable_hash(text: str) -> int:
  """Returns a 64-bit hash that is the same on every machine and run."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def by_hash(items: Iterable[Any], key: Callable[[Any], str]) -> list[Any]:
  """Puts items in a pseudo-random order that depends on their texts alone."""
  return sorted(items, key=lambda item: (stable_hash(key(item)), key(item)))

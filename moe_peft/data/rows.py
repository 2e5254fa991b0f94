# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The row: one example before tokenization, and one after it."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

SPLITS = ('train', 'validation', 'test')
# The column of rows that have an id of their own.
EXAMPLE_ID = 'example_id'


@dataclasses.dataclass(frozen=True)
class Row:
  """One question with its answer.

  Attributes:
    inputs: What the model reads, instruction prefix included.
    targets: The right answer.
    words: Dictionary words that occur in the row; all are of one split (word
      tasks only).
    choices: The possible answers (rank classification), empty otherwise.
    place: File and line, for messages; of local files only.
    example_id: The id that the row gives itself, see example_ids.py.
  """

  inputs: str
  targets: str
  words: tuple[str, ...] = ()
  choices: tuple[str, ...] = ()
  place: str = dataclasses.field(default='', compare=False)
  example_id: str | None = None

  @property
  def key(self) -> str:
    """Rows with equal keys are in one split; texts ask nothing."""
    return self.inputs or self.targets

  @property
  def content(self) -> tuple[Any, ...]:
    """All that a run reads of it."""
    return self.inputs, self.targets, self.choices, self.example_id


@dataclasses.dataclass(frozen=True)
class TokenRow:
  """One example as ids, of data whose tokens a chat template decides.

  Attributes:
    features: Ids by feature, as data sets of SeqIO have them.
    weights: 1 for each token of `targets` that the loss counts, else 0; None:
      it counts all of them.
    place: File and row, for messages; of local files only.
    example_id: As in `Row`.
  """

  features: Mapping[str, tuple[int, ...]]
  weights: tuple[int, ...] | None = None
  place: str = dataclasses.field(default='', compare=False)
  example_id: str | None = None

  @property
  def content(self) -> tuple[Any, ...]:
    """All that a run reads of it."""
    return sorted(self.features.items()), self.weights, self.example_id


def id_column(rows: Sequence[Any]) -> dict[str, list[str]]:
  """The column of the ids that rows give; none if they give none."""
  if rows[0].example_id is None:
    return {}
  return {EXAMPLE_ID: [row.example_id for row in rows]}


def of_split(
    splits: Mapping[str, Iterable[Any]],
    split: str,
    shuffle: bool,
    seed: int | None,
) -> list[Any]:
  """The rows of a split, in their order or in one that a seed decides."""
  rows = list(splits[split])
  if not shuffle:
    return rows
  return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def stable_hash(text: str) -> int:
  """Returns a 64-bit hash that is the same on every machine and run."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def by_hash(items: Iterable[Any], key: Callable[[Any], str]) -> list[Any]:
  """Puts items in a pseudo-random order that depends on their texts alone."""
  return sorted(items, key=lambda item: (stable_hash(key(item)), key(item)))


def balance(ordered: Sequence[Row], limit: int) -> list[Row]:
  """Keeps equally many rows of each choice, `limit` in all; order is kept.

  Args:
    ordered: At least one row; all have the same choices.
    limit: Most rows.
  """
  choices = ordered[0].choices
  counts = collections.Counter(row.targets for row in ordered)
  each = min(limit // len(choices), *(counts[choice] for choice in choices))
  kept = collections.Counter()
  balanced = []
  for row in ordered:
    if kept[row.targets] < each:
      kept[row.targets] += 1
      balanced.append(row)
  return balanced

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of a user's files by split."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging

from moe_peft import errors
from moe_peft.data import examples
from moe_peft.data import local_files
from moe_peft.data import rows as rows_lib

Paths = str | Sequence[str]
Splits = Mapping[str, Sequence[examples.Parsed]]


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the rows of a task are.

  Attributes:
    train: Path, glob pattern, or list of them, or None.
    validation: The same for the validation split.
    test: The same for the test split.
    data: Instead of the three: files that are split here.
    fractions: Shares of train, validation and test of `data`.
  """

  train: Paths | None
  validation: Paths | None
  test: Paths | None
  data: Paths | None
  fractions: Sequence[float]

  @property
  def of_splits(self) -> dict[str, Paths]:
    files = {name: getattr(self, name) for name in rows_lib.SPLITS}
    return {split: paths for split, paths in files.items() if paths}

  def found(self) -> dict[str, list[str]]:
    """The files themselves by their split, or by the shares of `data`."""
    shares = ', '.join(str(float(x)) for x in self.fractions)
    given = self.of_splits or {f'split in {shares}': self.data}
    return {split: local_files.find(paths) for split, paths in given.items()}

  def read(
      self, task: str, read: Callable[[Paths], Sequence[examples.Parsed]]
  ) -> Splits:
    """Reads the rows of each split, from its own files or from common ones.

    Args:
      task: Its name, for messages.
      read: Reads files.

    Raises:
      errors.UserError: Files are missing, or rows are too few to be split.
    """
    files = self.of_splits
    if bool(files) == bool(self.data):
      raise errors.UserError(
          f'The task {task!r} needs either train, validation and test files or '
          'data, which is then split by split_fractions.',
          'local.register_task.data',
      )
    if self.data:
      shares = _shares(self.fractions)  # Raises before files are read.
      return _split(read(self.data), shares)
    splits = {split: read(paths) for split, paths in files.items()}
    _warn_of_leaks(splits, task)
    return splits


def _shares(fractions: Sequence[float]) -> dict[str, float]:
  if (
      len(fractions) != len(rows_lib.SPLITS)
      or min(fractions) < 0
      or abs(sum(fractions) - 1) > 1e-6
  ):
    raise errors.UserError(
        'The fractions must be three shares (train, validation, test) with '
        f'sum 1, not {fractions!r}.', 'local.register_task.split_fractions',
    )
  return dict(zip(rows_lib.SPLITS, fractions, strict=True))


def _split(
    all_rows: Sequence[examples.Parsed], shares: Mapping[str, float]
) -> Splits:
  """Splits rows by a stable hash of what is given."""
  splits = {split: [] for split, share in shares.items() if share > 0}
  for row in all_rows:
    # Uniform in [0, 1).
    point = rows_lib.stable_hash(f'split/{row.key}') / 2**64
    for split in splits:
      chosen = split
      point -= shares[split]
      if point < 0:
        break
    splits[chosen].append(row)
  for split, rows in splits.items():
    if not rows:
      asked = len({row.key for row in all_rows})
      raise errors.UserError(
          f'Too few rows for a {split} split of {shares[split]:.0%}: '
          f'{len(all_rows)}, different questions: {asked}.',
          'local.register_task.split_fractions',
          'Give more rows; in a gin file also other split_fractions, or a file '
          'for each split.',
      )
  return splits


def _warn_of_leaks(splits: Splits, task: str) -> None:
  trained = {row.key for row in splits.get('train', ())}
  for split, rows in splits.items():
    shared = sum(row.key in trained for row in rows)
    if split != 'train' and shared:
      logging.getLogger(__name__).warning(
          'Task %s: %d of %d rows of %s are also in train, answers aside.',
          task, shared, len(rows), split,
      )

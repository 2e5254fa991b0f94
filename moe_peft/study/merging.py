# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adds the rows that another machine has run of the same studies."""

from collections.abc import Iterable, Sequence
from pathlib import Path
import sys
from typing import Any

from moe_peft import errors
from moe_peft.study import records as records_lib


def merge(studies: Sequence[Any], folder: Path) -> None:
  """Adds the rows of another results folder, laid out as these are or flat.

  Args:
    studies: Each has `inside`, its place in the folder, `records`, and
      `tuned()`, what of each configuration is tuned.
    folder: The other folder.

  Raises:
    errors.UserError: If it has no row of these studies, or rows that differ.
  """
  check(folder, [study.inside for study in studies])
  for study in studies:
    theirs = _theirs(folder, study.inside)
    new = study.records.merge(theirs, study.tuned())
    print(f'{theirs}: {new} new rows', file=sys.stderr)


def check(folder: Path, insides: Iterable[str]) -> None:
  """Raises errors.UserError for a folder without rows, or with broken ones."""
  if not list(folder.rglob('results.json')):
    raise errors.UserError('The folder holds no rows of a study.', folder)
  for inside in insides:
    records_lib.Records(_theirs(folder, inside))


def _theirs(folder: Path, inside: str) -> Path:
  return folder / inside if (folder / inside).is_dir() else folder

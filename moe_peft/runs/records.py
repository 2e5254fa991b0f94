# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON and JSON-lines files of a run directory."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors


@dataclasses.dataclass(frozen=True)
class Curve:
  """One scalar over steps: `steps` <int64>[n] ascending, `values` [n]."""

  steps: np.ndarray
  values: np.ndarray


def read_text(path: Path) -> str:
  """The text of a file; `UserError` where it cannot be read."""
  try:
    return path.read_text(encoding='utf-8', errors='replace')
  except OSError as e:
    raise errors.UserError(f'Cannot read {path}: {e.strerror}.') from e


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file; `UserError` where it holds anything else."""
  try:
    value = json.loads(read_text(path))
  except (ValueError, RecursionError) as e:
    raise errors.UserError(
        f'{path} is not valid JSON ({e}): restore it or run the evaluation'
        ' again.'
    ) from e
  if not isinstance(value, dict):
    raise malformed(path, 'the file must hold one JSON object')
  return value


def malformed(path: Path, what: str) -> errors.UserError:
  """The error for a file whose JSON is not of the agreed form."""
  return errors.UserError(
      f'{path} is malformed: {what}. Restore it or run the evaluation again.'
  )


def read_lines(path: Path, notices: list[str]) -> list[dict[str, Any]]:
  """Lines of a jsonl file; unreadable ones are skipped and reported.

  A run that is killed leaves half a line, and a resumed one appends to it.
  """
  if not path.is_file():
    notices.append(f'There is no metrics/{path.name}.')
    return []
  records, skipped = [], []
  lines = read_text(path).split('\n')
  for line_number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      record = None
    if isinstance(record, dict) and is_finite(record.get('step')):
      records.append(record)
    else:
      skipped.append(line_number)
  half_a_line = len(skipped) == 1 and lines[-1]
  if skipped and not records and not half_a_line:
    raise errors.UserError(
        f'{path}, line {skipped[0]}: not a metrics record (a JSON object with'
        ' "step"). No line of the file can be read.'
    )
  if skipped:
    shown = ', '.join(map(str, skipped[:5]))
    more = f' and {len(skipped) - 5} more' if len(skipped) > 5 else ''
    notices.append(
        f'metrics/{path.name}: skipped unreadable line {shown}{more} (left by'
        ' an interrupted write).'
    )
  return records


def is_finite(value: Any) -> bool:
  return math.isfinite(number(value))


def is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: Any) -> float:
  """NaN for null and for anything that is no number."""
  try:
    return float(value) if is_number(value) else math.nan
  except OverflowError:  # an integer beyond float64
    return math.nan


def _curve(points: Mapping[int, float]) -> Curve:
  steps = sorted(points)
  return Curve(
      np.array(steps, np.int64),
      np.array([points[s] for s in steps], np.float64),
  )


def train_curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
  """scalar name -> curve; null becomes NaN."""
  points: dict[str, dict[int, float]] = {}
  for record in records:
    for name, value in record.items():
      if name != 'step' and (is_number(value) or value is None):
        # A resumed run repeats steps: what it wrote last is what happened.
        points.setdefault(name, {})[int(record['step'])] = number(value)
  return {name: _curve(p) for name, p in points.items()}


def evaluation_curves(
      records: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], Curve]:
  """(task, metric) -> curve, in order of appearance."""
  points: dict[tuple[str, str], dict[int, float]] = {}
  for record in records:
    for name, value in record.items():
      if name not in ('step', 'task') and (is_number(value) or value is None):
        key = (str(record.get('task', '')), name)
        points.setdefault(key, {})[int(record['step'])] = number(value)
  return {key: _curve(p) for key, p in points.items()}



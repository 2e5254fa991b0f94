# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`metrics/*.jsonl`: rows of scalars that grow while a run goes on.

`train.jsonl` has a row for each logging period, `eval.jsonl` one for each task
and evaluation, `routers.jsonl` one for each logging period and in it each site,
and `processes.jsonl` one for each process that worked on the run.
"""

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import atomic
from moe_peft.runs import json_file

TRAIN = 'metrics/train.jsonl'
EVALUATION = 'metrics/eval.jsonl'
ROUTERS = 'metrics/routers.jsonl'
PROCESSES = 'metrics/processes.jsonl'
_MAX_STEP = 2**53


class JsonLines:
  """Appends rows to a file; a resumed run drops what it repeats.

  Attributes:
    steps: The steps of the rows.
  """

  def __init__(self, path: Path, first_step: int, together: int = 1):
    """Opens a file.

    Args:
      path: The file.
      first_step: Rows of later steps are removed: this run writes them anew.
      together: How many rows a step has. If `first_step` has fewer, a kill or
        a full disk has cut them, and they are removed too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    self.steps: set[int] = set()
    if path.exists():
      rows = [r for r in read_lines(path)[0] if r['step'] <= first_step]
      whole = sum(r['step'] == first_step for r in rows) >= together
      rows = [r for r in rows if whole or r['step'] < first_step]
      self.steps = {int(row['step']) for row in rows}
      kept = ''.join(json_file.dumps(row) + '\n' for row in rows)
      if kept != path.read_text(encoding='utf-8', errors='replace'):
        atomic.write(path, kept)
    self._file = path.open('a', encoding='utf-8')

  def is_empty(self) -> bool:
    return self._file.tell() == 0  # It is open for appending.

  def write(self, *rows: Mapping[str, Any]) -> None:
    """Appends rows that belong together."""
    self.steps.update(int(row['step']) for row in rows)
    self._file.write(''.join(json_file.dumps(row) + '\n' for row in rows))
    self._file.flush()

  def close(self) -> None:
    with contextlib.suppress(OSError):  # `write` has raised it before.
      self._file.close()


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
  """Reads rows; a run that is killed leaves half a line.

  Returns:
    The rows, and the numbers of the lines that cannot be read, from 1.

  Raises:
    errors.UserError: No line can be read, and there is more than half a line.
  """
  rows, skipped = [], []
  lines = json_file.read_text(path).split('\n')
  for line_number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json_file.loads(line)
    except ValueError:
      row = None
    if isinstance(row, dict) and abs(
        json_file.number(row.get('step'))
    ) < _MAX_STEP:
      rows.append(row)
    else:
      skipped.append(line_number)
  if skipped and not rows and (len(skipped) > 1 or not lines[-1]):
    raise json_file.damaged(
        path, f'Line {skipped[0]} is not a JSON object with "step", and no '
        'other line is.'
    )
  return rows, skipped


@dataclasses.dataclass(frozen=True)
class Process:
  """What one process that worked on a run has cost.

  Attributes:
    step: The last one that it saved.
    seconds: Its time.
    peak_memory_bytes: The most memory that it used at once.
    device: Number and kind of its devices; empty where it was not noted.
  """

  step: int
  seconds: float
  peak_memory_bytes: int
  device: str = ''


def processes(run_dir: Path) -> list[Process]:
  """The processes that worked on a run.

  Raises:
    errors.UserError: A row is damaged.
  """
  path = run_dir / PROCESSES
  rows = read_lines(path)[0] if path.is_file() else []
  fields = [json_file.Fields(path, row) for row in rows]
  return [
      Process(
          row.get('step', int),
          row.get('seconds', float),
          row.get('peak_memory_bytes', int),
          row.get('device', str, ''),
      )
      for row in fields
  ]


@dataclasses.dataclass(frozen=True)
class Curve:
  """One scalar over steps: `steps` <int64>[n] ascending, `values` [n]."""

  steps: np.ndarray
  values: np.ndarray


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Curve]:
  """Curves by task and name of the scalar; the task of training rows is ''.

  Null becomes NaN. A resumed run may repeat steps: what it wrote last counts.
  """
  points: dict[tuple[str, str], dict[int, float]] = {}
  for row in rows:
    for name, value in row.items():
      if name in ('step', 'task') or isinstance(value, (bool, str, list, dict)):
        continue
      key = str(row.get('task', '')), name
      points.setdefault(key, {})[int(row['step'])] = json_file.number(value)
  return {key: _curve(of_key) for key, of_key in points.items()}


def _curve(points: Mapping[int, float]) -> Curve:
  steps = sorted(points)
  return Curve(np.array(steps, np.int64),
               np.array([points[step] for step in steps], np.float64))


@dataclasses.dataclass(frozen=True)
class RouterCurves:
  """What the routers did with the training tokens of each logging period.

  Attributes:
    steps: The last step of each period, <int64>[periods].
    load: Mean combine weights by site, <float64>[periods, num_experts].
    selected: Experts of a token by site, <float64>[periods].
    left_behind: Share of tokens without any, by site, <float64>[periods].
  """

  steps: np.ndarray
  load: Mapping[str, np.ndarray]
  selected: Mapping[str, np.ndarray]
  left_behind: Mapping[str, np.ndarray]


def router_log(path: Path, rows: Iterable[Mapping[str, Any]]) -> RouterCurves:
  """The log in the rows of `routers.jsonl`.

  Raises:
    errors.UserError: A row lacks a site of the last one, or one of its values.
  """
  by_step = {int(row['step']): row.get('sites') for row in rows}
  steps = sorted(by_step)
  columns = {'load': {}, 'selected': {}, 'left_behind': {}}
  try:
    for name, column in columns.items():
      for site, last in by_step[steps[-1]].items():
        values = [by_step[step][site][name] for step in steps]
        if name == 'load':  # There were experts that a layer does not have.
          values = [load[: len(last['load'])] for load in values]
        column[site] = np.array(values, np.float64)
        if column[site].ndim != (2 if name == 'load' else 1):
          raise ValueError(f'{name} of {site}')
  except (
      AttributeError, TypeError, KeyError, ValueError, OverflowError
  ) as e:
    raise json_file.damaged(
        path, '"sites" must map the same sites to "load", "selected" and '
        '"left_behind" in every line.'
    ) from e
  return RouterCurves(np.array(steps, np.int64), **columns)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads what a run knows of single experts, and of its routers over time."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any
import zipfile

import numpy as np

from moe_peft.routers import statistics
from moe_peft.runs import ablation_records
from moe_peft.runs import records

# Folder of the snapshots that snapshots.py writes.
SNAPSHOTS = 'routing'


@dataclasses.dataclass(frozen=True)
class Row:
  """A held-out row: its task and, by stack, the text of its tokens."""

  task: str
  pieces: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Experts:
  """Everything is empty where a run has none of it.

  Attributes:
    log_steps: last steps of the logged periods, <int64>[periods].
    load: mean combine weights by site, <float64>[periods, num_experts].
    selected: experts of a token by site, <float64>[periods].
    left_behind: tokens without any, by site, <float64>[periods].
    steps: of the snapshots, <int64>[snapshots].
    moved: drift from the first snapshot by site, <float64>[snapshots].
    stepped: drift from the snapshot before by site, <float64>[snapshots].
    rows: the rows of the snapshots.
    last: combine weights of the last snapshot by site, <float>[rows, length,
      num_experts].
    similarity: cosines by site, <float64>[num_experts, num_experts].
    ablation: None where it was not measured.
  """

  log_steps: np.ndarray
  load: Mapping[str, np.ndarray]
  selected: Mapping[str, np.ndarray]
  left_behind: Mapping[str, np.ndarray]
  steps: np.ndarray
  moved: Mapping[str, np.ndarray]
  stepped: Mapping[str, np.ndarray]
  rows: tuple[Row, ...]
  last: Mapping[str, np.ndarray]
  similarity: Mapping[str, np.ndarray]
  ablation: ablation_records.Ablation | None


def read(path: Path, notices: list[str]) -> Experts:
  """Reads a run directory.

  Args:
    path: MODEL_DIR.
    notices: gets a sentence on each collapsed router and on unreadable lines.

  Raises:
    UserError: a file is corrupt.
  """
  log = _log(path / 'metrics' / 'routers.jsonl', notices)
  return Experts(
      **log,
      **_snapshots(path / SNAPSHOTS),
      similarity=_similarity(path / 'similarity.json'),
      ablation=ablation_records.read(path),
  )


def stack_of(site: str) -> str:
  """Whose tokens a site routes, `encoder` or `decoder`."""
  from moe_peft.core import inject  # It brings JAX; few pages need it.

  return 'encoder' if inject.reads_encoder(site) else 'decoder'


def _log(path: Path, notices: list[str]) -> dict[str, Any]:
  lines = records.read_lines(path, notices) if path.is_file() else []
  # A resumed run repeats steps: what it wrote last is what happened.
  by_step = {int(line['step']): line.get('sites') for line in lines}
  steps = sorted(by_step)
  result = {'log_steps': np.array(steps, np.int64)}
  try:
    sites = list(by_step[steps[-1]]) if steps else []
    for name in ('load', 'selected', 'left_behind'):
      result[name] = {
          site: np.array([by_step[s][site][name] for s in steps], np.float64)
          for site in sites
      }
  except (TypeError, KeyError, ValueError) as e:
    raise records.malformed(
        path, '"sites" must map the same sites to "load", "selected" and'
        ' "left_behind" in every line'
    ) from e
  for site in sites:
    if statistics.is_collapsed(
        result['load'][site][-1], result['selected'][site][-1]
    ):
      number = statistics.effective_experts(result['load'][site][-1])
      notices.append(
          f'The router at {site} has collapsed: in the last logged period all'
          f' tokens together used {number:.1f} of'
          f' {result["load"][site].shape[1]} experts.'
      )
  return result


def _snapshots(folder: Path) -> dict[str, Any]:
  files = {
      int(match[1]): file
      for file in (folder.glob('step_*.npz') if folder.is_dir() else ())
      if (match := re.fullmatch(r'step_(\d+)\.npz', file.name))
  }
  rows_file = folder / 'rows.json'
  if not files or not rows_file.is_file():
    return dict(steps=np.zeros(0, np.int64), moved={}, stepped={}, rows=(),
                last={})
  rows = _rows(rows_file)
  steps = sorted(files)
  moved: dict[str, list[float]] = {}
  stepped: dict[str, list[float]] = {}
  first = before = None
  for step in steps:
    weights = _arrays(files[step], len(rows))
    first, before = first or weights, before or weights
    for site in weights:
      tokens = lambda x, s=site: real_tokens(x.get(s), rows, s)
      now = tokens(weights)
      for drifts, other in ((moved, first), (stepped, before)):
        then = tokens(other)
        same = then.shape == now.shape
        drifts.setdefault(site, []).append(
            statistics.drift(then, now) if same else float('nan')
        )
    before = weights
  as_arrays = lambda x: {site: np.array(v) for site, v in x.items()}
  return dict(
      steps=np.array(steps, np.int64), moved=as_arrays(moved),
      stepped=as_arrays(stepped), rows=rows, last=before,
  )


def real_tokens(
    weights: np.ndarray | None, rows: Sequence[Row], site: str
) -> np.ndarray:
  """Weights of all tokens but padding, <float64>[tokens, num_experts]."""
  if weights is None:
    return np.zeros((0, 1))
  stack = stack_of(site)
  return np.concatenate([
      x[: len(row.pieces.get(stack, ()))]
      for x, row in zip(weights, rows, strict=True)
  ]).astype(np.float64)


def _arrays(path: Path, num_rows: int) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      weights = {name: arrays[name] for name in arrays.files}
  except (OSError, ValueError, zipfile.BadZipFile) as e:
    raise records.malformed(path, f'no arrays can be read ({e})') from e
  if any(x.ndim != 3 or len(x) != num_rows for x in weights.values()):
    raise records.malformed(path, f'arrays must be of the {num_rows} rows of'
                            ' rows.json')
  return weights


def _rows(path: Path) -> tuple[Row, ...]:
  try:
    return tuple(
        Row(
            str(row['task']),
            {k: tuple(map(str, v)) for k, v in row.items() if k != 'task'},
        )
        for row in records.read_object(path)['rows']
    )
  except (TypeError, KeyError) as e:
    raise records.malformed(
        path, '"rows" must have a "task" and pieces of text'
    ) from e


def _similarity(path: Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    return {}
  value = records.read_object(path)
  try:
    return {
        str(site['path']): _square(matrix)
        for site, matrix in zip(value['sites'], value['cosine'], strict=True)
    }
  except (TypeError, KeyError, ValueError) as e:
    raise records.malformed(
        path, '"cosine" must hold a square matrix for each of "sites"'
    ) from e


def _square(matrix: Any) -> np.ndarray:
  array = np.array(matrix, np.float64)
  if array.ndim != 2 or array.shape[0] != array.shape[1]:
    raise ValueError('not square')
  return array

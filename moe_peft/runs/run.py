# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""All files of one run directory (MODEL_DIR) in memory."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.runs import ablation_file
from moe_peft.runs import config_file
from moe_peft.runs import controls_file
from moe_peft.runs import json_file
from moe_peft.runs import metrics_files
from moe_peft.runs import results_file
from moe_peft.runs import run_file
from moe_peft.runs import similarity_file
from moe_peft.runs import snapshot_files
from moe_peft.runs import usage_file


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory in memory; None where a run lacks a file.

  Attributes:
    path: The directory.
    name: What the page calls it; unique among the runs of one report.
    info: What run.json holds, empty where the run has not finished.
    train: Curves by name of the scalar.
    evaluation: Curves by task and metric, in order of appearance.
    results: The final evaluation.
    usage: Which task uses which expert; None for methods without a router.
    router_log: What the routers did while training.
    snapshots: What the routers did with a few held-out rows.
    similarity: How alike the experts are.
    ablation: What single experts are worth.
    controls: What routing is worth.
    config: Text of config.gin, empty where there is none.
    notices: Sentences on what was missing or unreadable.
  """

  path: Path
  name: str
  info: run_file.RunInfo
  train: Mapping[str, metrics_files.Curve]
  evaluation: Mapping[tuple[str, str], metrics_files.Curve]
  results: results_file.Results | None
  usage: usage_file.Usage | None
  router_log: metrics_files.RouterCurves | None
  snapshots: snapshot_files.SnapshotFiles | None
  similarity: similarity_file.Similarity | None
  ablation: ablation_file.Ablation | None
  controls: controls_file.Controls | None
  config: str
  notices: tuple[str, ...]

  @property
  def scores(self) -> dict[tuple[str, str], results_file.Score]:
    """Scores by task and metric; empty before the final evaluation."""
    return self.results.scores() if self.results else {}


def read_all(paths: Sequence[Path]) -> list[Run]:
  """Reads runs and gives each a short unique name.

  Raises:
    errors.UserError: No run was given, or one cannot be read (see `read`).
  """
  if not paths:
    raise errors.UserError(
        'No run directory was given.', 'RUN', 'Name at least one.'
    )
  paths = [Path(p) for p in paths]
  return [
      dataclasses.replace(read(path), name=name)
      for path, name in zip(paths, unique_names(paths), strict=True)
  ]


def unique_names(paths: Sequence[Path]) -> list[str]:
  """The shortest common number of trailing folders that tells paths apart."""
  parts = [Path(os.path.abspath(p)).parts for p in paths]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(p[-depth:]) for p in parts]
    if len(set(names)) == len(set(parts)):
      break
  seen: dict[str, int] = {}
  for i, name in enumerate(names):
    seen[name] = seen.get(name, 0) + 1
    if seen[name] > 1:  # The same directory was given twice.
      names[i] = f'{name} ({seen[name]})'
  return names


def read(path: Path) -> Run:
  """Reads one run directory; an interrupted run as far as it went.

  Raises:
    errors.UserError: The directory is missing or is no run, or a file is
      damaged beyond what an interrupted writer leaves behind.
  """
  path = Path(path)
  _check_folder(path)
  notices: list[str] = []
  info = run_file.read(path)
  if info is None:
    notices.append(f'There is no {run_file.FILE}: the run has not finished.')
  train = _rows(path / metrics_files.TRAIN, notices)
  train = {
      name: curve for (_, name), curve in metrics_files.curves(train).items()
  }
  evaluation = _rows(path / metrics_files.EVALUATION, notices)
  results = results_file.read(path)
  if results is None:
    notices.append(
        f'There is no {results_file.FILE}: the run has not reached its final '
        'evaluation.'
    )
  notices += _not_finite(train)
  if info and info.pruned:
    notices = [
        'This run was pruned and not trained; '
        f'python -m moe_peft.evaluate {path} scores it.'
    ]
  routers = path / metrics_files.ROUTERS
  routers_rows = _rows(routers, notices) if routers.is_file() else []
  config = path / config_file.FILE
  return Run(
      path=path,
      name=path.name,
      info=info or run_file.RunInfo(),
      train=train,
      evaluation=metrics_files.curves(evaluation),
      results=results,
      usage=usage_file.read(path),
      router_log=(
          metrics_files.router_log(routers, routers_rows)
          if routers_rows else None
      ),
      snapshots=snapshot_files.read(path),
      similarity=similarity_file.read(path),
      ablation=ablation_file.read(path),
      controls=controls_file.read(path),
      config=json_file.read_text(config) if config.is_file() else '',
      notices=tuple(notices),
  )


def _check_folder(path: Path) -> None:
  if not path.is_dir():
    raise errors.UserError(
        'There is no such directory.', path, 'Give the MODEL_DIR of a run.'
    )
  # run.json comes last, so an interrupted run has its metrics only.
  if not any((path / name).exists() for name in (run_file.FILE, 'metrics')):
    raise errors.UserError(
        f'The directory holds neither {run_file.FILE} nor metrics/, so it is '
        'no run.', path, 'Give the MODEL_DIR of a run of moe_peft.train.',
    )


def _rows(path: Path, notices: list[str]) -> list[dict[str, Any]]:
  if not path.is_file():
    notices.append(f'There is no metrics/{path.name}.')
    return []
  rows, skipped = metrics_files.read_lines(path)
  if skipped:
    shown = ', '.join(map(str, skipped[:5]))
    more = f' and {len(skipped) - 5} more' if len(skipped) > 5 else ''
    notices.append(
        f'metrics/{path.name}: skipped unreadable line {shown}{more} (left by '
        'an interrupted write).'
    )
  return rows


def _not_finite(curves: Mapping[str, metrics_files.Curve]) -> list[str]:
  notices = []
  for name, curve in curves.items():
    bad = curve.steps[~np.isfinite(curve.values)]
    if len(bad):
      notices.append(
          f'{name} is not a finite number at {len(bad)} of '
          f'{len(curve.steps)} logged steps, first at step {bad[0]}.'
      )
  return notices

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and checks a run directory (MODEL_DIR) for the report."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.runs import expert_records
from moe_peft.runs import records
from moe_peft.runs import routing_records


@dataclasses.dataclass(frozen=True)
class Score:
  """One metric of one task before and after; NaN where not measured."""

  task: str
  metric: str
  base: float
  adapted: float
  primary: bool


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory in memory.

  Attributes:
    path: the directory.
    name: what the page calls it; unique among the runs of one report.
    info: run.json, empty where the run has not finished.
    train: scalar name -> curve.
    evaluation: (task, metric) -> curve, in order of appearance.
    scores: results.json, one entry for each task and metric.
    num_examples: task -> evaluated examples.
    split: the split of `scores`, empty where there are none.
    routing: None for methods without a router.
    experts: what is known of single experts, and of routers over time.
    constant_answer: task -> score of the best constant answer, in the primary
      metric.
    config: text of config.gin, empty where there is none.
    notices: plain sentences on what was missing or unreadable.
  """

  path: Path
  name: str
  info: Mapping[str, Any]
  train: Mapping[str, records.Curve]
  evaluation: Mapping[tuple[str, str], records.Curve]
  scores: tuple[Score, ...]
  num_examples: Mapping[str, int]
  split: str
  routing: routing_records.Routing | None
  experts: expert_records.Experts
  constant_answer: Mapping[str, float]
  config: str
  notices: tuple[str, ...]


def read_all(paths: Sequence[Path]) -> list[Run]:
  """Reads runs and gives each a short unique name.

  Raises:
    UserError: no run was given, or one cannot be read (see `read`).
  """
  if not paths:
    raise errors.UserError('No run directory was given: name at least one.')
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
    if seen[name] > 1:  # the same directory was given twice
      names[i] = f'{name} ({seen[name]})'
  return names


def read(path: Path) -> Run:
  """Reads one run directory; an interrupted run as far as it went.

  Raises:
    UserError: the directory is missing or is no run, or a file is corrupt
      beyond what an interrupted writer leaves behind.
  """
  path = Path(path)
  if not path.is_dir():
    raise errors.UserError(
        f'{path} is not a directory: give the MODEL_DIR of a run.'
    )
  # run.json comes last, so an interrupted run has its metrics only.
  if not any((path / name).exists() for name in ('run.json', 'metrics')):
    raise errors.UserError(
        f'{path} holds neither run.json nor metrics/, so it is not the'
        ' MODEL_DIR of a run of moe_peft.train.'
    )
  notices: list[str] = []
  info = {}
  if (path / 'run.json').is_file():
    info = records.read_object(path / 'run.json')
  else:
    notices.append('There is no run.json: the run has not finished.')
  train = records.read_lines(path / 'metrics' / 'train.jsonl', notices)
  evaluation = records.read_lines(path / 'metrics' / 'eval.jsonl', notices)
  results = path / 'results.json'
  scores, num_examples, split, constant = (), {}, '', {}
  if results.is_file():
    constant = _constant_answers(results)
    scores, num_examples, split = _scores(results)
  else:
    notices.append(
        'There is no results.json: the run has not reached its final'
        ' evaluation.'
    )
  routing = path / 'routing.json'
  config = path / 'config.gin'
  run = Run(
      path=path,
      name=path.name,
      info=info,
      train=records.train_curves(train),
      evaluation=records.evaluation_curves(evaluation),
      scores=scores,
      num_examples=num_examples,
      split=split,
      routing=routing_records.read(routing) if routing.is_file() else None,
      experts=expert_records.read(path, notices),
      constant_answer=constant,
      config=records.read_text(config) if config.is_file() else '',
      notices=(),
  )
  notices.extend(_not_finite(run.train))
  if 'pruned' in info:
    notices = [
        f'This run was pruned and not trained; python -m moe_peft.evaluate'
        f' {path} scores it.'
    ]
  return dataclasses.replace(run, notices=tuple(notices))


def _not_finite(curves: Mapping[str, records.Curve]) -> list[str]:
  notices = []
  for name, curve in curves.items():
    bad = curve.steps[~np.isfinite(curve.values)]
    if len(bad):
      notices.append(
          f'{name} is not a finite number at {len(bad)} of'
          f' {len(curve.steps)} logged steps, first at step {bad[0]}.'
      )
  return notices


def _scores(
    path: Path,
) -> tuple[tuple[Score, ...], dict[str, int], str]:
  value = records.read_object(path)
  tasks = value.get('tasks')
  primary = value.get('primary_metric', {})
  counts = value.get('num_examples', {})
  if not isinstance(tasks, dict):
    raise records.malformed(path, '"tasks" must map tasks to metrics')
  if not isinstance(primary, dict) or not isinstance(counts, dict):
    raise records.malformed(
        path, '"primary_metric" and "num_examples" must be objects'
    )
  scores = []
  for task, metrics in tasks.items():
    if not isinstance(metrics, dict) or not all(
        isinstance(m, dict) for m in metrics.values()
    ):
      raise records.malformed(path, f'task "{task}" must map metrics to values')
    first = primary.get(task, next(iter(metrics), None))
    for metric, pair in sorted(
        metrics.items(), key=lambda item: item[0] != first
    ):
      scores.append(
          Score(
              task,
              metric,
              records.number(pair.get('base')),
              records.number(pair.get('adapted')),
              metric == first,
          )
      )
  counts = {t: int(n) for t, n in counts.items() if records.is_finite(n)}
  return tuple(scores), counts, str(value.get('split', ''))


def _constant_answers(path: Path) -> dict[str, float]:
  """The score of the primary metric of each task, where there is one."""
  value = records.read_object(path)
  answers, primary = value.get('constant_answer'), value.get('primary_metric')
  if not isinstance(answers, dict) or not isinstance(primary, dict):
    return {}
  scores = {}
  for task, of_task in answers.items():
    score = isinstance(of_task, dict) and of_task.get(primary.get(task))
    if records.is_finite(score):
      scores[task] = float(score)
  return scores

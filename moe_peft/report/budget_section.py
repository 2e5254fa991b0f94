# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The section of the report that compares methods at their budgets."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
import statistics

from moe_peft.evaluation import spread
from moe_peft.report import markup
from moe_peft.report import results_section
from moe_peft.report import sections
from moe_peft.runs import config_file
from moe_peft.runs import run as run_lib

# In what the seeds of one group differ.
_OF_A_SEED = ('SEED', 'MODEL_DIR')
# What does not change what is trained, or has a column of its own.
_NOT_SETTINGS = re.compile(
    r'SEEDS?|TUNE|MODEL_DIR|BASE_RESULTS_DIR|PARAM_BUDGET|BUDGET_MACRO|'
    r'.*_PARTITIONS|EVAL_.*|.*_PERIOD'
)
_REFERENCES = ('lora', 'LoRA')
_SETTING_LENGTH = 24


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: the folder above the seeds, or the method.
    runs: the runs.
    macros: name -> text of gin's macros.
  """

  name: str
  runs: tuple[run_lib.Run, ...]
  macros: Mapping[str, str]

  def scores(self, task: str, metric: str) -> list[float]:
    """Adapted scores of the runs that have one."""
    values = [
        s.adapted for r in self.runs for s in r.scores
        if (s.task, s.metric) == (task, metric)
    ]
    return [v for v in values if math.isfinite(v)]

  def means(self, columns: Sequence[tuple[str, str]]) -> list[float]:
    """Mean over tasks of every run that has all of them."""
    found = []
    for run in self.runs:
      values = {(s.task, s.metric): s.adapted for s in run.scores}
      if all(math.isfinite(values.get(c, math.nan)) for c in columns):
        found.append(statistics.fmean(values[c] for c in columns))
    return found

  def cost(self, name: str) -> float:
    """Median over the runs of 'step' (seconds) or 'memory' (bytes)."""
    values = []
    for run in self.runs:
      if name == 'memory':
        values.append(run.info.get('peak_memory_bytes'))
      elif 'steps_per_second' in run.train:
        # Median over the logged periods, so that compilation does not count.
        rates = run.train['steps_per_second'].values
        values.append(1 / statistics.median(rates))
    values = [v for v in values if isinstance(v, (int, float)) and v > 0]
    return statistics.median(values) if values else math.nan


def group(runs: Sequence[run_lib.Run]) -> list[Group]:
  """Puts runs with the same configuration but the seed together.

  Runs without a configuration stay alone.
  """
  groups: dict[object, list[run_lib.Run]] = {}
  macros: dict[object, dict[str, str]] = {}
  for run in runs:
    bound = config_file.bindings(run.config, run.path / 'config.gin')
    key = tuple(x for x in sorted(bound.items()) if x[0] not in _OF_A_SEED)
    key = key or str(run.path)
    groups.setdefault(key, []).append(run)
    macros.setdefault(key, config_file.macros(bound))
  names = [_name(members) for members in groups.values()]
  return [
      Group(
          name if names.count(name) == 1 else f'{name} ({members[0].name})',
          tuple(members),
          macros[key],
      )
      for name, (key, members) in zip(names, groups.items(), strict=True)
  ]


def _name(runs: Sequence[run_lib.Run]) -> str:
  folders = {r.path.absolute().parent.name for r in runs}
  seeds = all(re.fullmatch(r'seed_?\d+', r.path.name) for r in runs)
  if seeds and len(folders) == 1:
    return folders.pop()
  return runs[0].name if len(runs) == 1 else sections.method(runs[0])


def budget(runs: Sequence[run_lib.Run]) -> str:
  """One line for each method: size, settings, scores and cost."""
  scored = [r for r in runs if r.scores]
  if len(scored) < 2:
    return (
        '<p class="muted">Give several finished runs, of several methods or'
        ' seeds, to compare them here.</p>'
    )
  groups = group(scored)
  reference = next(
      (g for g in groups
       if g.name in _REFERENCES or sections.method(g.runs[0]) in _REFERENCES),
      groups[0],
  )
  columns = list(dict.fromkeys(
      (s.task, s.metric) for r in scored for s in r.scores if s.primary
  ))
  means = _means(scored, columns)
  rows = [_constant(scored, columns, means), _base(scored, columns, means)]
  classes = ['minor', 'minor']
  for g in groups:
    cells = [_cell(g.means(c), reference.means(c), '', g is reference)
             for c in means.values()]
    cells += [_cell(g.scores(*c), reference.scores(*c), c[1], g is reference)
              for c in columns]
    rows.append([
        markup.escape(g.name), str(len(g.runs)),
        markup.count(g.runs[0].info.get('num_params_trainable')),
        markup.escape(g.macros.get('PARAM_BUDGET', '–').replace('None', '–')),
        _settings(g, groups), *cells,
        *(_ratio(g.cost(x), reference.cost(x)) for x in ('step', 'memory')),
    ])
    classes.append('')
  rows = [r for r in rows if r]
  classes = classes[len(classes) - len(rows):]
  head = ['Method', 'Seeds', 'Trainable', 'Budget', 'Settings that differ']
  head += list(means)
  head += [f'{markup.escape(t)}<br><small>{markup.escape(m)}</small>'
           for t, m in columns] + ['Step', 'Memory']
  return (
      '<p>Runs that differ in the seed only are one line: mean ± standard'
      f' deviation over seeds. ▲ or ▼ marks a mean that is better or worse than'
      f' that of <b>{markup.escape(reference.name)}</b> by more than the spread'
      ' (Welch’s t-test, 5 %); a smaller difference, or one seed, says'
      ' nothing, and of many comparisons some will be false. Step time and peak'
      ' memory are ratios to it, medians, on whatever machine the runs had.'
      ' Compare lines of equal trainable parameters.</p>'
      + markup.table(head, rows, classes, wrapped=(4,))
  )


def _means(
    runs: Sequence[run_lib.Run], columns: Sequence[tuple[str, str]]
) -> dict[str, list[tuple[str, str]]]:
  """The columns of each mean: tasks that were trained on, and the others."""
  held_out = {t for r in runs for t in r.info.get('held_out_tasks', ())}
  means = {
      'Mean over tasks': [c for c in columns if c[0] not in held_out],
      'Held-out mean': [c for c in columns if c[0] in held_out],
  }
  # The mean of one column is that column.
  return {k: c for k, c in means.items() if len(c) > 1}


def _constant(runs, columns, means) -> list[str] | None:
  """The line of who always gives the same answer."""
  known = {t: v for r in runs for t, v in r.constant_answer.items()}
  if not known:
    return None
  values = {c: known.get(c[0], math.nan) for c in columns}
  return ['best constant answer', '', '', '', '', *_line(values, means)]


def _base(runs, columns, means) -> list[str]:
  known = {(s.task, s.metric): s.base for r in runs for s in r.scores}
  values = {c: known[c] for c in columns}
  return ['base', '', markup.count(0), '', '', *_line(values, means)]


def _line(values, means) -> list[str]:
  """Means, values and empty costs; no mean where a value is missing."""
  shown = [statistics.fmean(values[c] for c in cs) for cs in means.values()]
  return [*map(markup.number, [*shown, *values.values()]), '', '']


def _cell(values, reference, metric: str, is_reference: bool) -> str:
  if not values:
    return markup.NOTHING
  mean = statistics.fmean(values)
  text = markup.number(mean)
  if len(values) > 1:
    text += f' <small>± {markup.number(statistics.stdev(values))}</small>'
  if not is_reference and spread.exceeds(values, reference):
    higher = mean > statistics.fmean(reference)
    better = higher != results_section.lower_is_better(metric)
    text += ' ▲' if better else ' ▼'
  return text


def _settings(this: Group, groups: Sequence[Group]) -> str:
  """Macros whose values differ between the methods that have them."""
  shown = []
  for name, value in this.macros.items():
    others = {g.macros[name] for g in groups if name in g.macros}
    if _NOT_SETTINGS.fullmatch(name) or len(others) < 2:
      continue
    if len(value) <= _SETTING_LENGTH:  # Paths of sites say little here.
      shown.append(f'{markup.escape(name)}&#160;{markup.escape(value)}')
  return '<br>'.join(shown) or markup.NOTHING


def _ratio(value: float, reference: float) -> str:
  return markup.number(value / reference) if reference else markup.NOTHING

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The section of the report about routers and experts."""

from collections.abc import Sequence

import numpy as np

from moe_peft.report import heatmaps
from moe_peft.report import markup
from moe_peft.routers import statistics
from moe_peft.runs import routing_records
from moe_peft.runs import run as run_lib

_OPEN_RUNS = 3
_LISTED_SITES = 8
_NARROW_LAYERS = 6
_LEAST_NATS = 0.01


def routing(runs: Sequence[run_lib.Run]) -> str:
  """Who uses which expert, where; one block for each routed run."""
  routed = [r for r in runs if r.routing is not None]
  if not routed:
    return (
        '<p class="muted">No router to look at: the method has one expert at'
        ' each site, or the run has not reached its final evaluation.</p>'
    )
  parts = [_summary_table(routed)] if len(routed) > 1 else []
  without = [r.name for r in runs if r.routing is None]
  if without:
    parts.append(
        '<p class="muted">Without a router: '
        f'{markup.escape(", ".join(without))}.</p>'
    )
  parts += [block(routed, i, _run(run)) for i, run in enumerate(routed)]
  return '\n'.join(parts)


def block(runs: Sequence[run_lib.Run], index: int, content: str) -> str:
  """HTML about one run: folded under its name where there are several."""
  if len(runs) < 2 or not content:
    return content
  state = ' open' if index < _OPEN_RUNS else ''
  return (
      f'<details class="keep"{state}><summary>'
      f'{markup.escape(runs[index].name)}</summary>{content}</details>'
  )


def _means(run: run_lib.Run) -> tuple[float, float, int, int]:
  """Mean entropy, mean mutual information, dead and all experts."""
  sites = run.routing.sites
  entropy = np.array([s.entropy for s in sites])
  information = heatmaps.mutual_information(sites)
  dead = sum(len(statistics.dead_experts(s.load)) for s in sites)
  return (
      _mean(entropy), _mean(information), dead,
      sum(s.num_experts for s in sites),
  )


def _mean(values: np.ndarray) -> float:
  values = values[np.isfinite(values)]
  return float(values.mean()) if values.size else float('nan')


def _summary_table(runs) -> str:
  rows = []
  for run in runs:
    entropy, information, dead, total = _means(run)
    rows.append([
        markup.escape(run.name),
        markup.count(len(run.routing.sites)),
        markup.number(entropy),
        markup.number(information),
        f'{dead} of {markup.count(total)}',
    ])
  return (
      '<p>Means over sites and tasks. Entropy near 1 means that tokens use'
      ' all experts alike; mutual information near 0 means that tasks do not'
      ' differ in the experts they use.</p>'
      + markup.table(
          ['Run', 'Sites', 'Router entropy (0 to 1)',
           'Task–expert information (nats)', 'Dead experts'],
          rows,
      )
  )


def sentence(run: run_lib.Run) -> str:
  """HTML: what the numbers say, in words."""
  sites = run.routing.sites
  entropy, _, dead, total = _means(run)
  information = heatmaps.mutual_information(sites)
  chance = np.array([s.chance for s in sites])
  parts = []
  if np.isfinite(entropy):
    word = (
        'almost uniform' if entropy > 0.95
        else 'soft' if entropy > 0.7
        else 'selective' if entropy > 0.3
        else 'almost one expert for each token'
    )
    parts.append(
        f'Routing is {word}: the mean normalized entropy is {entropy:.2f}.'
    )
  if np.isfinite(information).any():
    best = int(np.nanargmax(information))
    limit = statistics.mutual_information_limit(
        len(run.routing.tasks), sites[best].num_experts
    )
    where = f'<code>{markup.escape(sites[best].path)}</code>'
    most = f'{information[best]:.2f} of at most {limit:.2f} nats'
    parts.append(
        f'Tasks differ most in their experts at {where}: {most}.'
        if information[best] >= _LEAST_NATS
        else 'Tasks hardly differ in the experts they use.'
    )
    known = np.isfinite(chance)
    if known.any():
      above = int((information > chance)[known].sum())
      parts.append(
          f'{above} of {int(known.sum())} sites show more than random tasks'
          ' would.'
      )
  parts.append(
      f'{dead} of {total} experts are dead.' if dead else 'No expert is dead.'
  )
  return ' '.join(parts)


def _stacks(sites) -> list[str]:
  return list(dict.fromkeys(s.stack for s in sites))


def _run(run: run_lib.Run) -> str:
  sites, tasks = run.routing.sites, run.routing.tasks
  limits = heatmaps.load_range(sites)
  parts = [f'<p class="lead">{sentence(run)}</p>']
  for stack in _stacks(sites):
    chosen = [s for s in sites if s.stack == stack]
    svg = heatmaps.expert_load(
        tasks, chosen, limits,
        f'Mean combine weight of each expert for each task, {stack}',
    )
    parts.append(
        f'<h3>Which task uses which expert: {markup.escape(stack)}</h3>'
    )
    if stack == sites[0].stack:
      parts.append(
          '<p>One panel for each layer; rows are tasks, columns are experts'
          ' (numbered from 0). The color is the weight an expert gets,'
          ' averaged over all tokens of the task, padding excluded. Rows that'
          ' look alike: the tasks share the experts. A row of one color: all'
          ' experts are used equally. All panels of a run share one color'
          f' scale, from {limits[0]:.3g} to {limits[1]:.3g}'
          f'{" (not from zero)" if limits[0] else ""}; the red mark is the'
          ' uniform value. Wide maps scroll sideways.</p>'
      )
    parts.append(f'<div class="scroll">{svg}</div>')
  parts += [_information(run), _entropy(run), _dead(run), _left_behind(run)]
  return '\n'.join(parts)


def _information(run: run_lib.Run) -> str:
  sites, tasks = run.routing.sites, run.routing.tasks
  information = heatmaps.mutual_information(sites)
  if not np.isfinite(information).any():
    return (
        '<p class="muted">Mutual information between task and expert needs at'
        ' least two tasks.</p>'
    )
  limits = (0.0, max(float(np.nanmax(information)), 0.05))
  limit = statistics.mutual_information_limit(
      len(tasks), max(s.num_experts for s in sites)
  )
  order = np.argsort(-np.nan_to_num(information, nan=-1))[:_LISTED_SITES]
  rows = [
      [
          f'<code>{markup.escape(sites[i].path)}</code>',
          f'{information[i]:.3f}',
          markup.number(sites[i].chance),
          _range(statistics.normalized_entropy(sites[i].load)),
          _range(sites[i].entropy),
      ]
      for i in order
      if np.isfinite(information[i])
  ]
  return (
      '<h3>How much the expert tells about the task</h3>'
      '<p>Mutual information between task and expert at each site, in nats,'
      ' all tasks weighted equally: 0 if knowing which expert a token uses'
      f' says nothing about its task, {limit:.2f} if it says all it can.</p>'
      + site_maps(sites, information, limits, 'mutual information, nats')
      + markup.table(
          ['Sites with the most', 'Nats', 'By chance',
           'Entropy of the mean load, over tasks',
           'Mean entropy of a token, over tasks'],
          rows,
      )
      + '<p>By chance: finitely many examples show some information even where'
      ' there is none, so the examples were given to random tasks, 20 times;'
      ' this is the 95th percentile of what was left. Only what is well above'
      ' it counts. Both entropies are divided by log(number of experts). A high'
      ' first and a low second one: each token is decided, and different tokens'
      ' choose different experts.</p>'
  )


def _range(values: np.ndarray) -> str:
  values = values[np.isfinite(values)]
  if not values.size:
    return markup.NOTHING
  low, high = f'{values.min():.2f}', f'{values.max():.2f}'
  return low if low == high else f'{low} to {high}'


def _entropy(run: run_lib.Run) -> str:
  sites, tasks = run.routing.sites, run.routing.tasks
  values = np.array([s.entropy for s in sites])
  finite = values[np.isfinite(values)]
  if not finite.size:
    return ''
  low = float(min(finite.min(), 0.9))
  panels = []
  for stack in _stacks(sites):
    chosen = [s for s in sites if s.stack == stack]
    for t, task in enumerate(tasks):
      svg = heatmaps.site_values(
          chosen, np.array([s.entropy[t] for s in chosen]), (low, 1.0),
          f'Normalised router entropy of {task}, {stack}',
      )
      panels.append(markup.panel(task, stack, svg))
  return (
      '<h3>How sure the routers are</h3>'
      '<p>Mean entropy of the router for one token, divided by log(number of'
      ' experts): 1 is undecided, 0 is a single expert. Colors run from'
      f' {low:.2f} to 1.</p>'
      '<details class="keep"><summary>Entropy of each site and task</summary>'
      + _panels(sites, (low, 1.0), 'router entropy, normalized', panels)
      + '</details>'
  )


def site_maps(
    sites: Sequence[routing_records.Site],
    values: np.ndarray,
    limits: tuple[float, float],
    quantity: str,
) -> str:
  """A map for each stack of one value for each site, <float64>[sites]."""
  panels = []
  for stack in _stacks(sites):
    chosen = [i for i, s in enumerate(sites) if s.stack == stack]
    svg = heatmaps.site_values(
        [sites[i] for i in chosen], values[chosen], limits,
        f'{quantity}, {stack}',
    )
    panels.append(markup.panel(stack, '', svg))
  return _panels(sites, limits, quantity, panels)


def _panels(sites, limits, quantity: str, panels: list[str]) -> str:
  """Panels side by side under their common color scale."""
  many = len({s.layer for s in sites}) > _NARROW_LAYERS
  return (
      f'{heatmaps.color_bar(limits, quantity)}'
      f'<div class="{"pairs" if many else "grid"}">{"".join(panels)}</div>'
  )


def _dead(run: run_lib.Run) -> str:
  rows = []
  for site in run.routing.sites:
    dead = statistics.dead_experts(site.load)
    if dead:
      rows.append([
          f'<code>{markup.escape(site.path)}</code>',
          f'{len(dead)} of {site.num_experts}',
          ', '.join(map(str, dead)),
      ])
  share = f'{100 * statistics.DEAD_SHARE:g} %'
  rule = (
      '<p>An expert is called dead when every task gives it less than'
      f' {share} of the uniform weight.'
  )
  if not rows:
    return f'<h3>Dead experts</h3>{rule} There are none.</p>'
  return f'<h3>Dead experts</h3>{rule}</p>' + markup.table(
      ['Site', 'Dead', 'Which'], rows, wrapped=(2,)
  )


def _left_behind(run: run_lib.Run) -> str:
  """Tokens without an expert: while training, and at evaluation."""
  sites = run.routing.sites
  log = run.experts.left_behind
  measured = {
      'in the last logged period of training': np.array([
          log[s.path][-1] if s.path in log else np.nan for s in sites
      ]),
      'at evaluation': np.array([
          s.left_behind.mean() if s.left_behind.size else np.nan for s in sites
      ]),
  }
  parts = [
      '<h3>Tokens left behind</h3><p>Share of tokens that no expert took, for'
      ' lack of capacity or because all experts were dropped; the frozen layer'
      ' alone serves them.</p>'
  ]
  for when, values in measured.items():
    if not np.isfinite(values).any():
      continue
    most = float(np.nanmax(values))
    if not most:
      parts.append(f'<p>None {when}.</p>')
      continue
    parts.append(
        site_maps(sites, values, (0.0, most), f'tokens left behind {when}')
    )
  return ''.join(parts)

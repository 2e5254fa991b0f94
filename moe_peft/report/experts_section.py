# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sections of the report about routers over time and single experts."""

from collections.abc import Sequence

import numpy as np

from moe_peft.report import heatmaps
from moe_peft.report import markup
from moe_peft.report import plots
from moe_peft.report import routing_section
from moe_peft.routers import statistics
from moe_peft.runs import ablation_records
from moe_peft.runs import records
from moe_peft.runs import run as run_lib

_LISTED = 8
_MATRICES = 6


def over_time(runs: Sequence[run_lib.Run]) -> str:
  """Load, drift and dropped tokens of the routers while training."""
  panels = []
  for heading, note, curves in (
      (
          'Entropy of the load, mean over sites',
          'Of the mean weights of a logging period. 1: all experts get alike.',
          [_log_curve(r, np.mean) for r in runs],
      ),
      (
          'Entropy of the load, lowest site',
          'Near 0 the router has collapsed.',
          [_log_curve(r, np.min) for r in runs],
      ),
      (
          'Tokens left behind, mean over sites',
          'Share of the tokens of training that no expert took.',
          [_mean_curve(r.experts.log_steps, r.experts.left_behind)
           for r in runs],
      ),
      (
          'Drift from the first snapshot',
          '0: every token keeps its experts. 1: all have moved.',
          [_mean_curve(r.experts.steps, r.experts.moved) for r in runs],
      ),
      (
          'Drift since the snapshot before',
          'Falls where routers settle.',
          [_mean_curve(r.experts.steps[1:],
                       {s: x[1:] for s, x in r.experts.stepped.items()})
           for r in runs],
      ),
  ):
    lines = {i: c for i, c in enumerate(curves) if c is not None}
    if lines:
      svg = plots.curves(lines, f'{heading} over steps', (0.0, 0.05))
      panels.append(markup.panel(heading, note, svg))
  if not panels:
    return (
        '<p class="muted">No router was logged: the method has one expert at'
        ' each site, or the run is older than the log of routers.</p>'
    )
  blocks = ''.join(
      routing_section.block(runs, i, _drift_map(run))
      for i, run in enumerate(runs) if run.experts.moved
  )
  return (
      '<p>What the routers did with the training batches of each logging'
      ' period, and with a few held-out rows that stay the same (snapshots at'
      ' step 0, at evaluations and at the end). Drift is the total variation'
      ' distance between two distributions of a token over the experts, half'
      ' the sum of absolute differences, averaged over tokens and sites.</p>'
      + markup.legend([r.name for r in runs])
      + f'<div class="grid">{"".join(panels)}</div>'
      + blocks
  )


def _log_curve(run, reduce) -> records.Curve | None:
  loads = run.experts.load
  if not loads:
    return None
  entropies = np.array([statistics.normalized_entropy(x)
                        for x in loads.values()])
  return records.Curve(run.experts.log_steps, reduce(entropies, axis=0))


def _mean_curve(steps, by_site) -> records.Curve | None:
  if not by_site or not len(steps):
    return None
  return records.Curve(steps, np.mean(list(by_site.values()), axis=0))


def _drift_map(run: run_lib.Run) -> str:
  steps = run.experts.steps
  if run.routing is None or len(steps) < 2:
    return ''
  sites = run.routing.sites
  values = np.array([
      run.experts.moved.get(s.path, np.array([np.nan]))[-1] for s in sites
  ])
  if not np.isfinite(values).any():
    return ''
  return (
      f'<h3>Drift from step {steps[0]} to step {steps[-1]}, site by site</h3>'
      + routing_section.site_maps(
          sites, values, (0.0, max(float(np.nanmax(values)), 0.05)),
          'drift, total variation distance',
      )
  )


def experts(runs: Sequence[run_lib.Run]) -> str:
  """What single experts are worth, and how alike they are."""
  parts = []
  for i, run in enumerate(runs):
    text = _pruned(run) + _ablation(run) + _similarity(run)
    if text:
      parts.append(routing_section.block(runs, i, text))
  if not parts:
    return '<p class="muted">No site with several experts was measured.</p>'
  return ''.join(parts)


def _pruned(run: run_lib.Run) -> str:
  """What a pruned run lost, from its run.json."""
  pruned = run.info.get('pruned')
  before, after = (
      pruned.get(name) if isinstance(pruned, dict) else None
      for name in ('loss_before', 'loss_after')
  )
  if not isinstance(before, dict) or not isinstance(after, dict):
    return ''
  rows = []
  for task, value in before.items():
    old, new = records.number(value), records.number(after.get(task))
    rows.append([markup.escape(task), markup.number(old), markup.number(new),
                 _change(new - old)])
  return (
      '<h3>Pruned</h3><p>Loss of held-out rows, nats per target token, with all'
      f' experts of {markup.escape(pruned.get("from"))} and with those that'
      ' were kept.</p>'
      + markup.table(['Task', 'All experts', 'Kept', 'Difference'], rows)
  )


def _ablation(run: run_lib.Run) -> str:
  ablation = run.experts.ablation
  if ablation is None:
    if run.routing is None:
      return ''
    return (
        '<h3>Leave one expert out</h3><p class="muted">Not measured;'
        f' <code>python -m moe_peft ablate {markup.escape(run.path)}</code>'
        ' does.</p>'
    )
  scores = ablation.scores()
  most = max(float(np.abs(x).max()) for x in scores.values()) or 1e-6
  groups: dict[tuple[str, str], list[str]] = {}
  for site in scores:
    stack, layer, name = site.split('/', maxsplit=2)
    groups.setdefault((stack, name), []).append(site)
  panels = []
  for (stack, name), sites in groups.items():
    width = max(len(scores[s]) for s in sites)
    values = np.full((len(sites), width), np.nan)
    for row, site in enumerate(sites):
      values[row, : len(scores[site])] = scores[site]
    layers = [s.split('/')[1].replace('layers_', 'layer ') for s in sites]
    svg = heatmaps.matrix(
        layers, values, (-most, most),
        f'Rise of the loss without each expert, {stack} {name}', 'RdBu_r',
    )
    panels.append(markup.panel(name, stack, svg))
  return (
      '<h3>Leave one expert out</h3>'
      '<p>How much the loss of held-out rows rises, in nats per target token'
      ' and averaged over tasks, when one expert of one site is taken away and'
      ' the others take over. Red: the expert is needed. Blue: the run would be'
      ' better without it.</p>'
      + heatmaps.color_bar((-most, most), 'rise of the loss, nats', 'RdBu_r')
      + f'<div class="grid">{"".join(panels)}</div>'
      + _needed(ablation, scores)
  )


def _needed(ablation: ablation_records.Ablation, scores) -> str:
  """The experts that are needed most, task by task."""
  order = sorted(
      ((x, site, e) for site, xs in scores.items() for e, x in enumerate(xs)),
      reverse=True,
  )[:_LISTED]
  rows = [
      [
          f'<code>{markup.escape(site)}</code>',
          str(expert),
          _change(mean),
          *(
              _change(x)
              for x in ablation.without[site][expert] - ablation.loss
          ),
      ]
      for mean, site, expert in order
  ]
  rows.append([
      'Loss with all experts', '',
      markup.number(float(ablation.loss.mean())),
      *(markup.number(x) for x in ablation.loss),
  ])
  head = ['Experts that are needed most', 'Expert', 'Mean']
  return markup.table(
      head + [markup.escape(t) for t in ablation.tasks], rows,
      [''] * len(order) + ['total'],
  )


def _change(value: float) -> str:
  return f'{value:+.3f}'.replace('-', '−')


def _similarity(run: run_lib.Run) -> str:
  matrices = run.experts.similarity
  if not matrices or run.routing is None:
    return ''
  mean = {site: _off_diagonal(x) for site, x in matrices.items()}
  values = np.array([mean.get(s.path, np.nan) for s in run.routing.sites])
  if not np.isfinite(values).any():
    return ''
  finite = [s for s in mean if np.isfinite(mean[s])]
  chosen = sorted(finite, key=lambda s: -mean[s])[:_MATRICES]
  panels = [
      markup.panel(
          site, f'mean {mean[site]:.2f}',
          heatmaps.matrix(
              [str(i) for i in range(len(matrices[site]))], matrices[site],
              (-1.0, 1.0), f'Cosines between the experts of {site}', 'RdBu_r',
          ),
      )
      for site in chosen
  ]
  low, high = float(np.nanmin(values)), float(np.nanmax(values))
  limits = (min(low, 0.0), max(high, 0.05))
  return (
      '<h3>How alike the experts are</h3>'
      '<p>Cosine between what two experts add to a layer (of LoRA experts, of'
      ' their products; of vectors, of their distance from 1): 1, they add the'
      ' same; 0, they have nothing in common. The maps show the mean over all'
      ' pairs of a site; below are the sites whose experts are most alike.</p>'
      + routing_section.site_maps(
          run.routing.sites, values, limits, 'mean cosine'
      )
      + heatmaps.color_bar((-1.0, 1.0), 'cosine of two experts', 'RdBu_r')
      + f'<div class="grid">{"".join(panels)}</div>'
  )


def _off_diagonal(matrix: np.ndarray) -> float:
  values = matrix[~np.eye(len(matrix), dtype=bool)]
  values = values[np.isfinite(values)]
  return float(values.mean()) if values.size else float('nan')

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sections of the report about the run and its curves."""

from collections.abc import Sequence
import os
from pathlib import PurePath
import re

from moe_peft.report import markup
from moe_peft.report import plots
from moe_peft.runs import run as run_lib

# Scalar -> (title, what one sees). In the order of the page.
_MAIN_CURVES = {
    'loss': ('Training loss', 'Lower is better.'),
    'accuracy': (
        'Token accuracy while training',
        'Share of target tokens predicted right, given the ones before.',
    ),
    'learning_rate': ('Learning rate', 'The schedule as it was applied.'),
    'tokens_per_second': (
        'Tokens per second',
        'Dips are compilation, evaluation or a busy machine.',
    ),
    'router_entropy': (
        'Router entropy',
        '1: every token uses all experts alike. 0: each token picks one.',
    ),
    'auxiliary_loss': (
        'Load-balancing loss',
        'Smallest when all experts get the same share of the tokens.',
    ),
    'router_z_loss': (
        'Router z loss',
        'Grows with the size of the router logits.',
    ),
    'contrastive_loss': ('Contrastive loss', 'Pulls experts apart.'),
    'consistency_loss': (
        'Consistency loss',
        'Distance between two passes over the same tokens.',
    ),
    'fraction_tokens_left_behind': (
        'Tokens left behind',
        'Share of tokens that no expert had room for.',
    ),
    'expert_usage': (
        'Expert usage',
        'Share of the capacity of the experts that is used.',
    ),
    'router_confidence': (
        'Router confidence',
        'Weight of the chosen experts, averaged over tokens.',
    ),
}

# What the vertical axis must at least span.
_AXES = {
    'accuracy': (0.0, 1.0),
    'router_entropy': (0.0, 1.0),
    'router_confidence': (0.0, 1.0),
    'expert_usage': (0.0, 1.0),
    'fraction_tokens_left_behind': (0.0, 0.1),
    'learning_rate': (0.0, 0.0),
    'tokens_per_second': (0.0, 0.0),
}


def title(runs: Sequence[run_lib.Run]) -> str:
  """Plain text: the heading of the page."""
  if len(runs) > 1:
    return f'{len(runs)} runs compared'
  base = _base(runs[0].info.get('base'))
  return method(runs[0]) + (f' on {base}' if base else '')


def method(run: run_lib.Run) -> str:
  """Plain text: the gin files of the method, without folder and ending.

  A run that does not name its method is called after the modules of
  `moe_peft.methods` that its configuration imports, or after its directory.
  """
  value = run.info.get('method')
  names = value if isinstance(value, list) else [value] if value else []
  short = [os.path.basename(str(n)).removesuffix('.gin') for n in names]
  return ' + '.join(short or _imported_methods(run.config)) or run.name


def _imported_methods(config: str) -> list[str]:
  pattern = r'^(?:from moe_peft\.methods import|import moe_peft\.methods\.)'
  return sorted(set(re.findall(pattern + r'\s*(\w+)', config, re.MULTILINE)))


def _base(value: object) -> object:
  """What the base is called: its file or folder, or None.

  run.json holds a path, or the identity of a base with its `path`.
  """
  if isinstance(value, dict):
    value = value.get('path') or 'a random base'
  if not isinstance(value, str):
    return value
  path = PurePath(value)
  name = path.name.removesuffix('.safetensors')
  generic = name != path.name and name in ('base', 'model', 'params')
  return (path.parent.name if generic else name) or value


def _plain(value: object) -> str:
  """HTML of a value, a dash where there is none."""
  return markup.NOTHING if value in (None, '') else markup.escape(value)


def _trainable(run: run_lib.Run) -> tuple[str, str]:
  """HTML: trainable parameters and their share of all."""
  trainable = run.info.get('num_params_trainable')
  total = run.info.get('num_params_total')
  share = ''
  if isinstance(trainable, int) and isinstance(total, int) and total > 0:
    share = f'{100 * trainable / total:.3g} % of {markup.count(total)}'
  return markup.count(trainable), share


def header(runs: Sequence[run_lib.Run]) -> str:
  """What was run, from run.json."""
  if len(runs) == 1:
    info = runs[0].info
    trainable, share = _trainable(runs[0])
    return markup.facts({
        'Method': markup.escape(method(runs[0])),
        'Base': _plain(_base(info.get('base'))),
        'Trained on': _plain(info.get('mixture_or_task_name')),
        'Trainable parameters': trainable
        + (f'<small>{share}</small>' if share else ''),
        'Steps': markup.count(info.get('steps')),
        'Batch': markup.count(info.get('batch_size')),
        'Seed': _plain(info.get('seed')),
        'Device': _plain(info.get('device')),
        'Time': markup.duration(info.get('seconds')),
    }) + _versions(info.get('versions'))
  rows = []
  for run in runs:
    info = run.info
    trainable, share = _trainable(run)
    rows.append([
        markup.escape(run.name),
        markup.escape(method(run)),
        _plain(_base(info.get('base'))),
        trainable,
        share.split(' of ')[0] or markup.NOTHING,
        markup.count(info.get('steps')),
        markup.count(info.get('batch_size')),
        _plain(info.get('seed')),
        _plain(info.get('device')),
        markup.duration(info.get('seconds')),
    ])
  return markup.table(
      ['Run', 'Method', 'Base', 'Trainable', 'Share', 'Steps', 'Batch',
       'Seed', 'Device', 'Time'],
      rows,
  )


def _versions(versions: object) -> str:
  if not isinstance(versions, dict) or not versions:
    return ''
  text = ', '.join(f'{k} {v}' for k, v in versions.items())
  return f'<p class="muted">With {markup.escape(text)}.</p>'


def notices(runs: Sequence[run_lib.Run]) -> str:
  """What was missing or unreadable."""
  items = [
      f'<li>{markup.escape(run.name)}: {markup.escape(text)}</li>'
      for run in runs
      for text in run.notices
  ]
  if not items:
    return ''
  return (
      '<div class="notice" role="note"><b>Before you read on</b>'
      f'<ul>{"".join(items)}</ul></div>'
  )


def training(runs: Sequence[run_lib.Run]) -> str:
  """Scalars over steps."""
  names = list(dict.fromkeys(n for r in runs for n in r.train))
  if not names:
    return '<p class="muted">No training metrics were written.</p>'
  main = [n for n in _MAIN_CURVES if n in names]
  further = sorted(set(names) - set(main))
  parts = [
      '<p>Each panel is one quantity over training steps.'
      f' {"Colors are runs. " if len(runs) > 1 else ""}Where a run logged'
      ' many points, each drawn point is the mean of equally many'
      ' neighbors; a gap is a value that was not finite.</p>',
      markup.legend([r.name for r in runs]),
      _grid(_train_panel(runs, n, *_MAIN_CURVES[n]) for n in main),
  ]
  if further:
    parts.append(
        f'<details class="keep"><summary>{len(further)} further'
        f' curve{"s" if len(further) > 1 else ""}</summary>'
        + _grid(_train_panel(runs, n, n, '') for n in further)
        + '</details>'
    )
  return '\n'.join(parts)


def _grid(panels) -> str:
  return f'<div class="grid">{"".join(panels)}</div>'


def _train_panel(runs, name: str, heading: str, note: str) -> str:
  lines = {i: r.train[name] for i, r in enumerate(runs) if name in r.train}
  svg = plots.curves(lines, f'{heading} over steps', _AXES.get(name))
  return markup.panel(heading, note, svg)


def evaluation(runs: Sequence[run_lib.Run]) -> str:
  """Metrics of each task over steps, the primary ones first."""
  keys = list(dict.fromkeys(k for r in runs for k in r.evaluation))
  if not keys:
    return '<p class="muted">The run was not evaluated while training.</p>'
  primary = {(s.task, s.metric) for r in runs for s in r.scores if s.primary}
  known = {task for task, _ in primary}
  first = {}
  for task, metric in keys:
    if task not in known:
      first.setdefault(task, (task, metric))
  shown = [k for k in keys if k in primary or k in first.values()]
  rest = [k for k in keys if k not in shown]
  parts = [
      '<p>Held-out examples of each task, scored during training. A curve'
      ' that still climbs at the right edge would gain from more steps; one'
      ' that turns down has begun to overfit.</p>',
      markup.legend([r.name for r in runs]),
      _grid(_evaluation_panel(runs, k) for k in shown),
  ]
  if rest:
    parts.append(
        f'<details class="keep"><summary>{len(rest)} further'
        f' metric{"s" if len(rest) > 1 else ""}</summary>'
        + _grid(_evaluation_panel(runs, k) for k in rest)
        + '</details>'
    )
  return '\n'.join(parts)


def _evaluation_panel(runs, key: tuple[str, str]) -> str:
  lines = {
      i: r.evaluation[key] for i, r in enumerate(runs) if key in r.evaluation
  }
  task, metric = key
  svg = plots.curves(lines, f'{metric} of {task} over steps', (0.0, 0.0))
  return markup.panel(task, metric, svg)

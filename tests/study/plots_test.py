# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the picture of a study."""

import re

from moe_peft.study import plots


def row(name, seed, t, u):
  return {'name': name, 'seed': seed, 'held_out': ['u'],
          'base': {'t': 1.0, 'u': 5.0}, 'adapted': {'t': t, 'u': u}}


def test_every_mean_and_task_has_a_panel_and_the_best_is_on_top(tmp_path):
  rows = [row('good', 0, 9.0, 1.0), row('good', 1, 8.0, 2.0),
          row('bad', 0, 3.0, 99.0)]
  path = tmp_path / 'plot.svg'
  import matplotlib

  with matplotlib.rc_context({'svg.fonttype': 'none'}):
    plots.save(rows, path, 'bad')
  texts = re.findall('<text[^>]*>([^<]*)</text>', path.read_text())
  titles = [text for text in texts if '(base' in text]
  assert titles == ['mean (base 1.0)', 'held-out mean (base 5.0)',
                    't (base 1.0)', 'u (base 5.0)']
  # Drawn upwards: the best mean of the trained tasks comes last.
  assert [t for t in texts if t in ('good', 'bad')][:2] == ['bad', 'good']


def test_held_out_tasks_alone_are_drawn(tmp_path):
  rows = [{**row(name, 0, 9.0, 1.0), 'held_out': ['t', 'u']} for name in 'ab']
  plots.save(rows, tmp_path / 'plot.svg', 'a')
  assert (tmp_path / 'plot.svg').stat().st_size

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods compared at their budgets."""

import dataclasses
import re

import gin
import pytest

from moe_peft.report import methods
from moe_peft.report import page
from moe_peft.runs import results_file
from moe_peft.runs import run as run_lib


def _runs(make_run, scores, method, metric='exact_match', lower=('loss',)):
  """A run for each score, of one method and several seeds."""
  runs = []
  for i, score in enumerate(scores):
    run = run_lib.read(
        make_run(f'{method}/seed{i}', seed=i, method=method, routed=False)
    )
    results = results_file.Results(
        'validation', {'qa': 8}, base={'qa': {metric: 50.0}},
        adapted={'qa': {metric: score}}, primary_metric={'qa': metric},
        lower_is_better=lower,
    )
    config = f'METHOD = {method!r}\nSEED = {i}\nALPHA = 4\n'
    runs.append(dataclasses.replace(run, results=results, config=config))
  return runs


def _lines(runs):
  """The lines of the table by method."""
  text = page.page(runs)
  section = re.search('<section id="methods">.*?</section>', text, re.DOTALL)[0]
  return {
      re.search('<th scope="row">(.*?)<', line)[1]: line
      for line in re.findall(r'<tr.*?</tr>', section, re.DOTALL)[1:]
  }


def test_runs_of_one_method_are_one_line(make_run):
  runs = (
      _runs(make_run, [60, 62], 'lora') + _runs(make_run, [70, 71, 69], 'mov')
      + _runs(make_run, [63, 60], 'smear')
  )
  groups = methods.group(runs)
  assert [(g.name, len(g.runs)) for g in groups] == [
      ('lora', 2), ('mov', 3), ('smear', 2)
  ]
  lines = _lines(runs)
  assert '61.00' in lines['lora'] and '± 1.41' in lines['lora']
  # Nine points are significant, half a point is not.
  assert '▲' in lines['mov'] and '▼' not in lines['mov']
  assert not {'▲', '▼'} & set(lines['smear'] + lines['lora'])
  # What differs is shown, what is the same is not.
  assert 'METHOD' in lines['mov'] and 'ALPHA' not in lines['mov']
  assert '50.00' in lines['base']


@pytest.mark.slow
@pytest.mark.parametrize('metric, lower, mark', [
    ('ter', ('loss', 'ter'), '▼'), ('loss', ('loss',), '▼'),
    ('answer', ('loss',), '▲'),  # Its name contains 'wer'.
])
def test_results_say_which_way_is_better(make_run, metric, lower, mark):
  runs = (
      _runs(make_run, [60, 62], 'lora', metric, lower)
      + _runs(make_run, [70, 71], 'mov', metric, lower)
  )
  assert mark in _lines(runs)['mov']
  charts = re.findall('Lower is better', page.page(runs))
  # The panel of the training loss says so too.
  assert len(charts) == 1 + (mark == '▼')


def _config(model_dir, seed, rank=4):
  """A run's config.gin, as gin writes it."""
  lines = [f'MODEL_DIR = {model_dir!r}', f'SEED = {seed}', f'RANK = {rank}',
           "SITES = '.*/(query|key|value|out|wi_0|wi_1|wo)/of/many/more/names'",
           f'LENGTHS = {dict.fromkeys(["of_inputs", "of_targets"], 10**30)}']
  gin.clear_config()
  gin.parse_config(lines)
  return gin.config_str()


def test_lines_that_gin_wraps_do_not_part_seeds(make_run):
  long = '/runs/' + 'x' * 100
  texts = [_config('/runs/a', 0), _config(f'{long}/b', 1), _config(long, 2, 8)]
  assert 'MODEL_DIR = \\\n' in texts[1] and 'LENGTHS = \\\n' in texts[0]
  runs = [
      dataclasses.replace(run_lib.read(make_run(f'run{i}')), config=text)
      for i, text in enumerate(texts)
  ]
  seeds, other = methods.group(runs)
  assert seeds.runs == tuple(runs[:2]) and other.runs == (runs[2],)
  assert seeds.macros['MODEL_DIR'] == "'/runs/a'"
  assert other.macros['MODEL_DIR'] == repr(long) and other.macros['RANK'] == '8'
  assert '\n' not in seeds.macros['LENGTHS']


def test_constant_answers_stand_beside(make_run):
  runs = [run_lib.read(make_run(name, routed=False)) for name in ('a', 'b')]
  results = dataclasses.replace(
      runs[0].results, constant_answer={'stress': {'exact_match': 37.5}}
  )
  runs[0] = dataclasses.replace(runs[0], results=results)
  assert '37.50' in _lines(runs)['best constant answer']


def test_held_out_tasks_have_a_mean_of_their_own(make_run):
  values = {'t': 1.0, 'u': 4.0, 'v': 10.0, 'w': 30.0}
  by_task = {task: {'m': x} for task, x in values.items()}
  results = results_file.Results(
      'test', {}, by_task, by_task, dict.fromkeys(values, 'm')
  )
  runs = [run_lib.read(make_run(name, routed=False)) for name in ('a', 'b')]
  runs = [
      dataclasses.replace(
          run, results=results,
          info=dataclasses.replace(run.info, held_out_tasks=('v', 'w')),
      )
      for run in runs
  ]
  table = methods.Comparison(runs)
  assert list(table.means) == ['Mean over tasks', 'Held-out mean']
  # (1 + 4) / 2 and (10 + 30) / 2.
  means = [cell.mean for cell in table.cells(table.groups[0])]
  assert means == [2.5, 20, 1, 4, 10, 30]
  # The results of one run and of several say the same.
  for shown in (runs[:1], runs):
    text = page.page(shown).split('id="results"')[1].split('</section>')[0]
    assert 'Held-out mean' in text
    assert {'2.50', '20.00'} <= set(re.findall(r'\d+\.\d\d', text))
  # What one of the runs has trained on is held out from none.
  one = dataclasses.replace(runs[0].info, held_out_tasks=('u', 'v', 'w'))
  runs[0] = dataclasses.replace(runs[0], info=one)
  assert methods.Comparison(runs).means == table.means

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of tuning: rungs, edges and seeds, on functions whose best is known."""

import itertools
import math
from pathlib import Path

import pytest

from moe_peft.study import records as records_lib
from moe_peft.study import tables
from moe_peft.study import tuning
from tests import refusals

PLAN = tuning.Plan(
    (1000, 1001, 1002),
    (tuning.Rung(100, 1, 6), tuning.Rung(300, 1, 3), tuning.Rung(300, 3, 2)),
)
RATES = ('0.001', '0.003', '0.01')
GRID = [
    {'LEARNING_RATE': rate, 'SCALE': scale}
    for rate, scale in itertools.product(RATES, ('1', '4'))
]


def peak(rate, scale=2.0):
  """A score whose best is known."""
  return lambda values, steps, seed: -(
      abs(math.log(float(values['LEARNING_RATE']) / rate))
      + abs(math.log(float(values.get('SCALE', scale)) / scale))
  ) - (300 - steps) / 1000 + (seed - 1001) / 1e4


def run(tmp_path, score, grid=None, plan=PLAN):
  """Runs all trials that are asked for, and returns the tuner and them."""
  records = records_lib.Records(tmp_path)
  tuner = tuning.Tuner('one', grid or GRID, plan, records)
  ran = []
  while missing := tuner.missing():
    for trial in missing:
      records.add_trial(
          'one', trial.values, score(trial.values, trial.steps, trial.seed),
          trial.steps, trial.seed,
      )
    ran += missing
  return tuner, ran


def test_half_goes_on_each_time_and_the_last_round_has_all_seeds(tmp_path):
  tuner, ran = run(tmp_path, peak(0.003))
  first, second, third = (
      [trial for trial in ran if (trial.steps, trial.seed) == key]
      for key in ((100, 1000), (300, 1000), (300, 1001))
  )
  # Of two scales the better one is at an edge, so one beyond it is tried too.
  assert (len(first), len(second), len(third)) == (6, 3 + 1, 2 + 1)
  assert tuner.best()['LEARNING_RATE'] == '0.003' and not tuner.at_edge()
  assert tuner.agreement() == pytest.approx(1.0)
  # Known trials are read from the file, and nothing is asked for again.
  again = tuning.Tuner('one', GRID, PLAN, records_lib.Records(tmp_path))
  assert not again.missing() and again.best() == tuner.best()


def test_an_edge_widens_until_the_best_is_inside(tmp_path):
  tuner, ran = run(tmp_path, peak(0.03, 4.0))
  rates = sorted({float(t.values['LEARNING_RATE']) for t in ran})
  # 0.01 was the edge; the next steps are those of the grid there.
  assert rates[-2:] == pytest.approx([0.0333, 0.111], rel=0.01)
  assert float(tuner.best()['LEARNING_RATE']) == pytest.approx(0.0333)
  assert not tuner.at_edge()


@pytest.mark.parametrize(
    ('macro', 'values', 'most', 'tried'),
    [
        # 10.67 and 28.4 are no ranks; of a rate they would be values.
        ('RANK', ('4', '6'), 100, ['4', '6', '9', '14', '22', '35']),
        ('NUM_EXPERTS', ('768', '1024'), 1024, ['768', '1024', '1365']),
        ('RANK', ('1', '2'), 0, ['1', '2']),  # 0.5 is no rank, nor is 0.
        ('GATE_DROPOUT', ('0.3', '0.6'), 9, ['0.3', '0.6']),  # 1.2 is no rate.
        ('SCALE', ('1', '4'), 0, ['1', '4', '0.25', '0.0625', '0.0156',
                                  '0.00389']),
    ],
)
def test_what_is_tried_beyond_is_a_value_of_the_macro(
    tmp_path, macro, values, most, tried
):
  _, ran = run(
      tmp_path, lambda v, *_: -abs(float(v[macro]) - most),
      [{macro: value} for value in values],
      tuning.Plan((7,), (tuning.Rung(300, 1, 2),)),
  )
  assert [trial.values[macro] for trial in ran] == tried


def test_a_best_that_runs_away_is_said_to_be_at_the_edge(tmp_path):
  tuner, ran = run(tmp_path, peak(1e9))
  assert len({t.values['LEARNING_RATE'] for t in ran}) < 9
  assert 'LEARNING_RATE' in tuner.at_edge()
  assert 'LEARNING_RATE' in tables.tuning({'one': tuner}).splitlines()[-1]


def test_a_run_that_is_not_finite_is_the_worst(tmp_path):
  score = peak(0.003)
  tuner, _ = run(
      tmp_path,
      lambda v, *rest: (
          math.nan if v['LEARNING_RATE'] == '0.003' else score(v, *rest)
      ),
      [{'LEARNING_RATE': rate} for rate in RATES],
      tuning.Plan((7,), (tuning.Rung(300, 1, 3),)),
  )
  assert tuner.best()['LEARNING_RATE'] != '0.003'


def test_short_runs_that_mislead_are_seen(tmp_path):
  def misleading(values, steps, seed):
    return (1 if steps == 300 else -1) * float(values['LEARNING_RATE'])

  tuner, _ = run(tmp_path, misleading, [{'LEARNING_RATE': r} for r in RATES],
                 tuning.Plan((7,), (tuning.Rung(100, 1, 3),
                                    tuning.Rung(300, 1, 3))))
  assert tuner.agreement() == -1.0 < tuning.LEAST_AGREEMENT


def test_without_seeds_of_its_own_the_first_of_equals_wins(tmp_path):
  grid = [{'ALPHA': '4.0'}, {'ALPHA': '16.0'}]
  tuner, ran = run(tmp_path, lambda *_: 50.0, grid, tuning.Plan())
  assert [t.seed for t in ran] == [None, None] and tuner.best() == grid[0]
  assert records_lib.Records(tmp_path).trials['one'] == [
      {'validation': 50.0, **values} for values in grid
  ]


@pytest.mark.parametrize(
    ('macros', 'where', 'names'),
    [
        ({'TUNING_SEEDS': (0, 9)}, 'TUNING_SEEDS', ['(0, 9)', '(0, 1)']),
        ({'TUNING_SEEDS': 5}, 'TUNING_SEEDS', ['5']),
        ({'TUNING_SEEDS': (9, 9)}, 'TUNING_SEEDS', ['(9, 9)']),
        ({'TUNING_SEEDS': (9,), 'RUNGS': ((300, 2, 1),)}, 'RUNGS', ['1 seeds']),
        ({'TUNING_SEEDS': (9,), 'RUNGS': (300, 1)}, 'RUNGS', ['(300, 1)']),
        ({'TUNING_SEEDS': (9,), 'RUNGS': 300}, 'RUNGS', ['300']),
        (
            {'TUNING_SEEDS': (9,), 'RUNGS': ((300, 1, 3),)},
            'RUNGS', ['4 trials'],
        ),
    ],
)
def test_wrong_plans_are_named(macros, where, names):
  with refusals.refused(where, *names):
    tuning.read(Path('one.gin'), macros, (0, 1), trials=4)


def test_without_rounds_all_trials_have_all_seeds(tmp_path):
  macros = {'TUNING_SEEDS': (8, 9), 'TRAIN_STEPS': 300}
  plan = tuning.read(Path('one.gin'), macros, (0, 1), len(GRID))
  tuner, ran = run(tmp_path, peak(0.003), plan=plan)
  assert {t.steps for t in ran} == {300} and {t.seed for t in ran} == {8, 9}
  assert all(values in [t.values for t in ran] for values in GRID)
  assert tuner.best()['LEARNING_RATE'] == '0.003'

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the outcomes of claims, by scores whose truth is known."""

import math

import numpy as np
import pytest

from moe_peft.study import claims
from moe_peft.study import outcomes as outcomes_lib
from moe_peft.study import verdicts

TOKEN = claims.Contrast('better', 'token', 'sequence')
SAME = claims.Contrast('as good', 'token', 'sequence')


def claim(*contrasts, **changes):
  return claims.Claim('A claim.', 'a paper', contrasts, **changes)


def rows(name, mean, seeds=12, deviation=1.0, trainable=100, task='t'):
  """Rows whose mean and standard deviation are exactly as asked for."""
  noise = np.linspace(-1, 1, seeds)
  noise *= deviation / noise.std(ddof=1)
  return [
      {'name': name, 'seed': seed, 'trainable': trainable, 'held_out': [],
       'adapted': {task: mean + float(noise[seed])}}
      for seed in range(seeds)
  ]


def judge(made, first, second, seeds=12):
  return outcomes_lib.judge(
      made, first + second, dict.fromkeys(made.arms, range(seeds))
  )


@pytest.mark.parametrize(
    ('contrast', 'gap', 'deviation', 'outcome'),
    [
        (TOKEN, 3.0, 1.0, 'reproduced'),
        (TOKEN, 0.0, 1.0, 'contradicted'),  # A gain of a point is excluded.
        (TOKEN, -3.0, 1.0, 'contradicted'),
        (TOKEN, 1.0, 2.0, 'undecided'),
        (TOKEN, 0.8, 0.5, 'undecided'),  # Significant, and less than a point.
        (SAME, 0.0, 1.0, 'reproduced'),
        (SAME, -3.0, 1.0, 'contradicted'),
        (SAME, 0.0, 4.0, 'undecided'),
        (SAME, 3.0, 1.0, 'undecided'),  # Better is not "as good as".
    ],
)
def test_outcomes(contrast, gap, deviation, outcome):
  made = claim(contrast)
  (found,) = judge(
      made, rows('token', 70 + gap, deviation=deviation),
      rows('sequence', 70, deviation=deviation),
  )
  assert found.outcome == outcome
  assert outcomes_lib.of_claim(made, [found]) == outcome
  assert found.difference.value == pytest.approx(gap)


@pytest.mark.slow
def test_what_lacks_seeds_is_undecided_however_clear_it_looks():
  made = claim(TOKEN)
  (found,) = judge(made, rows('token', 90, seeds=5), rows('sequence', 50))
  assert (found.outcome, found.seeds) == ('undecided', (5, 12))
  assert found.wanted == (12, 12) and found.p < 0.001
  (none,) = judge(made, [], rows('sequence', 50))
  assert none.outcome == 'undecided' and none.difference is None


@pytest.mark.slow
def test_the_declared_look_ends_what_is_clear_and_nothing_else():
  other = claims.Contrast('better', 'token', 'hard')
  made = claim(TOKEN, other, look=(8, 0.001))
  assert made.level == pytest.approx(0.049)
  found = (rows('token', 90, 8) + rows('sequence', 80, 8)
           + rows('hard', 89, 8, deviation=2.0))
  seeds = dict.fromkeys(made.arms, range(12))
  assert set(outcomes_lib.ended_early(made, found, seeds)) == {TOKEN}
  assert [o.outcome for o in judge(made, found, [], 12)] == [
      'reproduced', 'undecided'
  ]
  # Before all arms have the seeds of the look, nobody looks.
  assert not outcomes_lib.ended_early(made, found[:-1], seeds)
  assert not outcomes_lib.ended_early(claim(TOKEN), found, seeds)
  # Others are not those that it is declared for.
  later = [row | {'seed': row['seed'] + 4} for row in found]
  assert not outcomes_lib.ended_early(made, later, seeds)


def test_a_run_that_is_not_finite_ends_nothing():
  made = claim(TOKEN, look=(8, 0.001))
  found = rows('token', 70, 8) + rows('sequence', 70, 8)
  found[0]['adapted']['t'] = math.nan
  seeds = dict.fromkeys(made.arms, range(12))
  assert not outcomes_lib.ended_early(made, found, seeds)
  (outcome,) = outcomes_lib.judge(made, found, seeds)
  assert outcome.outcome == 'undecided'


def test_seeds_that_were_not_declared_do_not_count():
  made = claim(TOKEN)
  more = [row | {'seed': row['seed'] + 6} for row in rows('token', 90)]
  (found,) = judge(made, more, rows('sequence', 50))
  assert (found.outcome, found.seeds) == ('undecided', (6, 12))


@pytest.mark.slow
def test_a_family_is_corrected_as_one():
  arms = [claims.Contrast('better', 'token', f'arm{i}') for i in range(7)]
  made = claim(*arms)
  found = rows('token', 71.3, deviation=1.2)
  for contrast in arms:
    found += rows(contrast.second, 70, deviation=1.2)
  outcomes = judge(made, found, [])
  assert all(o.difference.p < 0.05 < o.p for o in outcomes)  # 0.015 x 7.
  assert {o.outcome for o in outcomes} == {'undecided'}
  # Contrasts whose arms have not run yet are of the family too.
  first, *others = judge(made, rows('token', 71.3, deviation=1.2),
                         rows('arm0', 70, deviation=1.2))
  assert first.p == pytest.approx(7 * first.difference.p)
  assert not any(other.difference for other in others)


@pytest.mark.slow
def test_a_claim_needs_all_contrasts_or_any():
  second = claims.Contrast('better', 'token', 'hard')
  scores = (rows('token', 73) + rows('sequence', 70)
            + rows('hard', 73))
  for every, outcome in ((True, 'contradicted'), (False, 'reproduced')):
    made = claim(TOKEN, second, every=every)
    outcomes = judge(made, scores, [])
    assert [o.outcome for o in outcomes] == ['reproduced', 'contradicted']
    assert outcomes_lib.of_claim(made, outcomes) == outcome


def test_the_table_says_how_much_and_what_could_be_seen():
  made = claim(TOKEN)
  seeds = dict.fromkeys(made.arms, range(12))
  outcomes = judge(made, rows('token', 73, trainable=150), rows('sequence', 70))
  text = verdicts.table([verdicts.Verdict('unit', made, outcomes, seeds)])
  assert '**unit**: A claim. |  | **reproduced**' in text
  assert '12, 12 | +3.0 | +2.2 to +3.8 | < 0.001 | 1.50 |' in text
  # By the noncentral t, at 1.27.
  assert 'a difference of 1.5 points' in text

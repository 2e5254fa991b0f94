# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of claims: outcomes of scores whose truth is known."""

import numpy as np
import pytest

from moe_peft.study import claims
from moe_peft.study import verdicts
from tests import refusals

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
  return claims.judge(
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
  assert claims.outcome(made, [found]) == outcome
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
  assert set(claims.ended_early(made, found)) == {TOKEN}
  assert [o.outcome for o in judge(made, found, [], 12)] == [
      'reproduced', 'undecided'
  ]
  # Before all arms have the seeds of the look, nobody looks.
  assert not claims.ended_early(made, found[:-1])
  assert not claims.ended_early(claim(TOKEN), found)


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
    assert claims.outcome(made, outcomes) == outcome


def test_the_mean_leaves_out_what_the_claim_says():
  row = {'adapted': {'a': 10.0, 'b': 20.0, 'syllables': 90.0}, 'held_out': []}
  assert claims.mean(())(row) == 40.0
  assert claims.mean(('syllables',))(row) == 15.0


def test_the_table_says_how_much_and_what_could_be_seen():
  made = claim(TOKEN)
  seeds = dict.fromkeys(made.arms, range(12))
  outcomes = judge(made, rows('token', 73, trainable=150), rows('sequence', 70))
  text = verdicts.table([verdicts.Verdict('unit', made, outcomes, seeds)])
  assert '**unit**: A claim. |  | **reproduced**' in text
  assert '12, 12 | +3.0 | +2.2 to +3.8 | < 0.001 | 1.50 |' in text
  # By the noncentral t, at 1.27.
  assert 'a difference of 1.5 points' in text


@pytest.mark.parametrize(
    ('line', 'names'),
    [
        ("CONTRASTS = ()", ['()']),
        ("CONTRASTS = (('worse', 'one', 'two'),)", ['worse', "'as good'"]),
        ("CONTRASTS = (('better', 'one', 'three'),)", ['three.gin']),
        ('CLAIM = 5', ['CONTRASTS']),
    ],
)
def test_wrong_claims_are_named(line, names, tmp_path):
  for name in ('one', 'two'):
    (tmp_path / f'{name}.gin').touch()
  (tmp_path / claims.FILE).write_text(line)
  with refusals.refused('CONTRASTS', *names):
    claims.read(tmp_path)


@pytest.mark.parametrize(
    ('line', 'where', 'names'),
    [
        ('EARLY_LOOK = (3, 0.2)', 'EARLY_LOOK', ['(3, 0.2)']),
        ('GIAN = 2.0', 'GIAN', ['GAIN']),
        ("GAIN = 'much'", 'GAIN', ['much']),
        ("LEFT_OUT = 'syllables'", 'LEFT_OUT', ['syllables']),
    ],
)
def test_what_would_decide_otherwise_than_meant_is_named(
    line, where, names, tmp_path
):
  for name in ('one', 'two'):
    (tmp_path / f'{name}.gin').touch()
  (tmp_path / claims.FILE).write_text(
      f"CONTRASTS = (('better', 'one', 'two'),)\n{line}\n"
  )
  with refusals.refused(where, *names):
    claims.read(tmp_path)


def test_a_claim_is_read_from_its_file(tmp_path):
  assert claims.read(tmp_path) is None
  for name in ('one', 'two'):
    (tmp_path / f'{name}.gin').touch()
  (tmp_path / claims.FILE).write_text(
      "CLAIM = 'x'\nCONTRASTS = (('as good', 'one', 'two'),)\n"
      "EARLY_LOOK = (8, 0.001)\nLEFT_OUT = ('syllables',)\n"
  )
  read = claims.read(tmp_path)
  assert read.contrasts == (claims.Contrast('as good', 'one', 'two'),)
  assert (read.look, read.left_out) == ((8, 0.001), ('syllables',))

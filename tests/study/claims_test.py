# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of claims, as their files declare them."""

import pytest

from moe_peft.study import claims
from tests import refusals


def test_the_mean_leaves_out_what_the_claim_says():
  row = {'adapted': {'a': 10.0, 'b': 20.0, 'syllables': 90.0}, 'held_out': []}
  assert claims.mean(())(row) == 40.0
  assert claims.mean(('syllables',))(row) == 15.0


@pytest.mark.parametrize(
    ('left_out', 'arms'),
    [(('sylables',), 'a'), (('t', 'u'), 'a'), (('t',), 'ab')],
)
def test_what_no_run_has_or_all_that_counts_is_not_left_out(left_out, arms):
  row = {'adapted': {'t': 1.0, 'u': 2.0}, 'held_out': ['u']}
  rows = [row | {'name': name} for name in arms]
  contrast = claims.Contrast('better', 'a', 'b')
  for allowed in ((), ('u',)):
    made = claims.Claim('', '', (contrast,), left_out=allowed)
    claims.check_left_out(made, rows)
  with refusals.refused('LEFT_OUT', left_out[0], 't'):
    made = claims.Claim('', '', (contrast,), left_out=left_out)
    claims.check_left_out(made, rows)


@pytest.mark.parametrize(
    ('line', 'names'),
    [
        ("CONTRASTS = ()", ['()']),
        ("CONTRASTS = (('worse', 'one', 'two'),)", ['worse', "'as good'"]),
        ("CONTRASTS = (('better', 'one', 'three'),)", ['three.gin']),
        ("CONTRASTS = (('better', 'one', ['two']),)", ["['two']"]),
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

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The drill finds what is lost, and this package loses nothing."""

import json
import random

import numpy as np
import pytest

from moe_peft.cli import drill
from moe_peft.drill import faults
from moe_peft.drill import moments
from moe_peft.drill import outcome
from moe_peft.drill import small_run
from moe_peft.drill import soak
from moe_peft.drill import t5x_runs
from moe_peft.drill import trials
from tests import refusals


@pytest.mark.slow
@pytest.mark.usefixtures('one_device')
def test_nothing_is_lost(tmp_path):
  arguments = ['--trials=2', f'--out={tmp_path / "out"}', '--seed=1']
  assert drill.main(arguments) == 0
  rows = [
      json.loads(line)
      for line in (tmp_path / 'out' / trials.RECORDS).read_text().splitlines()
  ]
  assert [row['trial'] for row in rows] == [0, 1]
  assert '| all | 2 | 0 |' in (tmp_path / 'out' / trials.TABLE).read_text()


def test_one_changed_bit_is_a_difference():
  run = {'state a': b'ab', 'train': [{'loss': 1.0}], 'TensorBoard': [1, 2]}
  assert outcome.differences(run, dict(run)) == []
  assert outcome.differences(run, {**run, 'state a': b'ac'}) == ['state a']
  assert outcome.differences(run, {**run, 'TensorBoard': [1, 2, 2]}) == [
      'TensorBoard'
  ]
  assert outcome.differences(run, {'train': run['train']}) == [
      'TensorBoard', 'state a'
  ]


def test_words_that_nobody_should_read():
  class Run:
    def __init__(self, text):
      self.said = lambda: text

  assert faults.check_words(Run('error: one thing.\n')) == []
  assert faults.check_words(Run('Traceback (most recent call last):\n'))
  assert faults.check_words(Run('error: one.\nerror: two.\n'))


@pytest.mark.parametrize('name', faults.DAMAGE)
def test_damage_of_the_only_checkpoint_is_undone(tmp_path, monkeypatch, name):
  run = small_run.SmallRun(tmp_path, 'run')
  file = run.folder / 'checkpoints' / '4' / 'state' / 'x'
  file.parent.mkdir(parents=True)
  file.write_bytes(b'some bytes')
  seen = []
  monkeypatch.setattr(
      faults, '_refused', lambda run, path: seen.append(
          file.exists() and file.read_bytes()
      ) or []
  )
  what, lost = faults.FAULTS[name](run, random.Random(0))
  assert 'the only checkpoint' in what and not lost
  assert seen != [b'some bytes'] and file.read_bytes() == b'some bytes'
  # There is another one to go back to.
  (run.folder / 'checkpoints' / '8' / 'state').mkdir(parents=True)
  (run.folder / 'checkpoints' / '8' / 'state' / 'x').write_bytes(b'some bytes')
  what, lost = faults.FAULTS[name](run, random.Random(0))
  assert what == 'checkpoints/8/state/x' and not lost and len(seen) == 1


def test_moments_are_drawn_from_what_can_come(tmp_path):
  run = small_run.SmallRun(tmp_path, 'run')
  durations = {
      'start-up': 2.0, 'evaluation of the base': 1.0, 'evaluation': 0.5,
      'results': 3.0,
  }
  names = {
      moments.draw(run, durations, random.Random(i)).name for i in range(60)
  }
  assert names == set(moments.NAMES) - {'restore'}
  (run.folder / 'checkpoints' / '36').mkdir(parents=True)
  names = {
      moments.draw(run, durations, random.Random(i)).name for i in range(60)
  }
  assert names == {'start-up', 'restore', 'step', 'save', 'results'}


def test_a_drill_goes_on_with_whole_runs(tmp_path):
  file = tmp_path / trials.RECORDS
  rows = [{'seed': 0, 'trial': i, 'lost': []} for i in range(7)]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert trials._read(file, seed=0) == rows[:5]
  with refusals.refused('--seed', 'seed 0'):
    trials._read(file, seed=1)


def test_growth_is_seen_through_noise_and_warming_up():
  rng = np.random.default_rng(0)

  def samples(growth):
    return [
        {
            'seconds': float(i),
            'memory (MB)': min(i, 30) + growth * i + rng.normal(),
            'open files': 20.0,
            'threads': 40.0,
        }
        for i in range(120)
    ]

  limits = soak.LIMITS['memory (MB)']
  assert abs(soak.growth(samples(0.0))['memory (MB)'][1]) < limits / 4
  assert soak.growth(samples(0.5))['memory (MB)'][1] > limits
  assert soak.growth(samples(0.0))['threads'] == pytest.approx((40.0, 0.0))


@pytest.mark.slow
def test_a_machine_without_t5x(monkeypatch, tmp_path):
  monkeypatch.setattr(
      t5x_runs.importlib.util, 'find_spec', lambda name: None
  )
  with refusals.refused('--t5x', 't5x'):
    drill.main(['--t5x', f'--out={tmp_path}'])

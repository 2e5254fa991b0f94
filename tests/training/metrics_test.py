# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the log of a run writes of metrics on the device."""

import contextlib
import json
import types

from clu import metrics as clu_metrics
import jax.numpy as jnp
import pytest

from moe_peft.runs import metrics_files
from moe_peft.training import metrics
from moe_peft.training import progress as progress_lib
from tests import refusals

SITE = 'encoder/layers_0/mlp/wo'


def of_step(loss, tokens, selected=2.0, skipped=False):
  """Metrics as a training step returns them."""
  tokens = jnp.float32(tokens)
  average = lambda total: clu_metrics.Average(jnp.asarray(total), tokens)
  return {
      'loss': average(loss * tokens),
      'accuracy': average(0.5 * tokens),
      'grad_norm': clu_metrics.Average(jnp.float32(loss), jnp.float32(1)),
      # Inputs too: three times the targets.
      'tokens': clu_metrics.Average(3 * tokens, jnp.float32(1)),
      'skipped': metrics.Skipped(
          jnp.int32(1), jnp.int32(skipped), jnp.int32(skipped)
      ),
      'routing': {
          SITE: {
              'load': average(jnp.array([0.25, 0.75]) * tokens),
              'selected': average(selected * tokens),
              'left_behind': average(0.0 * tokens),
          }
      },
      'router_grads': {f'{SITE}/adapter/router': average(0.1 * tokens)},
  }


def write(folder, *rows, first_step=0):
  """Logs pairs (step, metrics); returns the rows of both files."""
  progress = progress_lib.Progress('train', 10)
  log = metrics.TrainLog(folder, first_step, progress, lambda step: 0.5 * step)
  with contextlib.closing(log):
    for step, values in rows:
      log.add(values)
      log.write(step)
  return tuple(
      metrics_files.read_lines(folder / name)[0]
      for name in (metrics_files.TRAIN, metrics_files.ROUTERS)
  )


def test_a_row_has_means_over_tokens_and_over_steps(tmp_path):
  merged = metrics.merge(of_step(1.0, 30), of_step(4.0, 10, selected=1.0))
  ((row,), (routers,)) = write(tmp_path, (2, merged))
  assert row['step'] == 2
  assert row['loss'] == pytest.approx((30 * 1 + 10 * 4) / 40)
  assert row['grad_norm'] == pytest.approx((1 + 4) / 2)
  assert row['tokens'] == pytest.approx(3 * (30 + 10) / 2)
  assert row['learning_rate'] == 0.5  # Of the step before, from 0.
  assert row['tokens_per_second'] == pytest.approx(
      60 * row['steps_per_second']
  )
  assert routers['sites'][SITE] == {
      'load': [0.25, 0.75], 'selected': 1.75, 'left_behind': 0.0
  }


def test_a_period_without_target_tokens_has_no_loss(tmp_path):
  """JSON has no NaN."""
  ((row,), _) = write(tmp_path, (1, of_step(1.0, 0)))
  assert row['loss'] is None and row['grad_norm'] == 1


def test_an_evaluation_within_a_period_costs_it_no_time(tmp_path, monkeypatch):
  now = 0.0
  clock = types.SimpleNamespace(monotonic=lambda: now)
  monkeypatch.setattr(metrics, 'time', clock)
  progress = progress_lib.Progress('train', 10)
  log = metrics.TrainLog(tmp_path, 0, progress, lambda step: 0.1)
  with contextlib.closing(log):
    now = 1.0
    log.add(of_step(1.0, 8))
    with log.stopped_clock():
      now = 101.0
    assert log.begun()['seconds'] == 1
    now = 104.0
    log.add(of_step(1.0, 8))
    log.write(2)
  ((row,), _) = metrics_files.read_lines(tmp_path / metrics_files.TRAIN)
  assert row['steps_per_second'] == 2 / (1 + 3)


def test_a_resumed_run_writes_its_steps_once(tmp_path):
  write(tmp_path, (1, of_step(1.0, 8)), (2, of_step(2.0, 8)))
  rows, routers = write(tmp_path, (2, of_step(3.0, 8)), first_step=1)
  assert [row['loss'] for row in rows] == [1, 3]
  assert [row['step'] for row in routers] == [1, 2]


def test_a_period_that_a_checkpoint_cuts_has_one_row(tmp_path):
  progress = progress_lib.Progress('train', 10)

  def opened(folder, first_step=0, begun=None):
    return contextlib.closing(metrics.TrainLog(
        tmp_path / folder, first_step, progress, lambda step: 0.1, begun
    ))

  steps = [of_step(loss, 1 / 3, skipped=loss == 2) for loss in (0.1, 2, 0.7)]
  with opened('whole') as log:
    for values in steps:
      log.add(values)
    log.write(3)
  with opened('cut') as log:
    for values in steps[:2]:
      log.add(values)
    log.write(2, whole=False)  # The run was to end there.
    begun = json.loads(json.dumps(log.begun()))
  assert begun['steps'] == 2
  with opened('cut', 2, begun) as log:
    log.add(steps[2])
    log.write(3)
  whole, cut = (
      metrics_files.read_lines(tmp_path / folder / metrics_files.TRAIN)[0]
      for folder in ('whole', 'cut')
  )
  for rows in (whole, cut):
    for name in ('tokens_per_second', 'steps_per_second'):
      del rows[0][name]
  assert cut == whole and whole[0]['skipped'] == 1


@pytest.mark.parametrize(
    ('change', 'speed'),
    [
        (lambda sums: sums, 2 / (6 + 2)),
        # Another version has other metrics: nothing of that period is kept.
        (lambda sums: {'older': 1.0, **sums}, 1 / 2),
    ],
)
def test_more_steps_count_the_time_of_a_period_that_an_end_has_cut(
    tmp_path, monkeypatch, change, speed
):
  now = 0.0
  clock = types.SimpleNamespace(monotonic=lambda: now)
  monkeypatch.setattr(metrics, 'time', clock)
  progress = progress_lib.Progress('train', 10)

  def opened(first_step=0, begun=None):
    return contextlib.closing(metrics.TrainLog(
        tmp_path, first_step, progress, lambda step: 0.1, begun
    ))

  with opened() as log:
    now = 6.0
    log.add(of_step(1.0, 8))
    log.write(1, whole=False)  # The run was to end there.
    log.flush()
    begun = log.begun()
  now = 1000.0
  with opened(1, {**begun, 'sums': change(begun['sums'])}) as log:
    log.start_clock()
    now = 1002.0
    log.add(of_step(1.0, 8))
    log.write(2)
  ((row,), _) = metrics_files.read_lines(tmp_path / metrics_files.TRAIN)
  assert row['steps_per_second'] == speed


def test_skipped_steps_in_a_row_are_counted_over_periods(tmp_path):
  progress = progress_lib.Progress('train', 10)
  log = metrics.TrainLog(tmp_path, 0, progress, lambda step: 0.1)
  seen = []
  with contextlib.closing(log):
    for step, skipped in enumerate('01110111111', start=1):
      log.add(of_step(1.0, 1, skipped=int(skipped)))
      if step % 2 == 0:
        log.write(step)
        log.wait()
        seen.append(log.skipped_in_a_row)
  assert seen == [1, 3, 1, 3, 5]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'metrics').write_text('')
  with refusals.refused(tmp_path / 'metrics'):
    write(tmp_path)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The live log of routers, and its warnings."""

import contextlib
import dataclasses
import json

from clu import metric_writers
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from moe_peft.routers import router_log
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from tests.training import tiny

SITE = 'encoder/layers_0/mlp/wo'


def _means(load, selected, left_behind=0.0):
  return {
      SITE: {
          'load': np.array(load),
          'selected': np.array(selected),
          'left_behind': np.array(left_behind),
      }
  }


COLLAPSED = _means([0.98, 0.01, 0.005, 0.005], 4)
HEALTHY = _means([0.4, 0.3, 0.2, 0.1], 4, left_behind=0.25)


@pytest.fixture
def log(tmp_path):
  rows, words = [], []
  board = metric_writers.SummaryWriter(str(tmp_path))
  log = router_log.RouterLog(rows.append, board, words.append)
  return log, rows, words, board, tmp_path


def test_what_a_period_leaves(log):
  log, rows, _, board, folder = log
  log.log(20, HEALTHY, {})
  board.flush()
  assert rows == [{
      'step': 20,
      'sites': {
          SITE: {
              'load': [0.4, 0.3, 0.2, 0.1], 'selected': 4.0, 'left_behind': 0.25
          }
      },
  }]
  events = event_accumulator.EventAccumulator(str(folder))
  events.Reload()
  value = lambda tag: tensor_util.make_ndarray(
      events.Tensors(tag)[0].tensor_proto
  ).item()
  p = np.array([0.4, 0.3, 0.2, 0.1])
  expected = -(p * np.log(p)).sum() / np.log(4)
  assert value(f'load_entropy/{SITE}') == pytest.approx(expected, rel=1e-5)
  assert value(f'tokens_left_behind/{SITE}') == pytest.approx(0.25)


def test_a_collapse_is_told_once_when_it_lasts(log):
  log, _, words, *_ = log
  for step, means in enumerate([COLLAPSED] * 6, start=1):
    log.log(step, means, {})
    assert len(words) == (step >= router_log.PATIENCE)
  assert SITE in words[0] and 'has collapsed' in words[0]
  assert '1.1 of 4 experts' in words[0] and 'AUX_LOSS_FACTOR' in words[0]


def test_a_healthy_router_and_a_short_collapse_are_not_told(log):
  log, _, words, *_ = log
  for means in [HEALTHY, COLLAPSED, COLLAPSED, HEALTHY] * 3:
    log.log(1, means, {})
  assert not words


def test_after_a_recovery_it_is_told_again(log):
  log, _, words, *_ = log
  for means in [COLLAPSED] * 4 + [HEALTHY] + [COLLAPSED] * 4:
    log.log(1, means, {})
  assert len(words) == 2


def test_experts_that_no_token_uses_are_told_once(log):
  log, _, words, *_ = log
  idle = _means([0.4, 0.6, 0.0, 0.0], 1)
  for step in range(1, 2 * router_log.IDLE_PATIENCE):
    log.log(step, idle, {})
    assert len(words) == (step >= router_log.IDLE_PATIENCE)
  assert SITE in words[0] and 'expert 2, 3 ' in words[0]
  assert 'NUM_EXPERTS' in words[0]


def test_an_expert_that_gets_tokens_now_and_then_is_not_told(log):
  log, _, words, *_ = log
  for step in range(1, 3 * router_log.IDLE_PATIENCE):
    load = [0.4, 0.3, 0.3, 0.0 if step % router_log.IDLE_PATIENCE else 1e-4]
    log.log(step, _means(load, 2), {})
  assert not words


def test_a_collapse_says_why_experts_are_idle(log):
  log, _, words, *_ = log
  for step in range(2 * router_log.IDLE_PATIENCE):
    log.log(step, _means([1.0, 0.0, 0.0, 0.0], 1), {})
  assert len(words) == 1 and 'has collapsed' in words[0]


def test_a_router_without_gradient_is_told_once(log):
  log, _, words, *_ = log
  # Adapters begin with an output of 0, where no router has a gradient.
  shares = [0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0]
  for step, share in enumerate(shares, start=1):
    log.log(step, HEALTHY, {'a/router': share, 'b/router': share, 'c': 0.5})
    assert len(words) == (step >= 6)
  assert 'a/router and 1 other sites' in words[0] and 'NORMALIZE' in words[0]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:NUM_SELECTED_EXPERTS')
def test_a_gate_that_is_always_one_is_told(tmp_path, capsys):
  tiny.load(
      tmp_path, 'molora_topk', NUM_SELECTED_EXPERTS=1, SITES='.*/wo',
      TRAIN_STEPS=3,
  )
  setup = experiment_lib.prepare(run.build())
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda step, params: None)
  words = ' '.join(capsys.readouterr().err.split())
  assert 'no gradient has reached' in words
  assert 'mlp/wo/adapter/router and 1 other sites' in words


def _train(tmp_path, bias=0.0):
  """Trains SMoRA, whose two first experts get a bias of the selection."""
  tiny.load(
      tmp_path,
      'smora',
      NUM_SELECTED_EXPERTS=2,
      SITES='.*/(query|wo)',
      **{'smora.SMoRA.num_experts': 6},
  )
  setup = experiment_lib.prepare(run.build())
  trained = {
      name: value.at[:2].add(bias) if name.endswith('router/bias') else value
      for name, value in setup.trainable.items()
  }
  setup = dataclasses.replace(setup, trainable=trained)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda step, params: None)
  lines = (tmp_path / 'metrics' / 'routers.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize('bias', [0.0, 100.0])
def test_a_forced_collapse_and_its_control(tmp_path, capsys, bias):
  rows = _train(tmp_path, bias)
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  for row in rows:
    assert len(row['sites']) == 5
    for site in row['sites'].values():
      assert site['selected'] == pytest.approx(2)
      # Renormalised weights: those of a token sum to one.
      assert sum(site['load']) == pytest.approx(1, abs=1e-3)
  words = capsys.readouterr().err
  assert ('has collapsed' in words) == bool(bias)
  assert 'no gradient' not in words
  if bias:
    assert 'step 3' in words and '4 other sites' in words
    assert '2.0 of 6 experts' in ' '.join(words.split())

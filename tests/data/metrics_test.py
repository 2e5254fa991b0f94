# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the metrics against values worked out by hand."""

import copy
import sys

import pytest

from moe_peft.data import metrics
from moe_peft.data import ranking
from tests import refusals


def test_exact_match():
  assert metrics.exact_match(
      ['walked', 'stung', ['a', 'b'], 'x'], ['walked ', 'stang', 'b', 'X']
  ) == {'exact_match': 50.0}


def test_accuracy_ignores_case():
  assert metrics.accuracy(['yes', 'no', 'no', 'no'], ['Yes', 'no', 'yes', '']
                          ) == {'accuracy': 50.0}


def test_token_f1_is_squads():
  # Articles, case and punctuation do not count: 1, then 2 * 1 / (1 + 3), 0.
  values = metrics.token_f1(
      ['the cat', ['dog', 'cow'], 'bird'],
      ['A cat!', 'my dog barks', 'fish'],
  )
  assert values == {'token_f1': pytest.approx(100 * (1 + 0.5 + 0) / 3)}


def test_token_f1_counts_repeated_tokens_once_each():
  assert metrics.token_f1(['b b c'], ['b b b']) == {
      'token_f1': pytest.approx(100 * 2 * 2 / 6)
  }
  assert metrics.token_f1(['the'], ['']) == {'token_f1': 100.0}
  assert metrics.token_f1(['cat'], ['']) == {'token_f1': 0.0}


def test_rouge():
  values = metrics.rouge(['a b c d', ['x', 'y z']], ['a b d', 'y z'])
  # First row: 3 of 4 and 3 of 3 words; 1 of 3 and 1 of 2 pairs.
  assert values == {
      'rouge1': pytest.approx(100 * (6 / 7 + 1) / 2),
      'rouge2': pytest.approx(100 * (2 / 5 + 1) / 2),
      'rougeL': pytest.approx(100 * (6 / 7 + 1) / 2),
  }


def test_bleu():
  same = 'the small cat sat on the mat'
  assert metrics.bleu([same], [same])['bleu'] == pytest.approx(100)
  # Precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty.
  value = metrics.bleu(['a b c d e'], ['a b c d x'])['bleu']
  assert value == pytest.approx(
      100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  )
  # Any of several references may match; rows may have different numbers.
  assert metrics.bleu([['p q r s', same], same], [same, same])[
      'bleu'
  ] == pytest.approx(100)


@pytest.mark.parametrize(
    'metric, what',
    [(metrics.numeric_accuracy, 'number'), (metrics.option_accuracy, 'option')],
)
def test_a_target_without_an_answer_is_named(metric, what):
  """It would be right exactly if the model had none either."""
  with refusals.refused(metric.__name__, "'none'", what):
    metric(['7 A', 'none'], ['7 A', 'nothing'])
  assert set(metric([['none', '7 A']] * 2, ['7 A', '']).values()) == {50.0}


@pytest.mark.parametrize(
    'function',
    [metrics.exact_match, metrics.accuracy, metrics.token_f1, metrics.rouge,
     metrics.bleu, ranking.rank_accuracy],
)
def test_nothing_to_measure_is_an_error(function):
  with pytest.raises(ValueError, match='0 targets'):
    function([], [])


def test_a_copy_of_a_mean_is_the_same():
  value = metrics.exact_match(['a', 'b'], ['a', 'c'])['exact_match']
  copied = copy.deepcopy(value)
  assert (copied, copied.rows) == (value, value.rows) == (50.0, [1.0, 0.0])


def test_by_name():
  assert metrics.by_name('rouge') is metrics.rouge
  assert metrics.main_value(metrics.rouge) == 'rougeL'
  assert metrics.main_value(metrics.exact_match) == 'exact_match'
  with refusals.refused('metrics', "'exactmatch'", 'exact_match'):
    metrics.by_name('exactmatch')


@pytest.mark.parametrize(
    'name, module',
    [('rouge', 'rouge_score.rouge_scorer'), ('bleu', 'sacrebleu')],
)
def test_missing_library_names_the_command(monkeypatch, name, module):
  monkeypatch.setitem(sys.modules, module, None)  # Its import fails.
  command = "pip install 'moe-peft-jax[metrics]'"
  with refusals.refused(module, command):
    metrics.by_name(name)
  with refusals.refused(module, command):
    getattr(metrics, name)(['a'], ['a'])

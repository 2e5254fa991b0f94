# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the list of P3 tasks, T0's mixtures and its summary."""

import collections
import subprocess
import sys

import pytest
import seqio

from moe_peft.data import catalog
from moe_peft.data import vocabularies
from moe_peft.data.sets import p3
from moe_peft.data.sets import p3_catalog
from tests import refusals


def test_held_out_prompts_are_the_original_ones_with_choices():
  counts = collections.Counter(
      info.dataset_name for info in p3_catalog.held_out()
  )
  assert counts == {
      'super_glue_wsc.fixed': 10,
      'winogrande_winogrande_xl': 5,
      'super_glue_cb': 15,
      'super_glue_rte': 10,
      'anli': 45,  # 15 prompts, three rounds.
      'super_glue_copa': 12,
      'hellaswag': 4,
      'super_glue_wic': 10,
  }
  mixture = seqio.MixtureRegistry.get('t0_eval_score')
  assert len(mixture.tasks) == 111
  assert all(t.name.endswith('_score_eval') for t in mixture.tasks)


def test_t0_trains_on_no_data_set_it_is_evaluated_on():
  held_out = {info.dataset_name for info in p3_catalog.held_out()}
  trained = p3_catalog.trained(p3.MIXTURES['t0_train'])
  assert len(trained) == 313
  assert len({info.dataset_name for info in trained}) == 38
  assert not held_out & {info.dataset_name for info in trained}


def test_mixtures_grow():
  names = [
      {task.name for task in seqio.MixtureRegistry.get(name).tasks}
      for name in p3.MIXTURES
  ]
  assert names[0] < names[1] < names[2]


@pytest.mark.parametrize(
    ('task', 'rate'),
    [
        ('imdb_Movie_Expressed_Sentiment', 25_000),
        # 3,600,000 rows count as 500,000, shared by its nine prompts.
        ('amazon_polarity_Is_this_review', 500_000 // 9),
    ],
)
def test_rates(task, rate):
  mixture = seqio.MixtureRegistry.get('t0_train')
  assert mixture.get_rate(seqio.TaskRegistry.get(task)) == rate


def test_names_are_those_of_the_released_p3():
  assert {
      'super_glue_cb_can_we_infer_score_eval',
      'super_glue_copa__What_could_happen_next_C1_or_C2__score_eval',
      'super_glue_wsc.fixed_GPT_3_Style_score_eval',
      'anli_GPT_3_style_r1_score_eval',
  } <= set(seqio.TaskRegistry.names())


def test_another_vocabulary_needs_a_suffix():
  with refusals.refused('p3.register.suffix'):
    p3.register(vocabulary=vocabularies.byte_vocabulary())
  with refusals.refused('t0_eval_score-bytes', 'is no name'):
    p3.register(vocabulary=vocabularies.byte_vocabulary(), suffix='-bytes')
  again = {'vocabulary': vocabularies.byte_vocabulary(), 'suffix': '_again'}
  assert p3.register(**again) == p3.register(**again) == 't0_train_again'
  assert p3.register(suffix='_again') == 't0_train_again'
  with refusals.refused('t0_eval_score_again', 'other arguments'):
    p3.register(vocabulary=seqio.ByteVocabulary(extra_ids=7), suffix='_again')


def test_without_a_cache_the_message_says_how_to_make_one():
  task = catalog.task_names('t0_train')[0]
  with refusals.refused(task, 'cache_dir', 'python -m moe_peft data prepare'):
    catalog.check_feature_lengths('t0_train', {'inputs': 8, 'targets': 8})
  with refusals.refused('USE_CACHED_TASKS', 'p3.register.cache_dir'):
    seqio.TaskRegistry.get(task).source.get_dataset('train')


def test_summary_is_the_mean_of_medians():
  accuracies = {}
  for info in p3_catalog.held_out():
    accuracies[info.scored_name] = 50.0
  # Five prompts with median 70; one outlier does not count.
  winogrande = [
      i.scored_name for i in p3_catalog.held_out() if i.dataset == 'winogrande'
  ]
  for name, value in zip(winogrande, (0, 60, 70, 80, 90), strict=True):
    accuracies[name] = value
  # ANLI: medians 50, 50 and 80.
  for info in p3_catalog.held_out():
    if info.round == 'r3':
      accuracies[info.scored_name] = 80.0
  table = p3.held_out_table(accuracies)
  assert len(table) == 9
  assert table['winogrande_winogrande_xl'] == 70.0
  assert table['anli'] == 60.0
  assert table['mean'] == pytest.approx((6 * 50 + 70 + 60) / 8)
  del accuracies[winogrande[0]]
  with refusals.refused('t0_eval_score', winogrande[0]):
    p3.held_out_table(accuracies)


@pytest.mark.slow
def test_import_is_quick_and_needs_no_promptsource():
  code = (
      'import sys, time, seqio\n'
      'from moe_peft.data import metrics\n'
      'start = time.monotonic()\n'
      'from moe_peft.data.sets import p3\n'
      'assert time.monotonic() - start < 2\n'
      'bad = {"promptsource", "datasets", "apache_beam", "jinja2", "t5"}\n'
      'assert not bad & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)

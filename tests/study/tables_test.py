# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the table of a study."""

from moe_peft.study import tables

ROW = {'name': 'a', 'trainable': 10, 'seed': 0, 'held_out': [],
       'base': {'t': 1.0}, 'adapted': {'t': 2.0}}


def rows(name, *scores):
  return [
      {**ROW, 'name': name, 'seed': seed, 'adapted': {'t': score}}
      for seed, score in enumerate(scores)
  ]


def test_mean_and_sample_deviation():
  # Mean 3; sample standard deviation sqrt((1 + 1) / 1) = 1.4.
  assert '| a | 10 | 2 | 3.0 ± 1.4 | 3.0 ± 1.4 |' in tables.table(
      rows('a', 2.0, 4.0)
  )


def test_scores_with_the_routing_replaced():
  scored = [
      {**row, 'adapted': {'t': 2.0 + row['seed'], 'u': 9.0},
       'controls': {'task_mean': {'t': 1.0 + row['seed'], 'u': 7.0}}}
      for row in rows('a', 0.0, 0.0)
  ]
  assert tables.controls([*scored, ROW | {'name': 'b'}], ('u',)) == (
      '| method | seeds | trained | task mean |\n'
      '| --- | --: | --: | --: |\n'
      '| a | 2 | 2.5 ± 0.7 | 1.5 ± 0.7 |\n'
  )
  assert '| a | 2 | 5.8 ± 0.4 | 4.2 ± 0.4 |' in tables.controls(scored)
  assert tables.controls([ROW]) == ''


def test_cost_and_what_was_tuned():
  costs = lambda seconds, memory: {
      'seconds_per_step': seconds, 'peak_memory_bytes': memory
  }
  text = tables.table(
      [
          {**ROW, **costs(2.0, 10)},
          {**ROW, 'name': 'b', **costs(3.0, 5), 'tuned': {'ALPHA': '4'}},
      ],
      reference='a',
  )
  lines = text.splitlines()
  assert lines[-2] == '| a | 10 |  | 1 | 2.0 | 2.0 | +0.0 | 1.00 | 1.00 |'
  assert lines[-1] == (
      '| b | 10 | ALPHA=4 | 1 | 2.0 | 2.0 | +0.0 | 1.50 | 0.50 |'
  )
  assert len({line.count('|') for line in lines}) == 1


def test_nothing_is_compared_with_what_cost_nothing():
  costs = lambda seconds: {'seconds_per_step': seconds, 'peak_memory_bytes': 8}
  text = tables.table(
      [{**ROW, **costs(0.0)}, {**ROW, 'name': 'b', **costs(3.0)}],
      reference='a',
  )
  assert text.splitlines()[-1] == '| b | 10 | 1 | 2.0 | 2.0 | +0.0 |  | 1.00 |'


def test_costs_are_compared_on_the_same_device():
  on = lambda device, seconds: {
      'device': device, 'seconds_per_step': seconds, 'peak_memory_bytes': 8
  }
  lines = tables.table(
      [
          {**ROW, **on('1 cpu', 10.0)},
          {**ROW, 'seed': 1, **on('1 gpu', 1.0)},
          {**ROW, 'name': 'both', **on('1 cpu', 20.0)},
          {**ROW, 'name': 'both', 'seed': 1, **on('1 gpu', 4.0)},
          {**ROW, 'name': 'one', **on('1 gpu', 3.0)},
          {**ROW, 'name': 'none', **on('8 tpu', 1.0)},
      ],
      reference='a',
  ).splitlines()
  # Means of 20 / 10 and 4 / 1; 3 / 1 alone; nothing.
  assert [line.split('|')[-3].strip() for line in lines[-4:]] == [
      '1.00', '3.00', '3.00', ''
  ]


def test_held_out_tasks_have_a_mean_of_their_own():
  row = {**ROW, 'held_out': ['u'], 'base': {'t': 1.0, 'u': 5.0},
         'adapted': {'t': 2.0, 'u': 7.0}, 'constant': {'t': 0.5, 'u': 6.0}}
  lines = tables.table([row]).splitlines()
  assert lines[0].endswith('| t | u | mean | held-out mean |')
  assert lines[2] == '| base | 0 |  | 1.0 | 5.0 | 1.0 | 5.0 |'
  assert lines[3] == '| always the same answer | 0 |  | 0.5 | 6.0 | 0.5 | 6.0 |'
  assert lines[4] == '| a | 10 | 1 | 2.0 | 7.0 | 2.0 | 7.0 |'


def test_a_constant_answer_to_some_tasks_has_no_mean_of_all():
  row = {**ROW, 'held_out': ['u'], 'base': {'t': 1.0, 'u': 5.0},
         'adapted': {'t': 2.0, 'u': 7.0}, 'constant': {'u': 6.0}}
  lines = tables.table([row]).splitlines()
  assert lines[3] == '| always the same answer | 0 |  |  | 6.0 |  | 6.0 |'


def test_held_out_tasks_alone_are_compared():
  zero_shot = [
      {**row, 'held_out': ['t']}
      for row in (*rows('a', 2.0, 4.0), *rows('b', 12.0, 12.0))
  ]
  head, *_, last = tables.table(zero_shot, 'a').splitlines()
  assert 'held-out mean | mean - a' in head
  assert '| +9.0 |' in last


def test_many_tasks_are_lines():
  tasks = [f't{i}' for i in range(20)]
  scores = dict.fromkeys(tasks, 2.0)
  row = {**ROW, 'held_out': ['t19'], 'base': dict.fromkeys(tasks, 1.0),
         'adapted': scores, 'constant': {'t0': 0.5}}
  lines = tables.table([row, {**row, 'seed': 1}]).splitlines()
  assert lines[0] == '| method | trainable | seeds | mean | held-out mean |'
  assert lines[4] == '| a | 10 | 2 | 2.0 ± 0.0 | 2.0 ± 0.0 |'
  assert lines[6] == '| task | base | always the same answer | a |'
  assert lines[8] == '| t0 | 1.0 | 0.5 | 2.0 ± 0.0 |'
  assert lines[-1] == '| t19 (held out) | 1.0 |  | 2.0 ± 0.0 |'


def test_a_significant_difference_is_bold():
  costs = {'seconds_per_step': 1.0, 'peak_memory_bytes': 1}
  lines = tables.table(
      [
          {**row, **costs}
          for row in (
              *rows('a', 1.0, 3.0), *rows('b', 7.5, 9.5), *rows('c', 7.0, 9.0),
              *rows('d', 90.0),
          )
      ],
      reference='a',
  ).splitlines()
  # Variances of 2: t = gap / sqrt(2/2 + 2/2), two degrees of freedom, whose
  # 5 % quantile is 4.303, so gaps from 6.085 on count.
  deltas = [line.split('|')[-4].strip() for line in lines[-3:]]
  assert deltas == ['**+6.5**', '+6.0', '+88.0']


def test_a_task_that_any_method_has_trained_on_is_not_held_out():
  scores = {'adapted': {'t': 2.0, 'u': 4.0}, 'base': {'t': 1.0, 'u': 1.0}}
  rows = [
      {**ROW, **scores, 'held_out': held_out}
      for held_out in (['u'], ['t'], ['t', 'u'])
  ]
  compared = tables.compared(rows)
  assert [row['held_out'] for row in compared] == [[], [], []]
  assert '| 2.0 ± 0.0 | 4.0 ± 0.0 | 3.0 ± 0.0 |' in tables.table(compared)
  assert [r['held_out'] for r in tables.compared(rows[1:])] == [['t'], ['t']]
  assert tables.compared([]) == []

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of rendering P3's prompts."""

import pytest

from moe_peft.data.sets import prompts
from tests import refusals

pytest.importorskip('jinja2')


def _prompt(source, choices=None):
  return prompts.Prompt(
      name='ask', source=source, choices_source=choices, original_task=True,
      metrics=('Accuracy',),
  )


def test_inputs_targets_and_choices():
  prompt = _prompt(
      'Does {{premise}} imply {{hypothesis}}? ||| {{answer_choices[label]}}',
      'Yes ||| No ||| Maybe',
  )
  row = prompt.render({'premise': 'A', 'hypothesis': 'B', 'label': 2}, '')
  assert row.inputs == 'Does A imply B?'
  assert row.targets == 'Maybe'
  assert row.choices == ('Yes', 'No', 'Maybe')


def test_choices_may_come_from_the_row():
  prompt = _prompt(
      '{{q}} ||| {{answer_choices[1]}}', '{{options | join("|||")}}'
  )
  row = prompt.render({'q': 'Which?', 'options': ['x', 'y']}, '')
  assert (row.targets, row.choices) == ('y', ('x', 'y'))


def test_a_missing_column_is_an_error_that_lists_the_columns():
  prompt = _prompt('{{premise}} ||| yes')
  with refusals.refused('ask', "'premise'", 'label, sentence1'):
    prompt.render({'sentence1': 'A', 'label': 0}, '')


@pytest.mark.parametrize(
    'source',
    [
        '{% if kind == "cause" %}{{q}} ||| yes{% endif %}',
        '{{q}} ||| {% if label != -1 %}{{label}}{% endif %}',
        '{{q}}',
    ],
)
def test_a_template_that_does_not_apply_gives_nothing(source):
  assert _prompt(source).render({'q': 'a', 'kind': 'x', 'label': -1}, '') is (
      None
  )


def test_the_separator_in_a_text_stays_text():
  row = _prompt('{{q}} ||| {{a}}').render({'q': 'a ||| b', 'a': 'c'}, '')
  assert (row.inputs, row.targets) == ('a ||| b', 'c')


def test_values_are_cut_as_in_p3():
  row = _prompt('{{q}} ||| {{a}}').render({'q': 'x' * 5000, 'a': 'c'}, '')
  assert len(row.inputs) == 2048 and row.inputs.endswith('...')


def test_hyphens_of_columns_become_underscores():
  assert _prompt('{{a_b}} ||| c').render({'a-b': 1}, '').inputs == '1'


def test_random_choices_depend_on_the_seed_only():
  prompt = _prompt('{{[1,2,3,4,5,6,7,8] | choice}} ||| a')
  drawn = {seed: prompt.render({}, seed).inputs for seed in 'abcdefgh'}
  assert drawn == {seed: prompt.render({}, seed).inputs for seed in drawn}
  assert len(set(drawn.values())) > 1


def test_most_frequent():
  prompt = _prompt('{{["a","b","b"] | most_frequent | first}} ||| x')
  assert prompt.render({}, '').inputs == 'b'


def test_templates_run_in_a_sandbox():
  prompt = _prompt("{{ ''.__class__.__mro__ }} ||| a")
  with refusals.refused('ask', 'unsafe'):
    prompt.render({}, '')


@pytest.mark.slow
def test_a_folder_without_templates(tmp_path):
  with refusals.refused('--promptsource', 'promptsource==0.2.3'):
    prompts.find_templates(tmp_path)

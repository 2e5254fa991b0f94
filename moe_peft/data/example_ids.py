# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""An integer id for each example: its task, its language, its client.

EXAMPLE_IDS names the ids, which fixes their numbers, or says how many there
are. An example has the id that its row gives (`id_key` of local.register_task,
or `example_id` in the rows of a SeqIO task), or else that of its task's name.
To SeqIO it is a feature of length 1, `example_ids`, which it packs with the
tokens: of every example in a row 1 + its id, since 0 is padding. Methods that
are told ids read `core.tokens.Tokens.example_ids`.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import Any

import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.core import tokens
from moe_peft.data import catalog
from moe_peft.data import registration
from moe_peft.data import rows as rows_lib
from moe_peft.data import text_files

Ids = Sequence[str] | int
FEATURE = tokens.EXAMPLE_IDS


def number(value: Any, ids: Ids, where: str) -> int:
  """Returns 1 + the number of an id, as batches have it.

  Args:
    value: A name of `ids`, or a number from 0.
    ids: EXAMPLE_IDS.
    where: What gives the value, for messages.

  Raises:
    errors.UserError: There is no such id.
  """
  if isinstance(ids, int):
    if str(value).isdecimal() and int(value) < ids:
      return 1 + int(value)
    known = f'They are 0 to {ids - 1}.'
  else:
    if str(value) in ids:
      return 1 + list(ids).index(str(value))
    known = f'They are {", ".join(ids)}.'
  raise errors.UserError(
      f'{value!r} is none of the ids in EXAMPLE_IDS.', where,
      f'{known} A new one goes to their end.',
  )


def of_prompts(
    values: Sequence[Any], ids: Ids | None
) -> list[int] | None:
  """Returns the ids of prompts as batches have them; None if there are none.

  Args:
    values: A name or a number for each prompt, or None.
    ids: EXAMPLE_IDS of the run.

  Raises:
    errors.UserError: A prompt lacks an id, or its id is none of the run's.
  """
  where = '--example_id'
  if ids is None:
    if any(value is not None for value in values):
      raise errors.UserError(
          'The run was trained without ids of examples.', where, 'Leave it out.'
      )
    return None
  if None in values:
    known = f'0 to {ids - 1}' if isinstance(ids, int) else ', '.join(ids)
    raise errors.UserError(
        'The run needs an id of each example, and there is none for line '
        f'{1 + list(values).index(None)}.', where,
        f'Give one of {known}, or with --rows an "example_id" in every line.',
    )
  return [number(value, ids, where) for value in values]


def read_rows(lines: Sequence[str]) -> tuple[list[str], list[Any]]:
  """Returns the inputs and the ids of lines of JSON; ids may be missing.

  Raises:
    errors.UserError: A line is no object with a text `inputs`.
  """
  inputs, values = [], []
  remedy = 'Write {"inputs": "...", "example_id": "..."}.'
  for number, line in enumerate(lines, start=1):
    row = text_files.parse(line, f'line {number}', remedy)
    if not isinstance(row, dict) or not isinstance(row.get('inputs'), str):
      raise errors.UserError(
          'It is no JSON object with a text "inputs".', f'line {number}', remedy
      )
    inputs.append(row['inputs'])
    values.append(row.get(rows_lib.EXAMPLE_ID))
  return inputs, values


def with_ids(
    name: str, ids: Ids | None = None, by_name: bool = False
) -> str:
  """Registers a task or mixture whose examples have ids; returns its name.

  Args:
    name: A task or mixture.
    ids: EXAMPLE_IDS; None: examples have no ids, and the name is returned.
    by_name: Whether the tasks too are registered, as NAME.with_ids: T5X's
      training evaluation looks them up. Else they keep their names.

  Raises:
    errors.UserError: Unknown name, or an example's id is none of `ids`.
  """
  source = catalog.get_task_or_mixture(name)
  if ids is None:
    return name
  mixture = isinstance(source, seqio.Mixture)
  made = f'{name}.with_ids{".by_name" * by_name}'
  # It is made anew each time: the ids may be others.
  seqio.MixtureRegistry.remove(made)
  tasks = []
  for task in seqio.get_subtasks(source):
    rate = source.get_rate(task) if mixture else 1.0
    told = _with_ids(task, ids)
    if by_name:
      told = told.replace(name=f'{task.name}.with_ids')
      if task.supports_caching:
        told._cache_dir = task.cache_dir  # Its own name would be another's.
      seqio.TaskRegistry.remove(told.name)
      seqio.TaskRegistry.add_provider(told.name, told)
    tasks.append((told, rate))
  drawn = {'sample_fn': source._sample_fn} if mixture else {}
  seqio.MixtureRegistry.add(made, tasks, **drawn)
  return made


def _with_ids(task: seqio.Task, ids: Ids) -> seqio.Task:
  """The task, of the same name, whose examples have the feature."""
  if record := registration.RECORDS.get(task.name):
    rows = itertools.chain(*record.rows_fn().values())
    for value, place in {row.example_id: row.place for row in rows}.items():
      if value is None:  # Either all rows have an id or none has.
        number(task.name, ids, 'EXAMPLE_IDS')
      else:
        number(value, ids, place)
  count = ids if isinstance(ids, int) else len(ids)
  vocabulary = seqio.PassThroughVocabulary(1 + count)
  return task.replace(
      preprocessors=[
          *task.preprocessors, functools.partial(_add, task.name, ids)
      ],
      output_features={
          **task.output_features,
          FEATURE: seqio.Feature(vocabulary, add_eos=False),
      },
  )


def _add(task: str, ids: Ids, dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Adds the feature to examples, which may have an id of their own.

  Raises:
    errors.UserError: The first example's id is none of `ids`. One of a later
      example ends the iteration, with an error of TensorFlow.
  """
  if rows_lib.EXAMPLE_ID not in dataset.element_spec:
    mine = tf.constant([number(task, ids, 'EXAMPLE_IDS')], tf.int32)
    return dataset.map(lambda example: {**example, FEATURE: mine})
  for example in dataset.take(1).as_numpy_iterator():
    number(
        tf.compat.as_str_any(example[rows_lib.EXAMPLE_ID]), ids,
        f'{rows_lib.EXAMPLE_ID} of {task}',
    )

  def read(example):
    example = dict(example)
    value = example.pop(rows_lib.EXAMPLE_ID)
    text = value if value.dtype == tf.string else tf.as_string(value)
    if isinstance(ids, int):
      digits = tf.strings.regex_full_match(text, '[0-9]{1,9}')
      mine = tf.strings.to_number(tf.where(digits, text, '-1'), tf.int32)
      known = (0 <= mine) & (mine < ids)
    else:
      same = tf.equal(tf.constant(list(ids)), text)
      mine, known = tf.argmax(same, output_type=tf.int32), tf.reduce_any(same)
    check = tf.debugging.Assert(
        known, [f'An id of {task} is none of EXAMPLE_IDS:', text]
    )
    with tf.control_dependencies([check]):
      return {**example, FEATURE: tf.reshape(1 + mine, [1])}

  return dataset.map(read)

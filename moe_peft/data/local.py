# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own files as a task.

In a gin file:

    from __gin__ import dynamic_registration
    from moe_peft.data import local

    MIXTURE_OR_TASK_NAME = @local.register_task()
    local.register_task:
      name = 'my_task'
      train = 'data/train.jsonl'
      validation = 'data/validation.jsonl'

What the rows are is seen from their columns (`formats.FORMATS`): `messages`,
`prompt` and `completion`, `inputs` and `targets`, and so on. Files are JSON
Lines, JSON, Parquet, CSV, TFRecord, or folders that the library `datasets` has
saved. They are read into memory and checked when the task is registered. Data
that does not fit there is better a TFDS data set (tfds_tasks.py) or a SeqIO
task of your own.

The features of a task are `inputs` and `targets`. Those of pairs of answers are
`prompt`, `chosen` and `rejected`, tokens with their ends; TASK_FEATURE_LENGTHS
has the length of prompts as `inputs` and that of answers as `targets`.
"""

from collections.abc import Sequence
import functools
import math

import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import chat
from moe_peft.data import chat_template
from moe_peft.data import example_rows
from moe_peft.data import lengths
from moe_peft.data import metrics as metrics_lib
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data import row_parsers
from moe_peft.data import row_reader
from moe_peft.data import splits as splits_lib
from moe_peft.data import vocabularies

Paths = splits_lib.Paths
# Examples-proportional mixing (arXiv 1910.10683, 3.5.2): artificial limit.
_RATE_LIMIT = 2**16


def register_task(
    name: str,
    train: Paths | None = None,
    validation: Paths | None = None,
    test: Paths | None = None,
    data: Paths | None = None,
    split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
    row_format: str | None = None,
    inputs_key: str = 'inputs',
    targets_key: str = 'targets',
    choices: Sequence[str] = (),
    choices_key: str | None = None,
    id_key: str | None = None,
    length_normalized: bool = False,
    vocabulary: seqio.Vocabulary | None = None,
    metrics: Sequence[str] = (),
    too_long: str | None = None,
    turns: str | None = None,
    loss: str = 'answers',
    template: str | None = None,
    chat_date: str = chat_template.DATE,
) -> str:
  """Registers local files as a SeqIO task, once; returns its name.

  Args:
    name: Name of the task; letters, digits, `_`, `.` and `:`.
    train: A file, a glob pattern, or a list of them.
    validation: The same for the validation split.
    test: The same for the test split.
    data: Instead of the three: files that a stable hash of the inputs splits.
    split_fractions: Shares of train, validation and test of `data`; sum 1.
    row_format: See `formats.recognize`; needed where several fit.
    inputs_key: Key (JSON) or feature (TFRecord) of the inputs.
    targets_key: Key of the targets.
    choices: The same answers for all rows, which are ranked by their scores.
    choices_key: Instead of `choices`: the key of each row's list of them.
    id_key: Key of each row's id, a name or a number, see EXAMPLE_IDS. Without
      it a row has the id of the task's name.
    length_normalized: Whether choices are compared by nats per token.
    vocabulary: Of inputs and targets; ours of bytes where no gin file binds it.
    metrics: Metrics of a task without choices, see `generation_metrics`.
    too_long: Where TASK_FEATURE_LENGTHS is too short, 'drop' (the default)
      leaves an example out, 'cut' cuts its inputs at the left, and 'error'
      refuses it (always with choices).
    turns: Which answers of a conversation are learned: 'each' in an example of
      its own (the default with a template), only the 'last' (the default
      without one), or all 'together' in one row.
    loss: Whether conversations are learned in their 'answers' or 'all'.
    template: Chat template, 'chatml' or a path; by default the model's.
    chat_date: The day that chat templates see as today.

  Raises:
    errors.UserError: For a bad argument, file or line of a file.
  """
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  if not registration.is_new([name], dict(locals())):
    return name
  keys = _keys(inputs_key, targets_key, choices_key, choices)
  metric_fns = _metric_fns(keys.ranked, length_normalized, metrics)
  options = chat.Options(turns, loss, template, chat_date)
  options.check()
  files = splits_lib.Files(train, validation, test, data, split_fractions)
  check = functools.partial(metrics_lib.check_target, metric_fns)
  reader = row_reader.RowReader(keys, row_format, check, id_key)
  parsed = files.read(name, reader)
  example_rows.register(
      name, parsed, reader.format, options, metric_fns, keys.ranked,
      vocabulary, files=files.found(), too_long=_policy(too_long, keys.ranked),
  )
  return name


def register_mixture(
    name: str,
    tasks: str | Sequence[str],
    rates: Sequence[float] | None = None,
) -> str:
  """Registers a mixture of tasks; returns its name.

  In gin, tasks of your own are scoped references, and names work too:
  `tasks = [@first/local.register_task(), 'past_tense']`.

  Args:
    name: Name of the mixture.
    tasks: Names of tasks.
    rates: Mixing rates; if not given, the number of training rows, at most
      65,536 (examples-proportional mixing, arXiv 1910.10683, 3.5.2).

  Raises:
    errors.UserError: Unknown task, or rates that do not fit.
  """
  tasks = [tasks] if isinstance(tasks, str) else list(tasks)
  settings = {'tasks': tasks, 'rates': rates and list(rates)}
  if not registration.is_new([name], settings):
    return name
  if not tasks or len(set(tasks)) < len(tasks):  # SeqIO keeps one rate of each.
    raise errors.UserError(
        f'{name!r} must have one or more tasks, each once, not {tasks}.',
        'local.register_mixture.tasks',
    )
  for task in tasks:
    catalog.get_task_or_mixture(task)
  if rates is None:
    rates = [_num_train_rows(task) for task in tasks]
  if len(rates) != len(tasks) or not all(
      0 < rate < math.inf for rate in rates
  ):
    raise errors.UserError(
        f'{name!r} needs {len(tasks)} rates above 0, not {list(rates)}.',
        'local.register_mixture.rates',
    )
  seqio.MixtureRegistry.add(name, list(zip(tasks, rates, strict=True)))
  return name


def _num_train_rows(task: str) -> int:
  record = registration.RECORDS.get(task)
  count = len(record.rows_fn().get('train', ())) if record else 0
  if not count:
    raise errors.UserError(
        f'The number of training rows of {task!r} is not known.',
        'local.register_mixture.rates', 'Set them.',
    )
  return min(count, _RATE_LIMIT)


def generation_metrics(
    names: str | Sequence[str],
) -> list[metrics_lib.MetricFn]:
  """Returns the metric functions of a task that generates text.

  Args:
    names: 'exact_match' (used if none is given), 'accuracy',
      'numeric_accuracy' (the last number of a text), 'option_accuracy' (its
      last letter A to E), 'token_f1', 'rouge', 'bleu'. The results table shows
      the first.

  Raises:
    errors.UserError: An unknown metric, or its library is not installed.
  """
  if isinstance(names, str):
    names = [names]
  return [metrics_lib.by_name(name) for name in names or ('exact_match',)]


def _metric_fns(
    ranked: bool, length_normalized: bool, names: Sequence[str]
) -> list[metrics_lib.MetricFn]:
  if not ranked:
    return generation_metrics(names)
  if names:
    raise errors.UserError(
        'Choices are scored by rank classification (accuracy).',
        _argument('metrics'), 'Leave metrics out.',
    )

  def rank_accuracy(targets, scores):
    return ranking.rank_accuracy(targets, scores, length_normalized)

  return [rank_accuracy]


def _policy(too_long: str | None, ranked: bool) -> str:
  """How examples that are too long are treated."""
  too_long = lengths.check_policy(
      too_long or (lengths.ERROR if ranked else lengths.DROP),
      _argument('too_long'),
  )
  if ranked and too_long != lengths.ERROR:
    raise errors.UserError(
        'Choices are compared whole.', _argument('too_long'), 'Leave it out.'
    )
  return too_long


def _argument(name: str) -> str:
  return f'local.register_task.{name}'


def _keys(
    inputs: str,
    targets: str,
    choices_key: str | None,
    choices: Sequence[str],
) -> row_parsers.Keys:
  """The columns that are read, and the choices of all rows."""
  if choices and choices_key is not None:
    raise errors.UserError(
        f'Both choices = {choices!r} and choices_key = {choices_key!r} are '
        'given.', _argument('choices'), 'Give one of them.',
    )
  if choices and not row_parsers.are_choices(choices):
    raise errors.UserError(
        'Choices must be two or more different strings, not '
        f'{choices!r}.', _argument('choices'),
    )
  return row_parsers.Keys(inputs, targets, choices_key, tuple(choices))

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own JSON Lines or TFRecord files as a task.

In a gin file:

    from __gin__ import dynamic_registration
    from moe_peft.data import local

    MIXTURE_OR_TASK_NAME = @local.register_task()
    local.register_task:
      name = 'my_task'
      train = 'data/train.jsonl'
      validation = 'data/validation.jsonl'

Each line of a file is an object like {"inputs": "...", "targets": "..."}. The
files are read into memory and checked when the task is registered. Data that
does not fit there is better a TFDS data set (tfds_tasks.py) or a SeqIO task of
your own.
"""

from collections.abc import Mapping, Sequence
import functools
import logging

import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import local_files
from moe_peft.data import metrics as metrics_lib
from moe_peft.data import ranking
from moe_peft.data import registration
from moe_peft.data import rows as rows_lib
from moe_peft.data import vocabularies

Paths = str | Sequence[str]
_Rows = Mapping[str, Sequence[rows_lib.Row]]

# Examples-proportional mixing (arXiv 1910.10683, 3.5.2): artificial limit.
_RATE_LIMIT = 2**16


def register_task(
    name: str,
    train: Paths | None = None,
    validation: Paths | None = None,
    test: Paths | None = None,
    data: Paths | None = None,
    split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
    inputs_key: str = 'inputs',
    targets_key: str = 'targets',
    choices: Sequence[str] = (),
    choices_key: str | None = None,
    length_normalized: bool = False,
    vocabulary: seqio.Vocabulary | None = None,
    metrics: Sequence[str] = (),
) -> str:
  """Registers local files as a SeqIO task; returns its name.

  Calling it again with the same arguments changes nothing.

  Args:
    name: name of the task; letters, digits, `_`, `.` and `:`.
    train: .jsonl or .tfrecord file, glob pattern, or list of them.
    validation: the same for the validation split.
    test: the same for the test split.
    data: instead of the three: files that are split here, by a stable hash of
      the inputs, so that equal inputs are in one split.
    split_fractions: shares of train, validation and test of `data`; sum 1.
    inputs_key: key (JSON) or feature (TFRecord) of the inputs.
    targets_key: key of the targets.
    choices: answers to choose from, the same for all rows: the task is
      evaluated by rank classification.
    choices_key: instead of `choices`: key of each row's own list of choices.
    length_normalized: compare the choices by log-likelihood per token.
    vocabulary: of inputs and targets; ours of bytes if not given. Gin files of
      models give that of the base.
    metrics: metrics of tasks without choices, see `generation_metrics`.

  Raises:
    errors.UserError: bad arguments; a file that is missing, empty or broken
      (the message has the line).
  """
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  if not registration.is_new([name], dict(locals())):
    return name
  keys = local_files.Keys(
      inputs_key, targets_key, choices_key, _checked(choices, choices_key)
  )
  ranked = bool(choices) or choices_key is not None
  if ranked:
    metric_fns = [_rank_accuracy(length_normalized, metrics)]
  else:
    metric_fns = generation_metrics(metrics)
  read = functools.partial(
      local_files.read,
      keys=keys,
      check_target=functools.partial(metrics_lib.check_target, metric_fns),
  )
  files = {'train': train, 'validation': validation, 'test': test}
  files = {split: paths for split, paths in files.items() if paths}
  splits = _read_splits(name, read, files, data, split_fractions)
  registration.add_rows(
      registration.TaskRecord(
          name,
          lambda: splits,
          vocabulary,
          files=tuple(
              file
              for paths in (files.values() if files else [data])
              for file in local_files.find(paths)
          ),
      ),
      tuple(splits),
      metric_fns=metric_fns,
      ranked=ranked,
  )
  return name


def register_mixture(
    name: str, tasks: Sequence[str], rates: Sequence[float] | None = None
) -> str:
  """Registers a mixture of tasks; returns its name.

  In gin, tasks of your own are scoped references, and names work too:
  `tasks = [@first/local.register_task(), 'past_tense']`.

  Args:
    name: name of the mixture.
    tasks: names of tasks.
    rates: mixing rates; if not given, the number of training rows, at most
      65,536 (examples-proportional mixing, arXiv 1910.10683, 3.5.2).

  Raises:
    errors.UserError: unknown task, or rates that do not fit.
  """
  settings = {'tasks': list(tasks), 'rates': rates and list(rates)}
  if not registration.is_new([name], settings):
    return name
  if not tasks:
    raise errors.UserError(
        f'The mixture {name!r} has no tasks.', 'local.register_mixture.tasks',
        'Give some.',
    )
  for task in tasks:
    catalog.get_task_or_mixture(task)
  if rates is None:
    rates = [_num_train_rows(task) for task in tasks]
  if len(rates) != len(tasks) or min(rates) <= 0:
    raise errors.UserError(
        f'The {len(tasks)} tasks of {name!r} need as many rates, all above 0, '
        f'not {list(rates)}.', 'local.register_mixture.rates',
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
    errors.UserError: an unknown metric, or its library is not installed.
  """
  if isinstance(names, str):
    names = [names]
  return [metrics_lib.by_name(name) for name in names or ('exact_match',)]


def _rank_accuracy(
    length_normalized: bool, names: Sequence[str]
) -> metrics_lib.MetricFn:
  if names:
    raise errors.UserError(
        'Choices are scored by rank classification (accuracy).',
        _argument('metrics'), 'Leave metrics out.',
    )

  def rank_accuracy(targets, scores):
    return ranking.rank_accuracy(targets, scores, length_normalized)

  return rank_accuracy


def _argument(name: str) -> str:
  return f'local.register_task.{name}'


def _checked(
    choices: Sequence[str], choices_key: str | None
) -> tuple[str, ...]:
  """Returns the choices of all rows."""
  if choices and choices_key is not None:
    raise errors.UserError(
        f'Both choices = {choices!r} and choices_key = {choices_key!r} are '
        'given.', _argument('choices'), 'Give one of them.',
    )
  if choices and not local_files.are_choices(choices):
    raise errors.UserError(
        'Choices must be two or more different strings, not '
        f'{choices!r}.', _argument('choices'),
    )
  return tuple(choices)


def _read_splits(
    name: str, read, files: Mapping[str, Paths], data: Paths | None, fractions
) -> _Rows:
  """Reads the rows of each split, from its own files or from common ones."""
  if bool(files) == bool(data):
    raise errors.UserError(
        f'The task {name!r} needs either train, validation and test files or '
        'data, which is then split by split_fractions.', _argument('data'),
    )
  if data:
    shares = _shares(fractions)  # Raises before files are read.
    return _split(read(data), shares)
  splits = {split: read(paths) for split, paths in files.items()}
  _warn_of_leaks(splits, name)
  return splits


def _shares(fractions: Sequence[float]) -> dict[str, float]:
  if (
      len(fractions) != len(rows_lib.SPLITS)
      or min(fractions) < 0
      or abs(sum(fractions) - 1) > 1e-6
  ):
    raise errors.UserError(
        'The fractions must be three shares (train, validation, test) with '
        f'sum 1, not {fractions!r}.', _argument('split_fractions'),
    )
  return dict(zip(rows_lib.SPLITS, fractions, strict=True))


def _split(
    all_rows: Sequence[rows_lib.Row], shares: Mapping[str, float]
) -> _Rows:
  """Splits rows by a stable hash of their inputs."""
  splits = {split: [] for split, share in shares.items() if share > 0}
  for row in all_rows:
    # Uniform in [0, 1).
    point = rows_lib.stable_hash(f'split/{row.inputs}') / 2**64
    for split in splits:
      chosen = split
      point -= shares[split]
      if point < 0:
        break
    splits[chosen].append(row)
  for split, rows in splits.items():
    if not rows:
      raise errors.UserError(
          f'{len(all_rows)} rows are too few for a {split} split of '
          f'{shares[split]:.0%}.', _argument('split_fractions'),
          'Give more rows, other split_fractions, or a file for each split.',
      )
  return splits


def _warn_of_leaks(splits: _Rows, task: str) -> None:
  trained = {row.inputs for row in splits.get('train', ())}
  for split, rows in splits.items():
    shared = sum(row.inputs in trained for row in rows)
    if split != 'train' and shared:
      logging.getLogger(__name__).warning(
          'Task %s: %d of %d inputs of %s are also in train.',
          task, shared, len(rows), split,
      )

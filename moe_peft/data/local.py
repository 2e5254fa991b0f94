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

from absl import logging
import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import lexicon
from moe_peft.data import local_files
from moe_peft.data import metrics as metrics_lib
from moe_peft.data import registration
from moe_peft.data import rows as rows_lib
from moe_peft.data import vocabularies

Paths = str | Sequence[str]

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
    vocabulary: of inputs and targets; ours of bytes if not given.
    metrics: metrics of tasks without choices, out of 'exact_match' (used if
      none is given), 'accuracy', 'numeric_accuracy' (the last number of a
      text), 'option_accuracy' (its last letter A to E), 'token_f1', 'rouge',
      'bleu'. The results table shows the first.

  Raises:
    errors.UserError: bad arguments; a file that is missing, empty or broken
      (the message has the line).
  """
  settings = {k: v for k, v in locals().items() if k != 'vocabulary'}
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  settings['vocabulary'] = vocabulary
  if registration.is_registered([name], settings):
    return name
  has_choices = bool(choices) or choices_key is not None
  metric_fns, primary = metric_functions(
      metrics, has_choices, length_normalized, name
  )
  keys = local_files.Keys(
      inputs=inputs_key,
      targets=targets_key,
      choices=choices_key,
      fixed_choices=_fixed_choices(choices, choices_key, name),
  )
  check_target = functools.partial(metrics_lib.check_target, metric_fns)
  files = {'train': train, 'validation': validation, 'test': test}
  files = {split: paths for split, paths in files.items() if paths}
  if bool(files) == bool(data):
    raise errors.UserError(
        f'register_task {name!r}: give either train, validation and test files '
        'or data, which is then split by split_fractions.'
    )

  def read(paths):
    return local_files.read(paths, keys, check_target)

  if data:
    fractions = _fractions(split_fractions, name)
    split_rows = _split(read(data), fractions, name)
  else:
    split_rows = {split: read(paths) for split, paths in files.items()}
    _warn_of_leaks(split_rows, name)
  registration.add_task(
      registration.TaskRecord(
          name=name,
          kind='local',
          primary_metric=primary,
          rows_fn=lambda: split_rows,
          vocabulary=vocabulary,
      ),
      splits=tuple(split_rows),
      metric_fns=metric_fns,
      has_choices=has_choices,
  )
  registration.remember([name], settings)
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
  if registration.is_registered([name], settings):
    return name
  if not tasks:
    raise errors.UserError(f'register_mixture {name!r}: give some tasks.')
  for task in tasks:
    catalog.get_task_or_mixture(task)
  if rates is None:
    rates = [_num_train_rows(task, name) for task in tasks]
  if len(rates) != len(tasks) or min(rates) <= 0:
    raise errors.UserError(
        f'register_mixture {name!r}: {len(tasks)} tasks need as many rates, '
        f'all above 0; got {list(rates)}.'
    )
  seqio.MixtureRegistry.add(name, list(zip(tasks, rates, strict=True)))
  registration.remember([name], settings)
  return name


def _num_train_rows(task: str, mixture: str) -> int:
  record = registration.RECORDS.get(task)
  count = len(record.rows_fn().get('train', ())) if record else 0
  if not count:
    raise errors.UserError(
        f'register_mixture {mixture!r}: the number of training rows of '
        f'{task!r} is not known; set rates.'
    )
  return min(count, _RATE_LIMIT)


def metric_functions(
    names: Sequence[str], has_choices: bool, length_normalized: bool, task: str
):
  """Returns the metric functions and the name of the primary value.

  Raises:
    errors.UserError: unknown metrics, or metrics for choices.
  """
  if has_choices:
    if names:
      raise errors.UserError(
          f'register_task {task!r}: choices are scored by rank classification '
          '(accuracy); leave metrics out.'
      )

    def rank_accuracy(targets, scores):
      return metrics_lib.rank_accuracy(targets, scores, length_normalized)

    return [rank_accuracy], 'accuracy'
  if isinstance(names, str):
    names = [names]
  found = [metrics_lib.by_name(name) for name in names or ('exact_match',)]
  return [function for function, _ in found], found[0][1]


def _fixed_choices(choices, choices_key, task: str) -> tuple[str, ...]:
  if not choices:
    return ()
  if choices_key is not None:
    raise errors.UserError(
        f'register_task {task!r}: give choices or choices_key, not both.'
    )
  if (
      isinstance(choices, str)
      or not all(isinstance(c, str) and c.strip() for c in choices)
      or len(set(choices)) < max(2, len(choices))
  ):
    raise errors.UserError(
        f'register_task {task!r}: choices must be two or more different '
        f'strings, not {choices!r}.'
    )
  return tuple(choices)


def _fractions(fractions: Sequence[float], task: str) -> dict[str, float]:
  if (
      len(fractions) != len(lexicon.SPLITS)
      or min(fractions) < 0
      or abs(sum(fractions) - 1) > 1e-6
  ):
    raise errors.UserError(
        f'register_task {task!r}: split_fractions must be three shares (train, '
        f'validation, test) with sum 1, not {fractions!r}.'
    )
  return dict(zip(lexicon.SPLITS, fractions, strict=True))


def _split(
    all_rows: Sequence[rows_lib.Row], fractions: Mapping[str, float], task: str
) -> dict[str, list[rows_lib.Row]]:
  """Splits rows by a stable hash of their inputs."""
  splits = {split: [] for split, share in fractions.items() if share > 0}
  for row in all_rows:
    # Uniform in [0, 1).
    point = lexicon.stable_hash(f'split/{row.inputs}') / 2**64
    for split in splits:
      chosen = split
      point -= fractions[split]
      if point < 0:
        break
    splits[chosen].append(row)
  for split, rows in splits.items():
    if not rows:
      raise errors.UserError(
          f'register_task {task!r}: {len(all_rows)} rows are too few for a '
          f'{split} split of {fractions[split]:.0%}. Give more rows, other '
          'split_fractions, or a file for each split.'
      )
  return splits


def _warn_of_leaks(split_rows: Mapping[str, Sequence[rows_lib.Row]], task: str):
  trained = {row.inputs for row in split_rows.get('train', ())}
  for split, rows in split_rows.items():
    shared = sum(row.inputs in trained for row in rows)
    if split != 'train' and shared:
      logging.warning(
          'Task %s: %d of %d inputs of %s are also in train.',
          task, shared, len(rows), split,
      )

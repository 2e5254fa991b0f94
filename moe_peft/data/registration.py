# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one way to register SeqIO tasks; remembers what was registered."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import re
from typing import Any

import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import lengths
from moe_peft.data import metrics
from moe_peft.data import ranking
from moe_peft.data import rows as rows_lib
from moe_peft.data import span_corruption as span_corruption_lib

RowsFn = Callable[[], Mapping[str, Sequence[rows_lib.Row]]]


@dataclasses.dataclass(frozen=True)
class TaskRecord:
  """A task of rows in memory, as the tables and the checks know it.

  Attributes:
    name: Name in SeqIO's registry.
    rows_fn: Returns split -> rows; reads nothing before it is called.
    vocabulary: Vocabulary of inputs and targets.
    span_corruption: None for tasks that ask and answer.
    files: The user's files from which the rows were read, if there are any, by
      their split.
    inputs_eos: Whether inputs end with the end of a sequence.
    too_long: One of `lengths.POLICIES`, for long examples.
    chat: How conversations become tokens, a `chat.Chat`, if rows are some.
  """

  name: str
  rows_fn: RowsFn
  vocabulary: seqio.Vocabulary
  span_corruption: span_corruption_lib.SpanCorruption | None = None
  files: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  inputs_eos: bool = True
  too_long: str = lengths.ERROR
  chat: Any = None

  @functools.cached_property
  def sizes(self) -> dict[str, list[dict[str, int]]]:
    """Tokens of the features of every row, ends included, by split."""
    return {
        split: [self.size(row) for row in rows]
        for split, rows in self.rows_fn().items()
    }

  def size(self, row: rows_lib.Row) -> dict[str, int]:
    """Tokens of the features of a row, ends included."""
    if self.span_corruption:
      inputs, targets = self.span_corruption.lengths(
          self._num_tokens(row.targets)
      )
    else:
      inputs = self._num_tokens(row.inputs)
      targets = max(map(self._num_tokens, row.choices or (row.targets,)))
    return {'inputs': inputs + self.inputs_eos, 'targets': targets + 1}

  def text(self, row: rows_lib.Row) -> str:
    """All of a row, as decoding its tokens gives it, white space apart."""
    return row.inputs + row.targets

  @property
  def longest(self) -> dict[str, tuple[int, str]]:
    """Most tokens of `inputs` and `targets`, ends included, and their place."""
    longest = {'inputs': (0, ''), 'targets': (0, '')}
    rows = self.rows_fn()
    for split, sizes in self.sizes.items():
      for row, size in zip(rows[split], sizes, strict=True):
        for name, tokens in size.items():
          kind = lengths.KIND[name]
          if tokens > longest[kind][0]:
            longest[kind] = tokens, row.place
    return longest

  @functools.cached_property
  def content(self) -> str:
    """SHA-256 of all rows by split, in any order, and of what is done to them.
    """
    done = self.inputs_eos, self.too_long
    digest = hashlib.sha256(repr(done).encode())
    for split, rows in sorted(self.rows_fn().items()):
      digest.update(split.encode())
      digest.update(b''.join(sorted(
          hashlib.sha256(repr(row.content).encode()).digest() for row in rows
      )))
    return digest.hexdigest()

  def _num_tokens(self, text: str) -> int:
    if isinstance(self.vocabulary, seqio.ByteVocabulary):
      return len(text.encode())
    return len(self.vocabulary.encode(text))

  def dataset(
      self, split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    """The rows of a split as a pipeline whose iterators can be saved."""
    rows = rows_lib.of_split(self.rows_fn(), split, shuffle_files, seed)
    features = {'targets': tf.constant([row.targets for row in rows])}
    if self.span_corruption:
      fixed = [rows_lib.stable_hash(row.targets) % 2**31 for row in rows]
      if split == 'train':
        fixed = [-1] * len(rows)
      features[span_corruption_lib.NOISE_SEED] = tf.constant(fixed, tf.int32)
    else:
      features['inputs'] = tf.constant([row.inputs for row in rows])
    if rows[0].choices:
      del features['targets']
      features['choices'] = tf.ragged.constant([row.choices for row in rows])
      features['label'] = tf.constant(
          [row.choices.index(row.targets) for row in rows], tf.int32
      )
      features['training'] = tf.fill([len(rows)], split == 'train')
    features |= rows_lib.id_column(rows)
    return tf.data.Dataset.from_tensor_slices(features)


RECORDS: dict[str, TaskRecord] = {}
# Settings that tasks and mixtures were registered with: gin may ask repeatedly.
_settings: dict[str, Mapping[str, Any]] = {}


def is_new(names: Sequence[str], settings: Mapping[str, Any]) -> bool:
  """Whether tasks or mixtures have yet to be registered.

  The settings are remembered: a later call with the same ones says no.

  Args:
    names: All that one call registers.
    settings: What decides how they are made.

  Raises:
    errors.UserError: A name cannot be used: it is no name, something else has
      it, or it was registered with other settings.
  """
  taken = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  new = True
  for name in names:
    if not isinstance(name, str) or not re.fullmatch(r'[\w.:]+', name):
      raise errors.UserError(
          f'{name!r} is no name of a task.', name,
          'Use letters, digits, "_", "." and ":".',
      )
    if name not in taken:
      continue
    earlier = _settings.get(name)
    if earlier is None or earlier.keys() != settings.keys():
      raise errors.UserError(
          f'There is already another task or mixture named {name!r}.', name,
          'Choose another name.',
      )
    changed = [key for key in settings if earlier[key] != settings[key]]
    if changed:
      raise errors.UserError(
          f'{name!r} was registered before with other arguments: '
          f'{_listed(earlier, changed)}, now {_listed(settings, changed)}.',
          name, 'Use one name for one task in a process.',
      )
    new = False
  if new:
    _settings.update(dict.fromkeys(names, settings))
  return new


def settings(name: str) -> Mapping[str, Any]:
  """What a task or mixture was registered with; nothing if others did it."""
  return _settings.get(name, {})


def _listed(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
  return ', '.join(f'{key} = {settings[key]!r}' for key in keys)


def add_task(
    name: str,
    source: seqio.DataSource,
    *,
    vocabulary: seqio.Vocabulary,
    metric_fns: Sequence[metrics.MetricFn],
    before: Sequence[Callable[..., Any]] = (),
    after: Sequence[Callable[..., Any]] = (
        seqio.preprocessors.append_eos_after_trim,
    ),
    ranked: bool = False,
    inputs_eos: bool = True,
    targets_eos: bool = True,
) -> None:
  """Registers a SeqIO task with the text features `inputs` and `targets`.

  Args:
    name: Name of the task.
    source: Where its rows are from.
    vocabulary: Vocabulary of inputs and targets.
    metric_fns: SeqIO metric functions.
    before: Preprocessors of the texts.
    after: Preprocessors of the tokens.
    ranked: Rank classification: all rows have answer choices.
    inputs_eos: Inputs end with the end of a sequence.
    targets_eos: Targets do.
  """
  expand = [ranking.rank_classification] if ranked else []
  seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
          *before, *expand, seqio.preprocessors.tokenize, *after
      ],
      output_features={
          'inputs': seqio.Feature(vocabulary, add_eos=inputs_eos),
          'targets': seqio.Feature(vocabulary, add_eos=targets_eos),
      },
      metric_fns=list(metric_fns),
      postprocess_fn=ranking.rank_target if ranked else None,
  )


def add_rows(record: TaskRecord, splits: Sequence[str], **options: Any) -> None:
  """Registers a task of rows in memory.

  Args:
    record: The task; its rows are read when a dataset is asked for.
    splits: Names of the splits that `record.rows_fn` returns.
    **options: Options of `add_task`.
  """
  corruption = record.span_corruption
  steps = [corruption.corrupt] if corruption else []
  add_task(
      record.name,
      # Without counts SeqIO does not cache the rows in the pipeline, which
      # would put them into every saved iterator.
      seqio.FunctionDataSource(record.dataset, splits=tuple(splits)),
      vocabulary=record.vocabulary,
      after=[
          *steps,
          lengths.Fit(record.too_long),
          seqio.preprocessors.append_eos_after_trim,
      ],
      inputs_eos=record.inputs_eos,
      **options,
  )
  RECORDS[record.name] = record


def cached_source(splits: Sequence[str], register: str) -> seqio.DataSource:
  """The source of tasks that are read from a cache only.

  Args:
    splits: Names of the splits.
    register: The function that registers them, as gin writes it.
  """

  def no_rows(split: str, shuffle_files: bool, seed: int | None = None):
    del split, shuffle_files, seed
    raise errors.UserError(
        'These tasks are read from a cache only, which is not in use.',
        'USE_CACHED_TASKS',
        'Set USE_CACHED_TASKS = True and name the cache, with '
        f'--seqio_additional_cache_dirs (T5X) or {register}.cache_dir (gin); '
        '`python -m moe_peft data prepare` makes one.',
    )

  return seqio.FunctionDataSource(no_rows, splits=tuple(splits))

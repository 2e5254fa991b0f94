# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes SeqIO tasks out of rows in memory; remembers what was registered."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.data import lexicon
from moe_peft.data import metrics
from moe_peft.data import preprocessors
from moe_peft.data import rows as rows_lib

RowsFn = Callable[[], Mapping[str, Sequence[rows_lib.Row]]]


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Settings of span corruption, arXiv 1910.10683, 3.1.4.

  Attributes:
    noise_density: share of the tokens that are dropped.
    mean_noise_span_length: mean length of a dropped span, in tokens.
  """

  noise_density: float
  mean_noise_span_length: float


@dataclasses.dataclass(frozen=True)
class TaskRecord:
  """What the tables and the checks know about a task.

  Attributes:
    name: name in SeqIO's registry.
    kind: kind of task, for tables ('inflection', 'phonology', ...).
    primary_metric: the value that results tables show.
    rows_fn: returns split -> rows; reads nothing before it is called.
    vocabulary: of inputs and targets.
    span_corruption: None for tasks that ask and answer.
  """

  name: str
  kind: str
  primary_metric: str
  rows_fn: RowsFn
  vocabulary: seqio.Vocabulary
  span_corruption: SpanCorruption | None = None

  @functools.cached_property
  def max_lengths(self) -> dict[str, int]:
    """Most tokens of `inputs` and `targets` in any split, EOS included."""
    lengths = {'inputs': 0, 'targets': 0}
    for rows in self.rows_fn().values():
      for row in rows:
        if self.span_corruption:
          sizes = preprocessors.corrupted_lengths(
              self._num_tokens(row.targets),
              **dataclasses.asdict(self.span_corruption),
          )
        else:
          sizes = (
              self._num_tokens(row.inputs),
              max(map(self._num_tokens, row.choices or (row.targets,))),
          )
        for feature, size in zip(lengths, sizes, strict=True):
          lengths[feature] = max(lengths[feature], size + 1)
    return lengths

  def _num_tokens(self, text: str) -> int:
    if isinstance(self.vocabulary, seqio.ByteVocabulary):
      return len(text.encode())
    return len(self.vocabulary.encode(text))


RECORDS: dict[str, TaskRecord] = {}
# With what tasks and mixtures were registered: gin may ask several times.
_settings: dict[str, Mapping[str, Any]] = {}


def is_registered(names: Sequence[str], settings: Mapping[str, Any]) -> bool:
  """Whether tasks or mixtures were registered before with just these settings.

  Args:
    names: all that one call registers.
    settings: what decides how they are made; see `remember`.

  Raises:
    errors.UserError: a name cannot be used: it is no name, or something else
      has it.
  """
  registered = False
  for name in names:
    if not isinstance(name, str) or not re.fullmatch(r'[\w.:]+', name):
      raise errors.UserError(
          f'Bad task name {name!r}: use letters, digits, "_", "." and ":".'
      )
    if name not in seqio.TaskRegistry.names() and (
        name not in seqio.MixtureRegistry.names()
    ):
      continue
    earlier = _settings.get(name)
    if earlier is None or earlier.keys() != settings.keys():
      raise errors.UserError(
          f'There is already another task or mixture named {name!r}; choose '
          'another name.'
      )
    changed = [key for key in settings if earlier[key] != settings[key]]
    if changed:
      raise errors.UserError(
          f'{name!r} was registered before with other arguments: '
          f'{_listed(earlier, changed)}, now {_listed(settings, changed)}. One '
          'process has one task of a name.'
      )
    registered = True
  return registered


def _listed(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
  return ', '.join(f'{key} = {settings[key]!r}' for key in keys)


def remember(names: Sequence[str], settings: Mapping[str, Any]) -> None:
  """Notes with what names were registered, for `is_registered`."""
  _settings.update(dict.fromkeys(names, settings))


def _dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, record
) -> tf.data.Dataset:
  """The rows of a split as a pipeline whose iterators can be saved."""
  rows = list(record.rows_fn()[split])
  if shuffle_files:
    order = np.random.default_rng(seed).permutation(len(rows))
    rows = [rows[i] for i in order]
  features = {'targets': tf.constant([row.targets for row in rows])}
  if record.span_corruption:
    fixed = [lexicon.stable_hash(row.targets) % 2**31 for row in rows]
    if split == 'train':
      fixed = [-1] * len(rows)
    features[preprocessors.NOISE_SEED] = tf.constant(fixed, tf.int32)
  else:
    features['inputs'] = tf.constant([row.inputs for row in rows])
  if rows[0].choices:
    del features['targets']
    features['choices'] = tf.ragged.constant([row.choices for row in rows])
    features['label'] = tf.constant(
        [row.choices.index(row.targets) for row in rows], tf.int32
    )
    features['training'] = tf.fill([len(rows)], split == 'train')
  return tf.data.Dataset.from_tensor_slices(features)


def add_task(
    record: TaskRecord,
    *,
    splits: Sequence[str],
    metric_fns: Sequence[Callable[..., Mapping[str, float]]],
    has_choices: bool,
    inputs_eos: bool = True,
) -> seqio.Task:
  """Registers a SeqIO task with features `inputs` and `targets`.

  Args:
    record: the task; its rows are read when a dataset is asked for.
    splits: names of the splits that `record.rows_fn` returns.
    metric_fns: SeqIO metric functions.
    has_choices: rank classification: all rows have answer choices.
    inputs_eos: inputs end with the end of a sequence too.
  """
  features = {
      'inputs': seqio.Feature(record.vocabulary, add_eos=inputs_eos),
      'targets': seqio.Feature(record.vocabulary, add_eos=True),
  }
  steps = [seqio.preprocessors.tokenize]
  if has_choices:
    steps.insert(0, preprocessors.rank_classification)
  if record.span_corruption:
    steps.append(
        functools.partial(
            preprocessors.corrupt_spans,
            **dataclasses.asdict(record.span_corruption),
        )
    )
  task = seqio.TaskRegistry.add(
      record.name,
      # Without counts SeqIO does not cache the rows in the pipeline, which
      # would put them into every saved iterator.
      source=seqio.FunctionDataSource(
          functools.partial(_dataset, record=record), splits=tuple(splits)
      ),
      preprocessors=[*steps, seqio.preprocessors.append_eos_after_trim],
      output_features=features,
      metric_fns=list(metric_fns),
      postprocess_fn=metrics.rank_target if has_choices else None,
  )
  RECORDS[record.name] = record
  return task

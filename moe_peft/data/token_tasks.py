# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks of rows that are tokens already: chats, and pairs of answers.

SeqIO gets their ids; nothing is tokenized or ended behind them.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
import seqio
import tensorflow as tf

from moe_peft.data import converters
from moe_peft.data import lengths
from moe_peft.data import metrics
from moe_peft.data import registration
from moe_peft.data import rows as rows_lib


@dataclasses.dataclass(frozen=True)
class TokenRecord(registration.TaskRecord):
  """A task of `rows.TokenRow`s, all with the same features."""

  def size(self, row: rows_lib.TokenRow) -> dict[str, int]:
    """Tokens of the features of a row."""
    return {name: len(ids) for name, ids in row.features.items()}

  def text(self, row: rows_lib.TokenRow) -> str:
    """A row up to its first end of a sequence, where decoding stops."""
    ids = [i for of_feature in row.features.values() for i in of_feature]
    return self.vocabulary.decode(ids)

  def dataset(
      self, split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    """The rows of a split as a pipeline whose iterators can be saved."""
    rows = rows_lib.of_split(self.rows_fn(), split, shuffle_files, seed)
    features = {
        name: _ragged([row.features[name] for row in rows])
        for name in rows[0].features
    }
    if any(row.weights for row in rows):
      features[converters.WEIGHTS] = _ragged([
          row.weights or (1,) * len(row.features['targets']) for row in rows
      ])
    if 'targets' in features:  # What metrics compare answers with.
      features['targets_pretokenized'] = tf.constant([
          self.vocabulary.decode(list(row.features['targets'])) for row in rows
      ])
    features |= rows_lib.id_column(rows)
    return tf.data.Dataset.from_tensor_slices(features)


def _ragged(lists: Sequence[Sequence[int]]) -> tf.RaggedTensor:
  flat = np.concatenate([np.asarray(x, np.int32) for x in lists])
  return tf.RaggedTensor.from_row_lengths(flat, [len(x) for x in lists])


def add(
    record: TokenRecord,
    splits: Sequence[str],
    metric_fns: Sequence[metrics.MetricFn],
) -> None:
  """Registers a task of tokens.

  Args:
    record: The task.
    splits: Names of the splits that `record.rows_fn` returns.
    metric_fns: SeqIO metric functions.
  """
  (first, *_), *_ = record.rows_fn().values()
  seqio.TaskRegistry.add(
      record.name,
      source=seqio.FunctionDataSource(record.dataset, splits=tuple(splits)),
      preprocessors=[lengths.Fit(record.too_long)],
      output_features={
          name: seqio.Feature(record.vocabulary, add_eos=False)
          for name in first.features
      },
      metric_fns=list(metric_fns),
  )
  registration.RECORDS[record.name] = record

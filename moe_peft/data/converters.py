# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""From the ids of tasks to the features of models, for both engines.

Here the ids of data sets become the model's (models/dataset_ids.py), and here
is decided, once, which tokens are real and which are padding.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.core import tokens
from moe_peft.models import dataset_ids

Features = Mapping[str, tf.Tensor]
# A feature of tasks: for each token of the targets, whether it counts in the
# loss. What is appended to the targets, the end of the sequence, counts.
WEIGHTS = 'targets_loss_weights'
_INT32 = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


def of_model(model: Any, pack: bool = False) -> seqio.FeatureConverter:
  """Returns the converter that makes a model's batches.

  Args:
    model: A `LanguageModel`.
    pack: Whether several short examples share one row.

  Raises:
    errors.UserError: If an encoder-decoder has a vocabulary in which the id 0,
      its padding, is an ordinary token.
  """
  if 'encoder_input_tokens' not in model.features:
    return RowConverter(model.output_vocabulary, model.bos_id, pack=pack)
  for vocabulary in (model.input_vocabulary, model.output_vocabulary):
    if dataset_ids.offset(vocabulary):
      raise errors.UserError(
          'An encoder-decoder pads with the id 0, which is an ordinary token '
          f'of {vocabulary.tokenizer_file}.', 'VOCABULARY',
          'Take the tokenizer that the model was trained with.',
      )
  return EncoderDecoderConverter(pack=pack)


def with_ids(lengths: Mapping[str, int], pack: bool) -> dict[str, int]:
  """Lengths of model features, with that of the ids of examples.

  Args:
    lengths: Lengths of the features without it.
    pack: Whether several examples share a row: as many as it has targets.
  """
  room = lengths['decoder_target_tokens'] if pack else 1
  return {**lengths, tokens.EXAMPLE_IDS: room}


def fill(rows: Mapping[str, Any]) -> tuple[float, float]:
  """How full packed rows are, those of the encoder included.

  Args:
    rows: A batch of model features.

  Returns:
    Percent of the positions that hold tokens, and examples a row.
  """
  segments = [
      np.asarray(x) for name, x in rows.items() if name.endswith('_segment_ids')
  ]
  used = sum((x > 0).sum() for x in segments) / sum(x.size for x in segments)
  return 100 * float(used), float(segments[0].max(axis=1).mean())


class _WithExampleIds(seqio.FeatureConverter):
  """Keeps the ids of examples, of data that give some (example_ids.py).

  They are a feature that SeqIO passes through and packs, one number an example.
  """

  def __call__(
      self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if tokens.EXAMPLE_IDS not in ds.element_spec:
      return super().__call__(ds, task_feature_lengths)
    lengths = {
        k: x for k, x in task_feature_lengths.items() if k != tokens.EXAMPLE_IDS
    }
    of_model = with_ids(self.get_model_feature_lengths(lengths), self.pack)
    lengths[tokens.EXAMPLE_IDS] = of_model[tokens.EXAMPLE_IDS]
    self._passthrough_features = {tokens.EXAMPLE_IDS: _INT32}
    try:
      return super().__call__(ds, lengths)
    finally:
      self._passthrough_features = {}


class EncoderDecoderConverter(_WithExampleIds, seqio.EncDecFeatureConverter):
  """SeqIO's, for tasks that say which targets count (`WEIGHTS`) too."""

  def _convert_features(
      self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if WEIGHTS in ds.element_spec:  # Zeros of columns are padding to SeqIO.
      ds = ds.map(lambda row: {**row, 'weights': 1 + row[WEIGHTS]})
      length = task_feature_lengths['targets']
      task_feature_lengths = {**task_feature_lengths, 'weights': length}
    return super()._convert_features(ds, task_feature_lengths)

  def _convert_example(self, features: Features) -> Features:
    row = dict(super()._convert_example(features))
    if 'weights' in features:
      row['decoder_loss_weights'] *= tf.maximum(features['weights'] - 1, 0)
    return row


class RowConverter(_WithExampleIds, seqio.PrefixLMFeatureConverter):
  """Inputs and targets in one row, for decoders.

  The features are those of SeqIO's converter, in ids of the model, and always
  `decoder_segment_ids`: 0 is padding, whatever the ids are; unpacked rows are
  1 elsewhere. `decoder_loss_weights` are 1 at targets, unless the task says
  which of them count (`WEIGHTS`). Tasks may have no inputs.

  With `bos_id` 1, inputs 5 6, targets 7 2 and lengths of 3 and 3:

      decoder_input_tokens      1 5 6 7 0 0
      decoder_target_tokens     5 6 7 2 0 0
      decoder_loss_weights      0 0 1 1 0 0
      decoder_segment_ids       1 1 1 1 0 0
      decoder_causal_attention  1 1 1 0 0 0

  Without a `bos_id`:

      decoder_input_tokens      5 6 7 0 0 0
      decoder_target_tokens     6 7 2 0 0 0
      decoder_loss_weights      0 1 1 0 0 0
  """

  MODEL_FEATURES = {
      **seqio.PrefixLMFeatureConverter.MODEL_FEATURES,
      'decoder_segment_ids': _INT32,
  }

  def __init__(
      self, vocabulary: seqio.Vocabulary, bos_id: int | None, **kwargs: Any
  ):
    """Makes a converter.

    Args:
      vocabulary: The model's.
      bos_id: The model's id that rows begin with, or None. An example that has
        it already gets no other.
      **kwargs: As of SeqIO's converter.
    """
    self._vocabulary, self._first_id = vocabulary, bos_id
    self._columns: list[str] = []
    super().__init__(**kwargs)

  # Lengths and shapes are known without the file of the vocabulary.
  @functools.cached_property
  def _offset(self) -> int:
    return dataset_ids.offset(self._vocabulary)

  @property
  def _begin(self) -> int | None:
    return None if self._first_id is None else self._first_id + self._offset

  @property
  def bos_id(self) -> int:
    """What SeqIO puts at the beginning of rows."""
    return self._begin or 0

  def __call__(
      self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if 'inputs' not in task_feature_lengths:
      nothing = tf.zeros([0], tf.int32)
      ds = ds.map(lambda example: {**example, 'inputs': nothing})
      task_feature_lengths = {'inputs': 0, **task_feature_lengths}
    return super().__call__(ds, task_feature_lengths)

  def _convert_features(self, ds, task_feature_lengths):
    # What SeqIO's columns cannot say has columns of its own; without them the
    # pipeline is SeqIO's, and its saved iterators can be restored.
    self._columns = ['first'] if self._begin is None else []
    self._columns += ['weights'] if WEIGHTS in ds.element_spec else []
    return super()._convert_features(ds, task_feature_lengths)

  def _concat_task_feature_lengths(self, task_feature_lengths):
    lengths = super()._concat_task_feature_lengths(task_feature_lengths)
    return {**lengths, **dict.fromkeys(self._columns, lengths['targets'])}

  def _concat_and_add_masks(self, features: Features) -> Features:
    """Joins inputs and targets; zeros of columns are padding to SeqIO."""
    row = dict(super()._concat_and_add_masks(features))
    if 'weights' in self._columns:
      row['weights'] = 1 + _weights(row['targets'], features)
    if self._begin is None:
      first = row['targets'][0]
      row = _without_first(row)
      row['first'] = tf.fill(tf.shape(row['targets']), first)
    else:
      begun = row['targets'][0] == self._begin
      row = tf.cond(begun, lambda: _without_first(row), lambda: row)
    return row

  def _convert_example(self, features: Features) -> Features:
    row = dict(super()._convert_example(features))
    real = tf.cast(features['targets'] != 0, tf.int32)
    if 'first' in self._columns:
      if self.pack:
        starts = features['targets_positions'] == 0
      else:
        starts = tf.range(tf.size(real)) == 0
      row['decoder_input_tokens'] = tf.where(
          starts & (real > 0), features['first'], row['decoder_input_tokens']
      )
    if 'weights' in self._columns:
      row['decoder_loss_weights'] *= features['weights'] - 1
    for name in ('decoder_input_tokens', 'decoder_target_tokens'):
      row[name] = tf.maximum(row[name] - self._offset, 0)
    return {'decoder_segment_ids': real, **row}

  def get_model_feature_lengths(
      self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    lengths = super().get_model_feature_lengths(task_feature_lengths)
    return {**lengths, 'decoder_segment_ids': lengths['decoder_target_tokens']}


def _weights(tokens: tf.Tensor, features: Features) -> tf.Tensor:
  """Whether tokens count, with zeros in the place of the inputs."""
  before, given = tf.size(features['inputs']), features[WEIGHTS]
  missing = tf.maximum(tf.size(tokens) - before - tf.size(given), 0)
  given = tf.pad(given, [[0, missing]], constant_values=1)
  return tf.pad(given, [[before, 0]])[: tf.size(tokens)]


def _without_first(row: Features) -> Features:
  """A row whose first token is read, and not predicted."""
  row = {
      name: column if name == tokens.EXAMPLE_IDS else column[1:]
      for name, column in row.items()
  }
  is_input = row['inputs_width'] > 0
  for name in ('inputs_width', 'inputs_width_add_pos'):
    row[name] = tf.where(is_input, row[name] - 1, row[name])
  return row

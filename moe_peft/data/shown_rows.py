# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of a task as a model sees them, and how long they are."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np
import seqio

from moe_peft.data import catalog
from moe_peft.data import lengths as lengths_lib
from moe_peft.data import registration
from moe_peft.data import token_texts
from moe_peft.models import dataset_ids

# Of tasks that are not read into memory as many examples are measured.
_MEASURED = 1000


@dataclasses.dataclass(frozen=True)
class Piece:
  """A token of a row.

  Attributes:
    text: What it adds to the text; of special tokens their name.
    special: Whether it stands for no text.
    learned: Whether the loss counts it.
    segment: Number of its example in the row, from 1.
  """

  text: str
  special: bool
  learned: bool
  segment: int


def rows(
    name: str,
    model: Any,
    converter: seqio.FeatureConverter,
    lengths: Mapping[str, int],
    split: str,
) -> Iterator[dict[str, list[Piece]]]:
  """Yields rows of a split, in order; tokens by stack, padding left out.

  Args:
    name: Task or mixture.
    model: A `LanguageModel`.
    converter: Makes its batches; an example may be several rows.
    lengths: Those of the task's features.
    split: Its name.
  """
  dataset = seqio.get_dataset(
      name, lengths, converter, dataset_split=split, shuffle=False,
      num_epochs=1, use_cached=catalog.reads_cache(name),
  )
  if dataset.element_spec['decoder_target_tokens'].shape.rank > 1:
    dataset = dataset.unbatch()
  for features in dataset.as_numpy_iterator():
    found = {}
    if 'encoder_input_tokens' in features:
      tokens = features['encoder_input_tokens']
      found['inputs'] = _pieces(
          model.input_vocabulary, tokens, np.zeros_like(tokens),
          features.get('encoder_segment_ids', tokens > 0),
      )
    tokens = features['decoder_target_tokens']
    targets = (
        tokens, features['decoder_loss_weights'],
        features.get('decoder_segment_ids', tokens > 0),
    )
    if found:
      found['targets'] = _pieces(model.output_vocabulary, *targets)
    else:
      read = features['decoder_input_tokens']
      found['row'] = _pieces(
          model.output_vocabulary, *_with_first(read, *targets)
      )
    yield found


def _with_first(read, tokens, weights, segments):
  """Adds what the model reads first in each example, and never predicts."""
  starts = np.flatnonzero(np.diff(segments, prepend=0) > 0)
  insert = lambda values, first: np.insert(values, starts, first)
  return (
      insert(tokens, read[starts]), insert(weights, 0),
      insert(segments, segments[starts]),
  )


def _pieces(vocabulary, tokens, weights, segments) -> list[Piece]:
  real = np.asarray(segments) > 0
  ids = tokens[real] + dataset_ids.offset(vocabulary)
  special = token_texts.special_texts(vocabulary)
  return [
      Piece(text, int(token) in special, bool(weight), int(segment))
      for text, token, weight, segment in zip(
          token_texts.texts(vocabulary, ids), ids, weights[real],
          np.asarray(segments)[real], strict=True,
      )
  ]


def lengths_of(
    task: str, lengths: Mapping[str, int], split: str
) -> tuple[dict[str, np.ndarray], int, int]:
  """How long the examples of a task are, and what becomes of long ones.

  Args:
    task: Its name.
    lengths: TASK_FEATURE_LENGTHS.
    split: Its name.

  Returns:
    Tokens of each example by feature, and the numbers of examples that are cut
    and that are left out.
  """
  record = registration.RECORDS.get(task)
  if record is not None:
    sizes, policy = record.sizes[split], record.too_long
  else:  # SeqIO cuts what does not fit.
    sizes, policy = list(_measured(task, split)), lengths_lib.CUT
  cut, dropped = lengths_lib.too_long(sizes, policy, lengths)
  found = {name: np.array([size[name] for size in sizes]) for name in sizes[0]}
  return found, cut, dropped


def _measured(task: str, split: str) -> Iterator[dict[str, int]]:
  of = seqio.get_mixture_or_task(task)
  dataset = of.get_dataset(
      None, split, shuffle=False, use_cached=catalog.reads_cache(task)
  )
  for example in dataset.take(_MEASURED).as_numpy_iterator():
    yield {
        name: len(example[name])
        for name in of.output_features
        if name in lengths_lib.KIND
    }

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of cached examples, all of one size; the last one is filled up.

A dataset is SeqIO's: pairs of an index and model features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from moe_peft.core import tokens

# Indices of the examples, and model features with rows of filling behind them.
IndexedBatch = tuple[list[int], dict[str, np.ndarray]]
# Lengths of short batches are multiples of it.
LENGTH_STEP = 32


def whole(dataset: tf.data.Dataset, size: int) -> Iterator[IndexedBatch]:
  """Yields batches of full length, in order."""
  for indices, batch in dataset.batch(size).as_numpy_iterator():
    yield _filled(indices, batch, size)


def short(dataset: tf.data.Dataset, size: int) -> Iterator[IndexedBatch]:
  """Yields batches of rows of like length, with little padding behind them."""
  rows = sorted(dataset.as_numpy_iterator(), key=lambda row: _length(row[1]))
  for start in range(0, len(rows), size):
    indices, features = zip(*rows[start : start + size], strict=True)
    stacked = jax.tree.map(lambda *x: np.stack(x), *features)
    indices, batch = _filled(indices, stacked, size)
    yield indices, {
        name: x if name == tokens.EXAMPLE_IDS
        else x[:, : _kept(batch, name.partition('_')[0])]
        for name, x in batch.items()
    }


def _filled(
    indices: Sequence[int], batch: Mapping[str, np.ndarray], size: int
) -> IndexedBatch:
  fill = size - len(indices)
  return [int(i) for i in indices], {
      name: np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
      for name, x in batch.items()
      if x.ndim > 1
  }


def _length(features: Mapping[str, Any]) -> int:
  """Number of tokens of an example, in all its stacks."""
  stacks = {name.partition('_')[0] for name in features}
  return sum(
      np.count_nonzero(tokens.in_batch(features, stack))
      for stack in stacks & {'encoder', 'decoder'}
  )


def _kept(batch: Mapping[str, np.ndarray], stack: str) -> int:
  """Positions of a batch up to its last token, in whole steps.

  Each length is a program to compile, so there are few.
  """
  used = np.flatnonzero(tokens.in_batch(batch, stack).any(axis=0))
  last = used[-1] + 1 if used.size else 1
  return -(-last // LENGTH_STEP) * LENGTH_STEP

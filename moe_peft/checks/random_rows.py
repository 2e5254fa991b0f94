# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The task of checks: rows of random ids."""

from collections.abc import Mapping, Sequence
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from moe_peft.data import rows as row_lib
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop

TASK = 'moe_peft_check'


def register(
    lengths: Mapping[str, int],
    vocab_size: int,
    example_ids: Sequence[str] | int | None = None,
) -> None:
  """Registers the task `TASK`: random ids, at most half of a row long.

  Args:
    lengths: Most tokens of each feature, times two.
    vocab_size: Number of tokens.
    example_ids: EXAMPLE_IDS, which rows have in turn.
  """

  def rows(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    rng = np.random.default_rng(0)
    drawn = [
        {
            name: rng.integers(
                2, vocab_size, rng.integers(1, max(length // 2, 1) + 1)
            ).tolist()
            for name, length in lengths.items()
        }
        for _ in range(64)
    ]
    ragged = {
        name: tf.ragged.constant([row[name] for row in drawn], tf.int32)
        for name in lengths
    }
    if example_ids is not None:
      ids = example_ids
      ids = range(ids) if isinstance(ids, int) else ids
      turns = itertools.islice(itertools.cycle(ids), len(drawn))
      ragged[row_lib.EXAMPLE_ID] = tf.constant(list(turns))
    return tf.data.Dataset.from_tensor_slices(ragged).map(
        lambda row: {name: x for name, x in row.items()}
    )

  seqio.TaskRegistry.remove(TASK)
  seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(rows, splits=['train']),
      preprocessors=[],
      output_features={
          name: seqio.Feature(
              seqio.PassThroughVocabulary(vocab_size), add_eos=False
          )
          for name in lengths
      },
  )


def batch(
    experiment: experiment_lib.Experiment,
) -> dict[str, jax.Array]:
  """The first batch that a run of the experiment would train on."""
  features = next(loop.train_data(experiment))
  return {name: jnp.asarray(np.asarray(x)) for name, x in features.items()}

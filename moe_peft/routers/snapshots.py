# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the routing of a few held-out rows, while training goes on.

The rows stay the same, so differences between snapshots are the router's own:
no data, dropout or capacity is in them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moe_peft.core import observe
from moe_peft.core import partitioning
from moe_peft.core import tokens as tokens_lib
from moe_peft.models import dataset_ids
from moe_peft.routers import usage

ROWS_PER_TASK = 2
# Tasks beyond that are left out: snapshots are to stay small.
MAX_TASKS = 12


class Snapshots:
  """The rows of a run, and what its routers do with them."""

  def __init__(
      self,
      model: Any,
      batches: Mapping[str, Mapping[str, np.ndarray]],
      mesh: jax.sharding.Mesh,
  ):
    """Chooses the rows.

    Args:
      model: A `LanguageModel`.
      batches: Model features of a few rows, by task.
      mesh: Where the model runs.
    """
    self._model, self._mesh = model, mesh
    kept = {task: _rows(batches[task]) for task in list(batches)[:MAX_TASKS]}
    self._tasks = np.repeat(
        list(kept), [len(next(iter(x.values()))) for x in kept.values()]
    )
    self._batch = jax.tree.map(
        lambda *x: _fill(np.concatenate(x), mesh.size), *kept.values()
    )
    self._compiled = jax.jit(
        self._sown, in_shardings=(None, partitioning.batch_sharding(mesh))
    )

  def _sown(self, params, batch):
    sown = usage.combine_weights(self._model, params, batch)
    return {site: weights for site, (weights, _) in sown.items()}

  def weights(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Combine weights of the rows, empty if no adapter has a router.

    Args:
      params: Flat parameters.

    Returns:
      <float>[rows, length, num_experts] by site.
    """
    with partitioning.use_mesh(self._mesh):
      if not self._compiled.eval_shape(params, self._batch):
        return {}
      weights = jax.device_get(self._compiled(params, self._batch))
    rows = len(self._tasks)
    return {site: x[:rows] for site, x in observe.choices(weights).items()}

  def rows(self) -> list[tuple[str, dict[str, list[str]]]]:
    """Task and, by stack, pieces of text of each row, padding left out.

    A position of a decoder is named by the token that it reads, not by the
    one that it predicts.
    """
    model, batch = self._model, self._batch
    rows = []
    for index, task in enumerate(self._tasks):
      row = {}
      if 'encoder_input_tokens' in batch:
        valid = tokens_lib.in_batch(batch, 'encoder')[index]
        tokens = batch['encoder_input_tokens'][index][valid]
        row['encoder'] = pieces(model.input_vocabulary, tokens)
      valid = tokens_lib.in_batch(batch, 'decoder')[index]
      tokens = batch['decoder_input_tokens'][index][valid]
      vocabulary = model.output_vocabulary
      tokens = tokens + dataset_ids.offset(vocabulary)
      row['decoder'] = pieces(vocabulary, tokens, model.start_id)
      rows.append((str(task), row))
    return rows


def pieces(
    vocabulary: Any, tokens: Sequence[int], start_id: int | None = None
) -> list[str]:
  """The text that each token adds to what is before it.

  Args:
    vocabulary: A `seqio.Vocabulary`.
    tokens: Their ids, as in data sets.
    start_id: The id that a decoder reads first.

  Returns:
    As many texts; the end of a sequence, and what a decoder begins with, have
    names of their own.
  """
  ends = dataset_ids.stop_ids(vocabulary)
  tokens = [int(token) for token in tokens]
  texts, before, start = [], '', 0
  for end, token in enumerate(tokens, start=1):
    starts = not texts and token == start_id
    if starts or token in ends:  # Decoding stops there.
      texts.append('⟨start⟩' if starts else '⟨end⟩')
      before, start = '', end
      continue
    text = vocabulary.decode(tokens[start:end])
    texts.append(text.removeprefix(before))
    before = text
  return texts


def _rows(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The rows that are not filling."""
  real = tokens_lib.in_batch(batch, 'decoder').any(axis=1)
  return {name: x[real] for name, x in batch.items()}


def _fill(rows: np.ndarray, multiple: int) -> np.ndarray:
  fill = -len(rows) % multiple
  return np.pad(rows, [(0, fill)] + [(0, 0)] * (rows.ndim - 1))

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which task uses which expert: mean combine weights on held-out examples."""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any

import jax
import numpy as np

from moe_peft.core import observe
from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.routers import statistics

_PERMUTATIONS = 20


def has_routers(
    model: Any,
    params: Mapping[str, Any],
    batch: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
) -> bool:
  """Whether any adapter has a router; arguments as of `measure`."""
  with partitioning.use_mesh(mesh):
    return bool(
        jax.eval_shape(functools.partial(_by_row, model), params, batch)
    )


def measure(
    model: Any,
    params: Mapping[str, Any],
    batches: Sequence[tuple[str, Mapping[str, Any]]],
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[], None],
) -> tuple[list[str], dict[str, dict[str, Any]]]:
  """Measures what the routers of a model do with each task.

  Args:
    model: A `LanguageModel`.
    params: Flat parameters.
    batches: (task, model features), teacher-forced.
    mesh: Where the model runs.
    on_batch: Called after each batch.

  Returns:
    The tasks, and by site: `load`, the mean combine weights,
    <float>[num_tasks, num_experts]; `entropy` and `left_behind`,
    <float>[num_tasks]; `chance`, see `_chance`.
  """
  rows: dict[str, list[Mapping[str, Any]]] = {}
  with partitioning.use_mesh(mesh):
    run = jax.jit(
        functools.partial(_by_row, model),
        in_shardings=(None, partitioning.batch_sharding(mesh)),
    )
    for task, batch in batches:
      rows.setdefault(task, []).append(jax.device_get(run(params, batch)))
      on_batch()
  tasks = list(rows)
  # {site: {name: [num_rows, ...]}} by task.
  sums = {
      task: jax.tree.map(lambda *x: np.concatenate(x), *parts)
      for task, parts in rows.items()
  }

  def means(site, name):
    parts = [sums[task][site] for task in tasks]
    return np.array([x[name].sum(0) / max(x['tokens'].sum(), 1) for x in parts])

  loads = observe.choices({x: means(x, 'load') for x in sums[tasks[0]]})
  return tasks, {
      site: {
          'load': load,
          **{n: means(site, n) for n in ('entropy', 'left_behind')},
          'chance': _chance([sums[task][site] for task in tasks]),
      }
      for site, load in loads.items()
  }


def combine_weights(
    model: Any, params: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Runs a model on a batch and returns `observe.combine_weights` of it.

  Args:
    model: A `LanguageModel`.
    params: Flat parameters.
    batch: Model features, teacher-forced.
  """
  _, collections = model.apply(
      trainable.unflatten(params), batch, mutable=(observe.COLLECTION,)
  )
  return observe.combine_weights(
      collections.get(observe.COLLECTION, {}), batch
  )


def _by_row(model, params, batch):
  """{site: sums of `observe.row_sums`, one for each row}."""
  sown = combine_weights(model, params, batch)
  return {site: observe.row_sums(*values) for site, values in sown.items()}


def _chance(by_task) -> float:
  """95th percentile of the information that random tasks would show.

  Rows count by their tokens, padding rows not at all; NaN for one task.
  """
  if len(by_task) < 2:
    return math.nan
  loads = observe.existing(np.concatenate([x['load'] for x in by_task]))
  tasks = np.repeat(np.arange(len(by_task)), [len(x['load']) for x in by_task])
  real = np.concatenate([x['tokens'] for x in by_task]) > 0
  chance = statistics.permuted_information(
      loads[real], tasks[real], _PERMUTATIONS
  )
  return float(np.quantile(chance, 0.95))

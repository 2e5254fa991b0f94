# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which task uses which expert: mean combine weights on held-out examples."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
from pathlib import Path
import re
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
  """Whether any adapter has a router; arguments as of `write_routing`."""
  with partitioning.use_mesh(mesh):
    return bool(
        jax.eval_shape(functools.partial(_by_row, model), params, batch)
    )


def write_routing(
    path: Path,
    model: Any,
    params: Mapping[str, Any],
    batches: Sequence[tuple[str, Mapping[str, Any]]],
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[], None],
) -> None:
  """Writes `routing.json` of a model that has routers.

  Args:
    path: The file.
    model: A `LanguageModel`.
    params: Flat parameters.
    batches: (task, model features), teacher-forced.
    mesh: Where the model runs.
    on_batch: Called after each batch.
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
  sites = sorted(sums[tasks[0]], key=natural)

  def means(task, site, name):
    of_site = sums[task][site]
    total = of_site[name].sum(0) / max(of_site['tokens'].sum(), 1)
    return total.tolist()

  value = {
      'tasks': tasks,
      'sites': [
          describe(site, sums[tasks[0]][site]['load'].shape[-1])
          for site in sites
      ],
      'load': [[means(t, s, 'load') for s in sites] for t in tasks],
      'entropy': [[means(t, s, 'entropy') for s in sites] for t in tasks],
      'left_behind': [
          [means(t, s, 'left_behind') for s in sites] for t in tasks
      ],
      'chance': [_chance([sums[t][site] for t in tasks]) for site in sites],
  }
  path.write_text(json.dumps(value), encoding='utf-8')


def _by_row(model, params, batch):
  """{site: sums of `observe.row_sums`, one for each row}."""
  _, collections = model.apply(
      trainable.unflatten(params), batch, mutable=(observe.COLLECTION,)
  )
  sown = observe.combine_weights(
      collections.get(observe.COLLECTION, {}), batch
  )
  return {site: observe.row_sums(*values) for site, values in sown.items()}


def _chance(by_task) -> float | None:
  """95th percentile of the information that random tasks would show.

  Rows count by their tokens, padding rows not at all; None for one task.
  """
  if len(by_task) < 2:
    return None
  loads = np.concatenate([x['load'] for x in by_task])
  tasks = np.repeat(np.arange(len(by_task)), [len(x['load']) for x in by_task])
  real = np.concatenate([x['tokens'] for x in by_task]) > 0
  chance = statistics.permuted_information(
      loads[real], tasks[real], _PERMUTATIONS
  )
  return float(np.quantile(chance, 0.95))


def natural(site: str) -> list[Any]:
  """Sorts `layers_2` before `layers_10`."""
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', site)]


def describe(site: str, num_experts: int) -> dict[str, Any]:
  """A site as the files of a run name it."""
  stack, layer, name = site.split('/', maxsplit=2)
  return {
      'path': site,
      'stack': stack,
      'layer': int(layer.removeprefix('layers_')),
      'name': name,
      'num_experts': num_experts,
  }

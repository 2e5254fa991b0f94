# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which values of an evaluation tables show, and which way is better."""

from collections.abc import Mapping

from moe_peft.data import catalog

Results = Mapping[str, Mapping[str, float]]


def primary_metrics(results: Results) -> dict[str, str]:
  """The value of each task that tables show.

  Args:
    results: Values of tasks by metric.

  Returns:
    Its primary metric, or the first value where somebody else's metric names
    its values differently than itself.

  Raises:
    errors.UserError: For a task without metrics.
  """
  names = {task: catalog.primary_metric(task) for task in results}
  return {
      task: names[task] if names[task] in values else next(iter(values))
      for task, values in results.items()
  }


def lower_is_better(results: Results) -> tuple[str, ...]:
  """The values of which less is better: the loss, and what metrics say.

  Args:
    results: Values of tasks by metric.
  """
  said = {name for task in results for name in catalog.lower_is_better(task)}
  return ('loss', *sorted(said))

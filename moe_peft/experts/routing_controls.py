# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What routing is worth: scores of a run whose routers are overruled (ours).

Experts stay as they were trained; only the weights with which tokens use them
are replaced, at all sites at once. What a score loses when every token gets the
mean weights of its task is what routing within tasks is worth; what it loses
from there to the mean over all tasks is what telling tasks apart is worth.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import seqio

from moe_peft import errors
from moe_peft.core import routing as routing_lib
from moe_peft.core import tokens as tokens_lib
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.evaluation import shown_values
from moe_peft.experts import ablation
from moe_peft.models import language_model
from moe_peft.routers import usage
from moe_peft.runs import controls_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import scoring

# The scope of `_Overruled`'s own parameters.
_WEIGHTS = 'weights_of_tasks'
# About how many rows of each task the mean weights are of.
_ROWS = 256


def measure(
    setup: experiment_lib.Setup, params: Mapping[str, Any], step: int
) -> controls_file.Controls:
  """Evaluates a run as it is, and under each control.

  Args:
    setup: The run; its split for evaluation is scored.
    params: Flat parameters.
    step: Their step.

  Raises:
    errors.UserError: If nothing is routed, experts go by ids that are given,
      or the layers run in a scan.
  """
  setup, tasks = _with_task_ids(setup)
  evaluator, model = scoring.make_evaluator(setup), setup.experiment.model
  sample = evaluator.sample(_ROWS)
  ablation.routers(model, params, sample[0][1])
  seen, sites = usage.measure(model, params, sample, setup.mesh, lambda: None)
  order = [seen.index(task) for task in tasks]
  fixed = fixed_weights({site: x['load'][order] for site, x in sites.items()})
  replaced = _Overruled(model, replace)  # One program serves all of them.
  controls = {
      controls_file.TRAINED: (model, {}),
      controls_file.SHUFFLED: (_Overruled(model, shuffle), {}),
      **{name: (replaced, weights) for name, weights in fixed.items()},
  }
  results = {}
  for name, (overruled, weights) in controls.items():
    own = {f'{_WEIGHTS}/{site}': x for site, x in weights.items()}
    results[name] = scoring.evaluate(
        evaluator, f'({name})', overruled, {**params, **own}, step
    )
  metrics = shown_values.primary_metrics(results[controls_file.TRAINED])
  return controls_file.Controls(
      metrics=metrics,
      scores={
          name: {task: values[task][metric] for task, metric in metrics.items()}
          for name, values in results.items()
      },
      step=step,
      split=setup.experiment.eval_split,
      rows=evaluator.num_examples,
  )


def fixed_weights(
    load: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
  """Weights of each task's tokens, the same for all of them.

  Args:
    load: Mean combine weights, <float>[num_tasks, num_experts] by site.

  Returns:
    <float32>[num_tasks, num_experts] by control and site. A task alone has no
    mean over all tasks and no other task.
  """
  number = len(next(iter(load.values())))
  made: dict[str, Callable[[np.ndarray], np.ndarray]] = {
      controls_file.TASK_MEAN: lambda x: x,
  }
  if number > 1:
    made[controls_file.MEAN] = lambda x: x.mean(0, keepdims=True)
    made[controls_file.OTHER_TASK] = lambda x: np.roll(x, 1, axis=0)
  made[controls_file.UNIFORM] = lambda x: x.mean()
  return {
      name: {
          site: np.array(np.broadcast_to(make(x), x.shape), np.float32)
          for site, x in load.items()
      }
      for name, make in made.items()
  }


def replace(
    weights: Mapping[str, jax.Array],
    site: str,
    call: inspect.BoundArguments,
    route: Callable[[], routing_lib.Routing],
) -> routing_lib.Routing:
  """Gives tokens the weights of their task; see `ablation.apply_overruled`.

  Args:
    weights: <float32>[num_tasks, num_experts] by site.
    site: Path of the site.
    call: The router's arguments; example ids are numbers of tasks.
    route: Routes as trained.
  """
  routing = route()
  if site not in weights:  # One expert, nothing to choose.
    return routing
  ids = _tokens(call).require_example_ids('A control')
  mine = jnp.take(weights[site], jnp.maximum(ids, 0), axis=0)
  return _with_weights(
      routing, jnp.broadcast_to(mine, routing.combine_weights.shape)
  )


def shuffle(
    weights: Mapping[str, jax.Array],
    site: str,
    call: inspect.BoundArguments,
    route: Callable[[], routing_lib.Routing],
) -> routing_lib.Routing:
  """Gives each token the weights of another; arguments as of `replace`.

  The tokens of a batch change places at random, at each site in another way.
  Batches of an evaluation are of one task, padding keeps its place.
  """
  del weights
  routing = route()
  combine = routing.combine_weights
  shape, valid = combine.shape[:2], _tokens(call).valid
  valid = jnp.ones(shape, bool) if valid is None else valid
  valid = jnp.repeat(valid, shape[1] // valid.shape[1], axis=1).reshape(-1)
  key = jax.random.key(zlib.crc32(site.encode()))
  drawn = jax.random.uniform(key, valid.shape)
  # Both have the real tokens first, and padding behind them in its order.
  to = jnp.argsort(~valid, stable=True)
  source = jnp.argsort(jnp.where(valid, drawn, 2.0), stable=True)
  flat = combine.reshape(-1, combine.shape[-1])
  flat = flat.at[to].set(flat[source])
  return _with_weights(routing, flat.reshape(combine.shape))


def _tokens(call: inspect.BoundArguments) -> tokens_lib.Tokens:
  tokens = call.arguments.get('tokens')
  return tokens_lib.Tokens() if tokens is None else tokens


def _with_weights(
    routing: routing_lib.Routing, weights: jax.Array
) -> routing_lib.Routing:
  """The routing with other weights, of any number of experts at a time."""
  return routing.replace(
      combine_weights=weights,
      num_selected=weights.shape[-1],
      expert_capacity=routing.group_size,
  )


class _Overruled:
  """What an evaluator needs of a model, with its routers overruled.

  Its parameters are those of the model, and `_WEIGHTS` by site.
  """

  def __init__(
      self, model: language_model.LanguageModel, change: Callable[..., Any]
  ):
    self._model, self._change = model, change

  def prompts(self, batch: Any) -> jax.Array:
    return self._model.prompts(batch)

  def score(self, params: Any, batch: Any) -> jax.Array:
    return self._apply(self._model.score, params, batch)

  def generate(self, params: Any, *args: Any, **kwargs: Any) -> jax.Array:
    return self._apply(self._model.generate, params, *args, **kwargs)

  def _apply(self, function, params, *args, **kwargs):
    params = dict(params)
    weights = trainable.flatten(params.pop(_WEIGHTS, {}))
    change = functools.partial(self._change, weights)
    return ablation.apply_overruled(function, change, params, *args, **kwargs)


def _with_task_ids(
    setup: experiment_lib.Setup,
) -> tuple[experiment_lib.Setup, list[str]]:
  """The setup whose examples have the number of their task, and the tasks.

  Raises:
    errors.UserError: If its examples have ids already, or are pairs.
  """
  experiment = setup.experiment
  if experiment.example_ids is not None or experiment.objective.row_shape:
    raise errors.UserError(
        'The controls of routing give every example the number of its task, '
        'and the examples of this run have ids of their own, or are pairs.',
        where='EXAMPLE_IDS',
        remedy='Only runs with EXAMPLE_IDS = None on texts have controls.',
    )
  source = catalog.get_task_or_mixture(experiment.eval_name)
  tasks = [task.name for task in seqio.get_subtasks(source)]
  told = dataclasses.replace(experiment, example_ids=tuple(tasks))
  return dataclasses.replace(setup, experiment=told), tasks

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The training step: gradients of the trainable parameters only."""

import collections
from collections.abc import Callable, Mapping
import math
import re
from typing import Any

from clu import metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp
import optax

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import memory
from moe_peft.training import metrics as metrics_lib

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]
_ROUTER = re.compile(r'.*/router(?=/)')


@flax.struct.dataclass
class TrainState:
  """What changes from step to step.

  Attributes:
    step: `<int32>[]`, number of finished steps.
    seed: `<uint32>[]`; dropout of a step draws from seed and step.
    params: Trainable parameters by path.
    opt_state: State of the optimizer; frozen parameters have none.
  """

  step: Array
  seed: Array
  params: Params
  opt_state: Any


TrainStep = Callable[[TrainState, Params, Batch], tuple[TrainState, Params]]


def init_state(setup: experiment_lib.Setup) -> TrainState:
  """Returns the state before the first step."""
  with setup.context():
    opt_state = jax.jit(
        setup.experiment.optimizer.init,
        out_shardings=opt_state_shardings(setup),
    )(setup.trainable)
    step, seed = jax.device_put(
        (jnp.int32(0), jnp.uint32(setup.experiment.seed)),
        partitioning.replicated(setup.mesh),
    )
  return TrainState(step, seed, dict(setup.trainable), opt_state)


def opt_state_shardings(setup: experiment_lib.Setup) -> Any:
  """Moments lie as their parameters do, everything else is replicated."""
  optimizer = setup.experiment.optimizer
  return partitioning.optimizer_layouts(
      optimizer,
      jax.eval_shape(optimizer.init, setup.trainable),
      setup.trainable,
      {name: setup.shardings[name] for name in setup.trainable},
      rest=partitioning.replicated(setup.mesh),
  )


def abstract_state(setup: experiment_lib.Setup) -> TrainState:
  """Shapes, dtypes and shardings of the state."""
  replicated = partitioning.replicated(setup.mesh)
  struct = lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
  )
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated)
  return TrainState(
      step=scalar(jnp.int32),
      seed=scalar(jnp.uint32),
      params={
          k: struct(x, setup.shardings[k]) for k, x in setup.trainable.items()
      },
      opt_state=jax.tree.map(
          struct,
          jax.eval_shape(setup.experiment.optimizer.init, setup.trainable),
          opt_state_shardings(setup),
      ),
  )


def abstract_batch(setup: experiment_lib.Setup) -> dict[str, Any]:
  """Shapes of a batch, as SeqIO's converter makes it of the experiment."""
  experiment = setup.experiment
  objective = experiment.objective
  converter = objective.feature_converter(experiment.model, experiment.packing)
  sharding = partitioning.batch_sharding(setup.mesh)
  rows = (experiment.batch_size, *objective.row_shape)
  lengths = converter.get_model_feature_lengths(
      objective.task_lengths(experiment.task_feature_lengths)
  )
  if experiment.example_ids is not None:
    lengths = converters.with_ids(lengths, experiment.packing)
  return {
      name: jax.ShapeDtypeStruct((*rows, length), jnp.int32, sharding=sharding)
      for name, length in lengths.items()
  }


def check(setup: experiment_lib.Setup) -> None:
  """Traces the loss and the optimizer, which computes nothing.

  Raises:
    errors.UserError: What the gin files describe cannot be trained, or not in
      the memory of the devices.
  """
  experiment, optimizer = setup.experiment, setup.experiment.optimizer

  def step(params, frozen, batch):
    merged = trainable.unflatten({**frozen, **params})
    key = jax.random.key(0)
    experiment.objective.loss(
        experiment.model, merged, batch, key, jnp.ones(()), 1.0, jnp.int32(0)
    )
    return optimizer.update(params, optimizer.init(params), params)

  with setup.context(), errors.refused(
      'The training step that the gin files describe cannot be built.',
      '--gin_file',
  ):
    program, (_, opt_state) = jax.make_jaxpr(step, return_shape=True)(
        setup.trainable, setup.frozen, abstract_batch(setup)
    )
  if not experiment.train_steps:
    return
  devices = list(setup.mesh.devices.flat)
  memory.check_state(setup.trainable, setup.frozen, opt_state, devices)
  rows = experiment.batch_size * math.prod(experiment.objective.row_shape)
  memory.check_products(
      program.jaxpr, rows, 'BATCH_SIZE', devices, experiment.num_microbatches
  )


def make_train_step(setup: experiment_lib.Setup) -> TrainStep:
  """Compiles one optimizer step.

  Returns:
    `(state, frozen, batch) -> (state, metrics)`; the state is donated.
  """
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(setup))
  return jax.jit(
      _step_fn(setup.experiment),
      donate_argnums=0,
      in_shardings=(
          shardings,
          {k: setup.shardings[k] for k in setup.frozen},
          partitioning.batch_sharding(setup.mesh),
      ),
      out_shardings=(shardings, partitioning.replicated(setup.mesh)),
  )


def lower(setup: experiment_lib.Setup) -> jax.stages.Lowered:
  """Traces the step of a setup, also one of `experiment.lay_out`."""
  # Optax makes small arrays here, which cannot lie on devices that are absent.
  step = make_train_step(setup)
  state, batch = abstract_state(setup), abstract_batch(setup)
  with setup.context():
    return step.lower(state, setup.frozen, batch)


def _step_fn(experiment: experiment_lib.Experiment) -> TrainStep:
  """One step as a pure function.

  A step whose loss, gradient or new parameters are not finite is skipped:
  it changes nothing, and its metrics count nowhere.
  """
  model, optimizer = experiment.model, experiment.optimizer

  def step_fn(state, frozen, batch):
    rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
    grads, metrics = _accumulate(experiment, state, frozen, batch, rng)
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    norm = optax.global_norm(grads)
    metrics['grad_norm'] = clu_metrics.Average(norm, jnp.ones(()))
    metrics['router_grads'] = _router_shares(grads, norm)
    metrics['tokens'] = clu_metrics.Average(
        model.num_tokens(batch).astype(jnp.float32), jnp.ones(())
    )
    # A norm overflows long before a parameter does: no step leaves parameters
    # that the next one can only turn into NaN.
    finite = jnp.isfinite(metrics['loss'].total + norm) & jnp.isfinite(
        optax.global_norm(params)
    )
    params, opt_state, metrics = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state, metrics),
        (state.params, state.opt_state, jax.tree.map(jnp.zeros_like, metrics)),
    )
    skipped = jnp.where(finite, 0, 1)
    metrics['skipped'] = metrics_lib.Skipped(
        jnp.ones_like(skipped), skipped, skipped
    )
    return state.replace(
        step=state.step + 1, params=params, opt_state=opt_state
    ), metrics

  return step_fn


def _router_shares(grads: Params, norm: Array) -> dict[str, Any]:
  """How much of the gradient's norm each router has, by its path."""
  routers = collections.defaultdict(list)
  for path, grad in grads.items():
    if match := _ROUTER.match(path):
      routers[match[0]].append(grad)
  return {
      path: clu_metrics.Average(
          optax.global_norm(of_router) / jnp.maximum(norm, 1e-30),
          jnp.ones(()),
      )
      for path, of_router in routers.items()
  }


def _accumulate(
    experiment: experiment_lib.Experiment,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    rng: Array,
) -> tuple[Params, dict[str, Any]]:
  """Gradients and metrics of a batch, in `num_microbatches` parts.

  The loss of every part is divided by the normalizer of the whole batch, its
  target tokens, so that the number of parts does not change the gradient (up to
  dropout and losses of the adapters, which are means over parts).
  """
  objective = experiment.objective
  num_microbatches = experiment.num_microbatches
  normalizer = objective.normalizer(batch)

  def loss(params, microbatch, rng, share):
    merged = trainable.unflatten({**frozen, **params})
    return objective.loss(
        experiment.model, merged, microbatch, rng, normalizer, share, state.step
    )

  grad_fn = jax.grad(loss, has_aux=True)
  if num_microbatches == 1:
    return grad_fn(state.params, batch, rng, 1.0)

  # Rows are dealt in turn, so that every part lies on all devices.
  parts = jax.tree.map(
      lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1),
      dict(batch),
  )
  rngs = jax.random.split(rng, num_microbatches)
  part_fn = lambda part, rng: grad_fn(
      state.params, part, rng, 1 / num_microbatches
  )
  zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(part_fn, jax.tree.map(lambda x: x[0], parts), rngs[0]),
  )
  total, _ = jax.lax.scan(
      lambda total, x: (jax.tree.map(jnp.add, total, part_fn(*x)), None),
      zeros,
      (parts, rngs),
  )
  return total

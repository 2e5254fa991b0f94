# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step that is ready to be compiled, of either engine."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax

from moe_peft.core import quantized
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import remat
from moe_peft.training import train_step

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class StepProgram:
  """A training step on a mesh, with shapes in the place of arrays.

  All shapes have shardings; the devices need not exist.

  Attributes:
    lower: Traces the step.
    mesh: The mesh.
    frozen: The frozen parameters, by path.
    trained: The parameters that train, by path.
    optimizer: State of the optimizer, and what else is kept between steps.
    batch: Features of the model.
    donates_frozen: Whether the step returns the frozen parameters too.
    tokens: Positions of inputs and targets in all rows of a step.
    choices: What a user decides, by the name that reports have for it.
    fit: Chooses what is left to it, as REMAT_POLICY = 'auto' does, for so many
      bytes, and compiles; None where nothing is left.
  """

  lower: Callable[[], jax.stages.Lowered]
  mesh: jax.sharding.Mesh
  frozen: Shapes
  trained: Shapes
  optimizer: Any
  batch: Shapes
  donates_frozen: bool
  tokens: int
  choices: Mapping[str, Any]
  fit: Callable[[float | None], tuple[Any, jax.stages.Compiled]] | None = None

  def compiled(self, limit: float | None) -> tuple[Any, jax.stages.Compiled]:
    """The program that fits into so many bytes of a device, and compiled."""
    return self.fit(limit) if self.fit else (self, self.lower().compile())


def of_experiment(
    experiment: experiment_lib.Experiment,
    devices: Sequence[jax.Device],
    change: Callable[[Any], Any] = lambda module: module,
) -> StepProgram:
  """The step of an experiment of the embedded engine.

  Args:
    experiment: The experiment.
    devices: Devices to lay it out on.
    change: Makes another adapted network of the experiment's.

  Raises:
    errors.UserError: As `experiment.lay_out`.
  """
  model = dataclasses.replace(
      experiment.model, module=change(experiment.model.module)
  )
  experiment = dataclasses.replace(experiment, model=model)
  return of_setup(experiment_lib.lay_out(experiment, devices))


def of_setup(setup: experiment_lib.Setup) -> StepProgram:
  """The step of the embedded engine.

  Args:
    setup: An experiment laid out by `experiment.lay_out`.
  """
  experiment = setup.experiment
  state = train_step.abstract_state(setup)

  def fit(limit):
    fitting, compiled = remat.fitting(setup, limit)
    return of_setup(fitting), compiled

  return StepProgram(
      lower=lambda: train_step.lower(setup),
      fit=fit,
      mesh=setup.mesh,
      frozen=setup.frozen,
      trained=state.params,
      optimizer=(state.opt_state, state.step, state.seed),
      batch=train_step.abstract_batch(setup),
      donates_frozen=False,
      tokens=experiment.batch_size * math.prod(
          experiment.objective.row_shape
      ) * sum(experiment.task_feature_lengths.values()),
      choices=choices(
          experiment.model.module,
          batch_size=experiment.batch_size,
          num_microbatches=experiment.num_microbatches,
          packing=experiment.packing,
          task_feature_lengths=experiment.task_feature_lengths,
          base_dtype=experiment.base_dtype,
      ),
  )


def choices(
    module: Any,
    *,
    batch_size: int,
    num_microbatches: int,
    packing: bool,
    task_feature_lengths: Mapping[str, int],
    base_dtype: Any,
) -> dict[str, Any]:
  """What a user decides about memory.

  Args:
    module: The adapted network. What its configuration does not say is None.
    batch_size: Rows of a step.
    num_microbatches: Parts of a step.
    packing: Whether several examples share a row.
    task_feature_lengths: Padded lengths.
    base_dtype: Type of the frozen parameters.
  """
  config = getattr(module.module, 'config', None)
  dtype = getattr(config, 'dtype', None)
  return {
      'batch_size': batch_size,
      'num_microbatches': num_microbatches,
      'packing': packing,
      'task_feature_lengths': dict(task_feature_lengths),
      'base_dtype': quantized.name_of(base_dtype),
      'activation_dtype': dtype and str(jax.numpy.dtype(dtype)),
      'scan_layers': getattr(config, 'scan_layers', None),
      'remat_policy': getattr(config, 'remat_policy', None),
      'attention': getattr(config, 'attention', None),
  }

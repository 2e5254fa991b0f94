# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one run is: everything that gin decides, in one place."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_peft import errors
from moe_peft import gin_types
from moe_peft import gin_values
from moe_peft.core import partitioning
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.models import language_model
from moe_peft.training import base_identity
from moe_peft.training import bases
from moe_peft.training import hosts
from moe_peft.training import initial_params
from moe_peft.training import memory
from moe_peft.training import objectives

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One experiment.

  Attributes:
    model_dir: Where everything is written.
    model: The network with its vocabularies and loss.
    mixture_or_task_name: What it is trained and evaluated on.
    task_feature_lengths: Padded lengths, `{'inputs': n, 'targets': m}`.
    train_steps: Number of optimizer steps; 0 scores the model as it is.
    batch_size: Rows of a step.
    optimizer: Optimizer of the flat trainable parameters.
    learning_rate: The optimizer's schedule, for the logs.
    objective: What is minimized.
    example_ids: Names of the ids that examples have, or their number, for
      methods that are told one, see data/example_ids.py; None: no ids.
    initial_checkpoint_path: The pretrained base, or None to start from
      random parameters.
    trainable_regex: Which parameters train.
    num_microbatches: A step's rows are processed in so many parts.
    packing: Whether several short examples share one row.
    base_dtype: Dtype in which frozen parameters are stored, or 'int8' or 'nf4',
      see quantized.py; what trains is float32.
    seed: Seed of initialization, shuffling and dropout.
    eval_period: Steps between evaluations; 0 evaluates at the end only.
    eval_batch_size: Rows of an evaluation batch.
    eval_examples: Rows of each task at most, None for all. An answer choice
      counts as a row.
    eval_split: Split of the evaluations during and after training.
    eval_mixture_or_task_name: What is evaluated, if it is not what is trained
      on; a mixture may hold tasks out.
    base_results_dir: Where the results of the bare base are kept, so that runs
      that name the same folder evaluate it once; by default `model_dir`.
    checkpoint_period: Steps between checkpoints.
    checkpoints_to_keep: Number of newest checkpoints kept.
    log_period: Steps between rows of metrics.
    max_skipped_steps: Steps without finite loss, gradient and parameters, one
      after another, that end the run.
    allow_changed_data: Whether a run goes on with other data than those of its
      checkpoint.
    allow_changed_method: The same of settings of the method that change no
      shape, see method_settings.py.
    compilation_cache_dir: Where compiled programs are kept between runs; by
      default see compilation.py.
    num_expert_partitions: Size of the mesh axis `expert`.
    num_model_partitions: Size of the mesh axis `model`.
    param_budget: Most parameters to train, see budget.py, or None.
    budget_macro: Macro whose value the budget decides.
    scale: ALPHA / RANK, which then decides ALPHA; None leaves ALPHA as it is.
  """

  model_dir: str
  model: language_model.LanguageModel
  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  train_steps: int
  batch_size: int
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[int], Any]
  objective: objectives.TargetTokens = objectives.TargetTokens()
  example_ids: Sequence[str] | int | None = None
  initial_checkpoint_path: str | None = None
  trainable_regex: str = trainable.ADAPTER_REGEX
  num_microbatches: int = 1
  packing: bool = False
  base_dtype: Any = jnp.float32
  seed: int = 0
  eval_period: int = 0
  eval_batch_size: int = 64
  eval_examples: int | None = None
  eval_split: str = 'validation'
  eval_mixture_or_task_name: str | None = None
  base_results_dir: str | None = None
  checkpoint_period: int = 1000
  checkpoints_to_keep: int = 2
  log_period: int = 20
  max_skipped_steps: int = 10
  allow_changed_data: bool = False
  allow_changed_method: bool = False
  compilation_cache_dir: str | None = None
  num_expert_partitions: int = 1
  num_model_partitions: int = 1
  param_budget: float | None = None
  budget_macro: str | None = None
  scale: float | None = None

  def __post_init__(self):
    # What gin's references have given was not checked with the macros.
    for field in dataclasses.fields(self):
      name, value = field.name.upper(), getattr(self, field.name)
      if not callable(value):  # The schedule has the name of its peak.
        gin_values.check(name, value)
        gin_types.check(value, field.type, name)
    if self.batch_size % self.num_microbatches:
      raise errors.UserError(
          f'{self.num_microbatches} does not divide BATCH_SIZE = '
          f'{self.batch_size}.',
          where='NUM_MICROBATCHES',
      )
    if self.example_ids is not None and self.objective.row_shape:
      raise errors.UserError(
          'Pairs of answers carry no ids of examples.',
          where='EXAMPLE_IDS',
          remedy='Set it to None, and take a method that is told none.',
      )
    known = getattr(self.model, 'target_length', None)
    if known is not None and known < self.task_feature_lengths['targets']:
      raise errors.UserError(
          f'Rows may hold more than {known} targets.',
          where='decoder_only.DecoderOnlyModel.target_length',
          remedy='Make it the length of the targets in TASK_FEATURE_LENGTHS.',
      )

  @property
  def eval_name(self) -> str:
    """The mixture or task that is evaluated."""
    return self.eval_mixture_or_task_name or self.mixture_or_task_name

  @property
  def run_dir(self) -> Path:
    return Path(self.model_dir).expanduser()

  def init(self, rng: jax.Array) -> Params:
    """All variables of a fresh model, `params` and `params_axes`."""
    return self.model.init(rng, self.task_feature_lengths)


@dataclasses.dataclass(frozen=True)
class Setup:
  """An experiment on its devices.

  Attributes:
    experiment: The experiment.
    mesh: The mesh.
    trainable: Fresh trainable parameters by path, sharded; shapes of them where
      `lay_out` made the setup.
    frozen: Frozen parameters by path, sharded, or shapes of them.
    shardings: Sharding of every parameter by path; of a quantized one, those of
      its arrays.
    base: Identity of the base (see `base_identity.of`), as it is in its file.
    axis_names: Logical names of the axes of every parameter by path.
  """

  experiment: Experiment
  mesh: jax.sharding.Mesh
  trainable: Params
  frozen: Params
  shardings: Params
  base: Mapping[str, Any]
  axis_names: Mapping[str, tuple[str, ...]] = dataclasses.field(
      default_factory=dict
  )

  def context(self):
    """Context of every computation: the mesh and the axis rules."""
    return partitioning.use_mesh(self.mesh)


def lay_out(
    experiment: Experiment, devices: Sequence[jax.Device] | None = None
) -> Setup:
  """Builds the model on a mesh, with shapes in the place of arrays.

  Needs no memory and no base, and the devices need not exist: aot.py compiles
  for those of a TPU's topology.

  Args:
    experiment: The experiment.
    devices: The devices, all of `jax.devices()` by default.

  Returns:
    The setup; its parameters are `jax.ShapeDtypeStruct`s, its base is empty.

  Raises:
    errors.UserError: For a rule that matches nothing, or a batch or a parameter
      that the mesh cannot split.
  """
  mesh = partitioning.make_mesh(
      experiment.num_expert_partitions,
      experiment.num_model_partitions,
      devices,
  )
  partitioning.check_batch_size(
      experiment.batch_size // experiment.num_microbatches, mesh,
      'BATCH_SIZE / NUM_MICROBATCHES',
  )
  with partitioning.use_mesh(mesh), errors.refused(
      'The network that the gin files describe cannot be built.', 'MODEL'
  ):
    # The key is part of what is traced: nothing may run on absent devices.
    variables = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    shardings = partitioning.param_shardings(variables['params_axes'], mesh)
  shapes = trainable.flatten(variables['params'])
  partitioning.check_params(
      shapes, {k: shardings[k].spec for k in shapes}, mesh
  )
  trained, frozen = trainable.split(
      shapes, experiment.trainable_regex, required=experiment.train_steps > 0
  )
  names = partitioning.axis_names(variables['params_axes'])
  frozen = {
      k: quantized.split(x, names[k], shardings[k])
      for k, x in quantized.structs(
          frozen, names, experiment.base_dtype
      ).items()
  }
  return Setup(
      experiment=experiment,
      mesh=mesh,
      trainable={
          k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[k])
          for k, x in trained.items()
      },
      frozen=frozen,
      shardings=shardings | jax.tree.map(lambda x: x.sharding, frozen),
      base={},
      axis_names=names,
  )


def prepare(
    experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
    checks: Sequence[Callable[[Setup], None]] = (),
) -> Setup:
  """Builds the model on its devices and restores its base.

  Args:
    experiment: The experiment.
    devices: The devices, all of `jax.devices()` by default.
    checks: What more to check of the shapes, before arrays are made.

  Raises:
    errors.UserError: As `lay_out`, and for a base of another shape, an
      EVAL_BATCH_SIZE that the mesh cannot split, parameters that do not fit
      into memory, and several processes.
  """
  hosts.check_one_process()
  setup = lay_out(experiment, devices)
  memory.check_state(
      setup.trainable, setup.frozen, None, setup.mesh.devices.flat
  )
  partitioning.check_batch_size(
      experiment.eval_batch_size, setup.mesh, 'EVAL_BATCH_SIZE'
  )
  for check in checks:
    check(setup)
  path = experiment.initial_checkpoint_path
  structs = {**setup.trainable, **setup.frozen}
  # It may hold adapters too: experts that were trained elsewhere.
  base = {} if path is None else bases.load_base(path, {
      name: quantized.as_given(x, setup.axis_names.get(name, ()))
      for name, x in structs.items()
  })
  experiment.objective.check(setup.trainable, base)
  missing = [name for name in structs if name not in base]
  bases.check_given(
      path, missing, setup.trainable if experiment.train_steps else ()
  )
  with setup.context():
    values = initial_params.complete(
        base,
        experiment.init,
        jax.random.key(experiment.seed),
        # Quantized on the host; there is no sharding of the floats.
        {
            name: partitioning.replicated(setup.mesh)
            if isinstance(structs[name], quantized.QuantizedArray)
            else setup.shardings[name]
            for name in missing
        },
    )
  place = lambda names: {
      name: _place(setup, name, values[name]) for name in names
  }
  return dataclasses.replace(
      setup,
      trainable=place(setup.trainable),
      frozen=place(setup.frozen),
      base=base_identity.of(path, base),
  )


def _place(setup: Setup, name: str, value: Any) -> Any:
  """A parameter as it is stored, on its devices."""
  struct = setup.trainable.get(name, setup.frozen.get(name))
  if isinstance(struct, quantized.QuantizedArray):
    value = quantized.quantize(
        np.asarray(value), struct.kind, setup.axis_names[name]
    )
  else:
    value = value.astype(struct.dtype)
  return jax.device_put(value, setup.shardings[name])

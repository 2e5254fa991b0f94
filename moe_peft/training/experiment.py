# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one run is: everything that gin decides, in one place."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import jax
import jax.numpy as jnp
import optax

from moe_peft import budget
from moe_peft import checkpoints
from moe_peft import errors
from moe_peft import partitioning
from moe_peft import trainable
from moe_peft.models import language_model

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One experiment.

  Attributes:
    model_dir: Where everything is written.
    model: The network with its vocabularies and loss.
    mixture_or_task_name: What it is trained and evaluated on.
    task_feature_lengths: Padded lengths, `{'inputs': n, 'targets': m}`.
    train_steps: Number of optimizer steps.
    batch_size: Rows of a step.
    optimizer: Optimizer of the flat trainable parameters.
    learning_rate: The optimizer's schedule, for the logs.
    initial_checkpoint_path: The pretrained base, or None to start from
      random parameters.
    trainable_regex: Which parameters train.
    num_microbatches: A step's rows are processed in so many parts.
    packing: Whether several short examples share one row.
    base_dtype: Dtype in which frozen parameters are stored; what trains is
      float32.
    seed: Seed of initialisation, shuffling and dropout.
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
    num_expert_partitions: Size of the mesh axis `expert`.
    num_model_partitions: Size of the mesh axis `model`.
    param_budget: Most parameters to train, see budget.py, or None.
    budget_macro: Macro whose value the budget decides.
  """

  model_dir: str
  model: language_model.LanguageModel
  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  train_steps: int
  batch_size: int
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[int], Any]
  initial_checkpoint_path: Optional[str] = None
  trainable_regex: str = trainable.ADAPTER_REGEX
  num_microbatches: int = 1
  packing: bool = False
  base_dtype: Any = jnp.float32
  seed: int = 0
  eval_period: int = 0
  eval_batch_size: int = 64
  eval_examples: Optional[int] = None
  eval_split: str = 'validation'
  eval_mixture_or_task_name: Optional[str] = None
  base_results_dir: Optional[str] = None
  checkpoint_period: int = 1000
  checkpoints_to_keep: int = 1
  log_period: int = 20
  num_expert_partitions: int = 1
  num_model_partitions: int = 1
  param_budget: Optional[float] = None
  budget_macro: Optional[str] = None

  def __post_init__(self):
    for name in ('train_steps', 'batch_size', 'num_microbatches', 'log_period',
                 'eval_batch_size', 'checkpoint_period'):
      if getattr(self, name) < 1:
        raise errors.UserError(
            f'{name.upper()} = {getattr(self, name)} must be at least 1.'
        )
    if self.batch_size % self.num_microbatches:
      raise errors.UserError(
          f'NUM_MICROBATCHES = {self.num_microbatches} does not divide '
          f'BATCH_SIZE = {self.batch_size}.'
      )

    known = getattr(self.model, 'target_length', None)
    if known is not None and (
        self.packing or known < self.task_feature_lengths['targets']
    ):
      raise errors.UserError(
          f'decoder_only.DecoderOnlyModel.target_length = {known}: rows may '
          'hold more targets. Make it the length of the targets in '
          'TASK_FEATURE_LENGTHS, or None with PACKING.'
      )

  @property
  def eval_name(self) -> str:
    """The mixture or task that is evaluated."""
    return self.eval_mixture_or_task_name or self.mixture_or_task_name

  @property
  def run_dir(self) -> Path:
    return Path(self.model_dir).expanduser()


@dataclasses.dataclass(frozen=True)
class Setup:
  """An experiment on its devices.

  Attributes:
    experiment: The experiment.
    mesh: The mesh.
    trainable: Fresh trainable parameters by path, sharded.
    frozen: Frozen parameters by path, sharded.
    shardings: Sharding of every parameter by path.
    base: Identity of the base (see `checkpoints.fingerprint`).
  """

  experiment: Experiment
  mesh: jax.sharding.Mesh
  trainable: Params
  frozen: Params
  shardings: Params
  base: Mapping[str, Any]

  def context(self):
    """Context of every computation: the mesh and the axis rules."""
    return partitioning.use_mesh(self.mesh)


def apply_budget(experiment: Experiment) -> budget.Choice:
  """Sets the size of the method so that it keeps to `param_budget`.

  The adapters are made by gin when the network is called, so the experiment
  itself stays as it is.

  Raises:
    errors.UserError: If no size does.
  """
  return budget.apply(
      experiment.param_budget,
      lambda: experiment.model.init(
          jax.random.key(0), experiment.task_feature_lengths
      )['params'],
      experiment.trainable_regex,
      experiment.budget_macro,
  )


def prepare(experiment: Experiment) -> Setup:
  """Builds the model on all devices and restores its base.

  Raises:
    errors.UserError: For a rule that matches nothing, a base of another
      shape, a batch or a parameter that the mesh cannot split.
  """
  mesh = partitioning.make_mesh(
      experiment.num_expert_partitions, experiment.num_model_partitions
  )
  partitioning.check_batch_size(
      experiment.batch_size // experiment.num_microbatches, mesh,
      'BATCH_SIZE / NUM_MICROBATCHES',
  )
  partitioning.check_batch_size(
      experiment.eval_batch_size, mesh, 'EVAL_BATCH_SIZE'
  )
  init = lambda rng: experiment.model.init(rng, experiment.task_feature_lengths)
  rng = jax.random.key(experiment.seed)
  with partitioning.use_mesh(mesh):
    abstract = jax.eval_shape(init, rng)
    shapes = trainable.flatten(abstract['params'])
    shardings = partitioning.param_shardings(abstract['params_axes'], mesh)
    partitioning.check_params(
        shapes, {k: shardings[k].spec for k in shapes}, mesh
    )
    trained, _ = trainable.split(shapes, experiment.trainable_regex)
    path = experiment.initial_checkpoint_path
    base = {}
    if path is not None:
      # It may hold adapters too: experts that were trained elsewhere.
      base = checkpoints.load_base(path, shapes)
    # What the checkpoint holds is not initialised; XLA drops the rest.
    fresh = jax.jit(
        lambda rng: {
            k: v
            for k, v in trainable.flatten(init(rng)['params']).items()
            if k not in base
        },
        out_shardings={k: shardings[k] for k in shapes if k not in base},
    )(rng)
  identity = checkpoints.fingerprint(path, base)

  def place(name):
    dtype = shapes[name].dtype if name in trained else experiment.base_dtype
    value = fresh[name] if name in fresh else base[name]
    return jax.device_put(value.astype(dtype), shardings[name])

  placed = {name: place(name) for name in shapes}
  return Setup(
      experiment=experiment,
      mesh=mesh,
      trainable={k: v for k, v in placed.items() if k in trained},
      frozen={k: v for k, v in placed.items() if k not in trained},
      shardings=shardings,
      base=identity,
  )

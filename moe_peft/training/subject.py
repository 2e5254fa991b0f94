# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a plan needs to know of a run, from either engine."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib


@dataclasses.dataclass(frozen=True)
class Subject:
  """A run that is planned.

  Attributes:
    module: The adapted network.
    feature_lengths: Padded lengths, `{'inputs': n, 'targets': m}`.
    batch_size: Rows of a microbatch.
    trainable_regex: Which parameters train.
    init_optimizer: Makes the optimizer's state of the model's variables.
    base_dtype: Type of the frozen parameters.
    partitions: Sizes of the mesh axes `expert` and `model`.
    trains: Whether there are steps, so that something must train.
    told: What the engine tells the network of a batch, beside its tokens.
  """

  module: inject.AdaptedModule
  feature_lengths: Mapping[str, int]
  batch_size: int
  trainable_regex: str
  init_optimizer: Callable[[Mapping[str, Any]], Any]
  base_dtype: Any
  partitions: tuple[int, int]
  trains: bool = True
  told: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def example_ids(batch_size: int, given: Any) -> dict[str, Any]:
  """An id of each row, if EXAMPLE_IDS are given."""
  if given is None:
    return {}
  return {'example_ids': np.ones((batch_size, 1), np.int32)}


def of_experiment(experiment: experiment_lib.Experiment) -> Subject:
  """A run of the embedded engine."""

  trains = experiment.train_steps > 0
  batch_size = experiment.batch_size // experiment.num_microbatches

  def init_optimizer(variables):
    params = trainable.flatten(variables['params'])
    trained, _ = trainable.split(
        params, experiment.trainable_regex, required=trains
    )
    return experiment.optimizer.init(trained)

  return Subject(
      experiment.model.module,
      experiment.task_feature_lengths,
      batch_size,
      experiment.trainable_regex,
      init_optimizer,
      experiment.base_dtype,
      (experiment.num_expert_partitions, experiment.num_model_partitions),
      trains,
      {'step': np.int32(0)} | example_ids(batch_size, experiment.example_ids),
  )

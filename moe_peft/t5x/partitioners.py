# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's partitioners, which say at once what their mesh does not divide.

On a CPU T5X puts all devices of a process on the mesh axis `model`, whatever
it is asked for; there the mesh is that of `moe_peft.core.partitioning`, so a
layout can be tried out before a pod is paid for. On TPUs and GPUs it is T5X's,
which knows how they are wired.
"""

import functools
import math
from typing import Any

import jax
from t5x import partitioning as t5x_partitioning
from t5x.contrib.moe import partitioning as moe_partitioning

from moe_peft.core import partitioning
from moe_peft.core import trainable


class _Checked:
  """What both partitioners do before anything is compiled."""

  _num_expert_partitions = 1

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of all devices.

    Raises:
      errors.UserError: If the partitions do not divide the devices.
    """
    mesh = partitioning.make_mesh(
        self._num_expert_partitions,
        math.prod(self._model_parallel_submesh or (self._num_partitions,)),
    )
    return mesh if jax.default_backend() == 'cpu' else super().mesh

  def get_data_layout(
      self, batch_size: int | None = None, host_index: int | None = None
  ) -> Any:
    """As in T5X.

    Raises:
      errors.UserError: If the mesh cannot split the batch.
    """
    if batch_size:
      partitioning.check_batch_size(batch_size, self.mesh, 'BATCH_SIZE')
    return super().get_data_layout(batch_size, host_index)

  def get_mesh_axes(self, train_state: Any) -> Any:
    """As in T5X.

    Raises:
      errors.UserError: If the mesh cannot split a parameter.
    """
    axes = super().get_mesh_axes(train_state)
    partitioning.check_params(
        trainable.flatten(train_state.state_dict()['target']),
        trainable.flatten(axes.state_dict()['target']),
        self.mesh,
    )
    return axes


class Partitioner(_Checked, t5x_partitioning.PjitPartitioner):
  """T5X's `PjitPartitioner`: batches over `data`, kernels over `model`."""


class ExpertPartitioner(_Checked, moe_partitioning.MoePjitPartitioner):
  """T5X's `MoePjitPartitioner`: experts over the mesh axis `expert`."""

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's partitioners, which say at once what their mesh does not divide.

T5X knows meshes of TPU v2 to v4 only, and on a CPU puts all devices of a
process on the mesh axis `model`, whatever it is asked for. These work on every
slice, on a CPU and on devices that are absent, so a layout can be tried out
before a pod is paid for. On GPUs the mesh is T5X's.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any

import jax
from t5x import partitioning as t5x_partitioning
from t5x.contrib.moe import partitioning as moe_partitioning

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.models import parts
from moe_peft.t5x import settings


class _Checked:
  """What both partitioners do before anything is compiled."""

  _num_expert_partitions = 1
  # Of a slice that is absent; None for those that are there.
  devices: Sequence[jax.Device] | None = None

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of all devices.

    Raises:
      errors.UserError: If the partitions do not divide the devices, or their
        layout.
    """
    devices = self.devices or jax.devices(self._backend)
    tile = self._model_parallel_submesh
    num_model = math.prod(tile or (self._num_partitions,))
    mesh = partitioning.make_mesh(
        self._num_expert_partitions, num_model, devices
    )
    platform = devices[0].platform
    if platform == 'cpu':
      return mesh
    if platform != 'tpu' or self._dcn_mesh_shape:
      return super().mesh
    tiled = _tiled(devices, tile or _tile(devices, num_model))
    if self._num_expert_partitions == 1:
      return tiled
    return jax.sharding.Mesh(
        tiled.devices.reshape(mesh.devices.shape), mesh.axis_names
    )

  def partition(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As in T5X; networks are told of how many devices the mesh is."""
    fn = parts.split_over(self.mesh.size)(fn)
    return super().partition(fn, *args, **kwargs)

  def get_data_layout(
      self, batch_size: int | None = None, host_index: int | None = None
  ) -> Any:
    """As in T5X.

    Raises:
      errors.UserError: If the mesh cannot split the batch.
    """
    if batch_size:
      of_macro = batch_size == settings.macro('BATCH_SIZE')
      partitioning.check_batch_size(
          batch_size,
          self.mesh,
          'BATCH_SIZE' if of_macro else 'utils.DatasetConfig.batch_size',
      )
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


def _tile(devices: Sequence[jax.Device], size: int) -> tuple[int, ...]:
  """The most compact tile of so many chips that divides a slice of TPUs.

  Args:
    devices: All devices of the slice.
    size: Devices of the tile.

  Returns:
    Sides along x, y and z, and devices of a chip.

  Raises:
    errors.UserError: If there is none.
  """
  sides = _sides(devices)
  tiles = [
      tile
      for tile in itertools.product(*(range(1, side + 1) for side in sides))
      if math.prod(tile) == size
      and not any(s % t for s, t in zip(sides, tile, strict=True))
  ]
  if not tiles:
    raise errors.UserError(
        f'No tile of {size} devices divides a slice of '
        f'{"x".join(map(str, sides[:3]))} chips.',
        where='NUM_MODEL_PARTITIONS',
        remedy='Choose a power of two.',
    )
  # The devices of a chip come first, then short ways between chips.
  return min(tiles, key=lambda tile: (-tile[3], max(tile), tile[::-1]))


def _sides(devices: Sequence[jax.Device]) -> tuple[int, ...]:
  coords = map(t5x_partitioning.get_coords, devices)
  return tuple(1 + max(axis) for axis in zip(*coords, strict=True))


def _tiled(
    devices: Sequence[jax.Device], tile: tuple[int, ...]
) -> jax.sharding.Mesh:
  """T5X's mesh of a slice of TPUs, of the axes `data` and `model`."""
  here = [d for d in devices if d.process_index == jax.process_index()]
  return t5x_partitioning.get_mesh(tile, devices, here)

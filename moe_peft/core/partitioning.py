# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes and logical axis rules: how parameters and batches are laid out.

The mesh has three axes, `data`, `expert` and `model`. Examples are split over
`data` and `expert`; experts of an adapter over `expert`; wide axes of the base
(`mlp`, `heads`, `vocab`) over `model`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
from typing import Any

from flax.linen import partitioning as flax_partitioning
import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

from moe_peft import errors
from moe_peft.core import trainable

MESH_AXES = ('data', 'expert', 'model')

# What sets the size of an axis; `data` is the devices that these leave.
_MACROS = {'expert': 'NUM_EXPERT_PARTITIONS', 'model': 'NUM_MODEL_PARTITIONS'}

LOGICAL_AXIS_RULES = (
    ('batch', ('data', 'expert')),
    ('expert', 'expert'),
    ('expert_replicas', 'data'),
    ('vocab', 'model'),
    ('mlp', 'model'),
    ('heads', 'model'),
    ('joined_kv', 'model'),
    ('embed', None),
    ('kv', None),
    ('rank', None),
    ('unmodeled', None),
    ('relpos_buckets', None),
    ('length', None),
    ('layers', None),
)


def make_mesh(
    num_expert_partitions: int = 1,
    num_model_partitions: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh over all devices; what is left over becomes `data`.

  Args:
    num_expert_partitions: Size of the `expert` axis.
    num_model_partitions: Size of the `model` axis.
    devices: The devices, all of `jax.devices()` by default.

  Raises:
    errors.UserError: If the partitions do not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  inner = num_expert_partitions * num_model_partitions
  if len(devices) % inner:
    raise errors.UserError(
        f'The product {inner} does not divide the {len(devices)} devices.',
        where=' * '.join(_MACROS.values()),
        remedy=f'Choose divisors of {len(devices)}.',
    )
  shape = (len(devices) // inner, num_expert_partitions, num_model_partitions)
  return Mesh(np.asarray(devices).reshape(shape), MESH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(('data', 'expert')))


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, binding: str) -> None:
  """Raises errors.UserError if the mesh cannot split the batch evenly."""
  # Meshes of T5X need not have an axis `expert`.
  shards = mesh.shape['data'] * mesh.shape.get('expert', 1)
  if batch_size % shards:
    raise errors.UserError(
        f'{batch_size} rows are not a multiple of {shards}, the number of '
        f'parts into which the mesh {dict(mesh.shape)} splits them.',
        where=binding,
        remedy=f'Use {math.ceil(batch_size / shards) * shards}.',
    )


def check_params(
    shapes: Mapping[str, Any],
    specs: Mapping[str, PartitionSpec | None],
    mesh: Mesh,
) -> None:
  """Checks that the mesh splits all parameters evenly.

  Args:
    shapes: Parameters by path, arrays or their shapes.
    specs: How each is split; None: not at all.
    mesh: The mesh.

  Raises:
    errors.UserError: If one cannot be split.
  """
  for path, x in shapes.items():
    for size, axes in zip(x.shape, specs[path] or (), strict=False):
      names = (axes,) if isinstance(axes, str) else axes or ()
      parts = math.prod(mesh.shape[name] for name in names)
      if size % parts:
        raise errors.UserError(
            f'{parts} does not divide the {size} of {path} {list(x.shape)}, '
            f'which lie along the mesh axis {" and ".join(names)} of '
            f'{dict(mesh.shape)}.',
            where=' * '.join(
                _MACROS.get(name, f'mesh axis {name}') for name in names
            ),
            remedy=f'Choose {" and ".join(_MACROS.values())} (data is what '
            f'they leave of the devices) so that it is a divisor of {size}.',
        )


def axis_names(params_axes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """Logical names of the axes of parameters by path, from `params_axes`."""
  names = trainable.flatten(flax_partitioning.get_axis_names(params_axes))
  return {path: tuple(axes) for path, axes in names.items()}


def param_shardings(
    params_axes: Mapping[str, Any], mesh: Mesh
) -> dict[str, NamedSharding]:
  """Shardings of parameters from the `params_axes` collection.

  Args:
    params_axes: Collection written by `param_with_axes`.
    mesh: The mesh.

  Returns:
    `{path: sharding}`, with the paths of the flat parameters.
  """
  return {
      path: NamedSharding(mesh, _mesh_axes(axes))
      for path, axes in axis_names(params_axes).items()
  }


def optimizer_layouts(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    layouts: Any,
    rest: Any,
) -> Any:
  """How the state of an optimizer lies: moments as their parameters do.

  Args:
    optimizer: The optimizer.
    state: Its state, arrays or their shapes.
    params: The parameters, arrays or their shapes.
    layouts: A layout for each parameter, such as shardings or axis names.
    rest: The layout of everything else: counters, and factors of moments, which
      are not shaped as the parameters.

  Returns:
    A tree of the structure of `state`.
  """
  is_masked = lambda x: isinstance(x, optax.MaskedNode)

  def layout(leaf, param, of_param):
    if is_masked(leaf):  # The parameter is that of another optimizer.
      return leaf
    return of_param if leaf.shape == param.shape else rest

  return optax.tree.map_params(
      optimizer, layout, state, params, layouts,
      transform_non_params=lambda _: rest,
      is_leaf=is_masked,
  )


def _mesh_axes(logical_axes: tuple[str | None, ...]) -> PartitionSpec:
  spec = flax_partitioning.logical_to_mesh_axes(
      logical_axes, LOGICAL_AXIS_RULES
  )
  return PartitionSpec(*spec)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Context of every computation: the mesh and the logical axis rules."""
  # `with mesh:` would not do: Flax ignores every constraint under it.
  with jax.set_mesh(mesh), flax_partitioning.axis_rules(LOGICAL_AXIS_RULES):
    yield

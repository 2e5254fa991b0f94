# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's partitioners lay eight host devices out as they are asked to."""

import jax
import jax.numpy as jnp
import pytest

from moe_peft.models import parts

pytest.importorskip('t5x')
partitioning = pytest.importorskip('t5x.partitioning')
partitioners = pytest.importorskip('moe_peft.t5x.partitioners')
pytestmark = pytest.mark.t5x


@pytest.mark.parametrize(
    ('experts', 'model', 'data'),
    [(1, 1, 8), (1, 2, 4), (1, 4, 2), (2, 1, 4), (4, 2, 1)],
)
def test_meshes(experts, model, data):
  if experts > 1:
    made = partitioners.ExpertPartitioner(experts, num_partitions=model)
  else:
    made = partitioners.Partitioner(num_partitions=model)
  assert made.mesh.shape == {'data': data, 'expert': experts, 'model': model}
  layout = made.get_data_layout(8)
  assert (layout.batch_size, layout.num_shards) == (8, 1)


@pytest.mark.parametrize('experts', [1, 2])
def test_networks_know_of_how_many_devices_the_mesh_is(experts):
  """What is large is decided by what one device holds."""
  if experts > 1:
    made = partitioners.ExpertPartitioner(experts, num_partitions=2)
  else:
    made = partitioners.Partitioner(num_partitions=2)
  seen = []

  def function(x):
    seen.append(parts.on_a_device(64))
    return x

  spec = jax.sharding.PartitionSpec()
  made.partition(function, (spec,), spec)(jnp.ones(()))
  assert seen == [8] and parts.on_a_device(64) == 64


def test_stock_partitioners_ignore_the_number_on_a_cpu():
  """Why there are subclasses; if this fails, they are needed no more."""
  mesh = partitioning.PjitPartitioner(num_partitions=2).mesh
  assert mesh.shape == {'data': 1, 'model': 8}

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of meshes, rules and layouts on eight host devices."""

import jax
import jax.numpy as jnp
import pytest

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.training import experiment as experiment_lib
from tests.training import tiny


@pytest.mark.parametrize(
    ('experts', 'model', 'shape'),
    [(1, 1, (8, 1, 1)), (4, 1, (2, 4, 1)), (2, 2, (2, 2, 2))],
)
def test_what_is_left_over_becomes_data(experts, model, shape):
  mesh = partitioning.make_mesh(experts, model)
  assert tuple(mesh.shape[axis] for axis in partitioning.MESH_AXES) == shape


def test_partitions_must_divide_the_devices():
  with pytest.raises(errors.UserError, match='NUM_EXPERT_PARTITIONS'):
    partitioning.make_mesh(3, 1)


def test_a_batch_that_cannot_be_split_names_one_that_can():
  mesh = partitioning.make_mesh()
  partitioning.check_batch_size(16, mesh, 'BATCH_SIZE')
  with pytest.raises(errors.UserError, match='BATCH_SIZE = 12 .* use 16'):
    partitioning.check_batch_size(12, mesh, 'BATCH_SIZE')


def test_a_parameter_that_cannot_be_split_is_named(tmp_path):
  experiment = tiny.experiment(
      tmp_path, **{'NUM_MODEL_PARTITIONS': 8, 't5.T5Config.mlp_dim': 36}
  )
  words = 'NUM_MODEL_PARTITIONS = 8 does not divide the 36 of .*mlp/wi'
  with pytest.raises(errors.UserError, match=words):
    experiment_lib.prepare(experiment)


def test_an_axis_without_a_macro_of_its_own_is_named():
  """T5X with `parameter_partitioning_dims = 2` splits kernels over `data`."""
  mesh = partitioning.make_mesh(num_model_partitions=2)
  shapes = {'kernel': jax.ShapeDtypeStruct((6, 8), jnp.float32)}
  specs = {'kernel': jax.sharding.PartitionSpec('data', 'model')}
  words = 'mesh axis data = 4 does not divide the 6 of kernel'
  with pytest.raises(errors.UserError, match=words) as caught:
    partitioning.check_params(shapes, specs, mesh)
  assert 'NUM_DATA_PARTITIONS' not in str(caught.value)


def test_a_batch_lies_on_all_devices():
  mesh = partitioning.make_mesh(2, 1)
  batch = jax.device_put(
      jnp.zeros((8, 4)), partitioning.batch_sharding(mesh)
  )
  shards = {shard.data.shape for shard in batch.addressable_shards}
  assert shards == {(1, 4)}


def test_every_parameter_has_a_layout_and_experts_are_split(tmp_path):
  setup = experiment_lib.prepare(
      tiny.experiment(tmp_path, NUM_EXPERT_PARTITIONS=4,
                      NUM_MODEL_PARTITIONS=2)
  )
  everything = {**setup.frozen, **setup.trainable}
  assert setup.shardings.keys() == everything.keys()
  query = 'encoder/layers_0/attention/query/'
  shard = lambda name: everything[name].addressable_shards[0].data.shape
  # lora_a [4 experts, 16, rank 2]: a quarter of the experts on each device.
  assert shard(query + 'adapter/lora_a') == (1, 16, 2)
  # lora_b [4, 2, joined_kv 16]: split over experts and over model.
  assert shard(query + 'adapter/lora_b') == (1, 2, 8)
  assert shard(query + 'kernel') == (16, 8)
  assert shard(query + 'adapter/router/kernel') == (16, 4)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of meshes, rules and layouts on eight host devices."""

import jax
import jax.numpy as jnp
import optax
import pytest

from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from tests import refusals
from tests.training import tiny


@pytest.mark.parametrize(
    ('experts', 'model', 'shape'),
    [(1, 1, (8, 1, 1)), (4, 1, (2, 4, 1)), (2, 2, (2, 2, 2))],
)
def test_what_is_left_over_becomes_data(experts, model, shape):
  mesh = partitioning.make_mesh(experts, model)
  assert tuple(mesh.shape[axis] for axis in partitioning.MESH_AXES) == shape


def test_partitions_must_divide_the_devices():
  both = 'NUM_EXPERT_PARTITIONS * NUM_MODEL_PARTITIONS'
  with refusals.refused(both, 3, 'divisors of 8'):
    partitioning.make_mesh(3, 1)


def test_a_batch_that_cannot_be_split_names_one_that_can():
  mesh = partitioning.make_mesh()
  partitioning.check_batch_size(16, mesh, 'BATCH_SIZE')
  with refusals.refused('BATCH_SIZE', 12, 16):
    partitioning.check_batch_size(12, mesh, 'BATCH_SIZE')


def test_a_parameter_that_cannot_be_split_is_named(tmp_path):
  experiment = tiny.experiment(
      tmp_path, **{'NUM_MODEL_PARTITIONS': 8, 't5.T5Config.mlp_dim': 36}
  )
  with refusals.refused('NUM_MODEL_PARTITIONS', 8, 36, 'mlp/wi'):
    experiment_lib.prepare(experiment)


def test_an_axis_without_a_macro_of_its_own_is_named():
  """T5X with `parameter_partitioning_dims = 2` splits kernels over `data`."""
  mesh = partitioning.make_mesh(num_model_partitions=2)
  shapes = {'kernel': jax.ShapeDtypeStruct((6, 8), jnp.float32)}
  specs = {'kernel': jax.sharding.PartitionSpec('data', 'model')}
  with refusals.refused('mesh axis data', 4, 6, 'kernel') as caught:
    partitioning.check_params(shapes, specs, mesh)
  assert 'NUM_DATA_PARTITIONS' not in str(caught.value)


@pytest.mark.parametrize(
    'optimizer',
    [
        trainable.by_path(
            (('.*/router/.*', optax.lion(1.0)), ('.*', optax.adamw(1.0)))
        ),
        optax.chain(optax.clip(1.0), optax.adamw(1.0)),
    ],
    ids=['by_path', 'chain'],
)
def test_moments_lie_as_their_parameters(optimizer):
  params = {
      'wo/adapter/lora_a': jnp.zeros((4, 2)),
      'wo/adapter/router/kernel': jnp.zeros((3, 5)),
  }
  state = optimizer.init(params)
  found = partitioning.optimizer_layouts(
      optimizer, state, params, {name: name for name in params}, rest='rest'
  )
  layouts = jax.tree.leaves(found)
  names = {x.shape: name for name, x in params.items()}
  assert layouts == [names.get(x.shape, 'rest') for x in jax.tree.leaves(state)]
  assert set(layouts) == {*params, 'rest'}


def test_factored_moments_lie_everywhere():
  params = {'kernel': jnp.zeros((256, 256)), 'scale': jnp.zeros(8)}
  optimizer = optax.adafactor(1.0)
  state = optimizer.init(params)
  found = partitioning.optimizer_layouts(
      optimizer, state, params, {name: name for name in params}, rest='rest'
  )
  # The kernel has a row and a column; the scale is too short to be factored.
  assert jax.tree.leaves(found).count('scale') == 1
  assert 'kernel' not in jax.tree.leaves(found)


def test_a_batch_lies_on_all_devices():
  mesh = partitioning.make_mesh(2, 1)
  batch = jax.device_put(
      jnp.zeros((8, 4)), partitioning.batch_sharding(mesh)
  )
  shards = {shard.data.shape for shard in batch.addressable_shards}
  assert shards == {(1, 4)}


@pytest.mark.slow
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

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs whose FLOPs and bytes are known in closed form."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest
from tensorflow.compiler.xla.service import hlo_pb2

from moe_peft.compile import collectives
from moe_peft.compile import hlo
from moe_peft.compile import products
from moe_peft.core import partitioning

TRIPS, M, K = 5, 8, 16


def program(function, *shapes, trips_are_said=True):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  compiled = jax.jit(function).lower(*arguments).compile()
  (module,) = compiled.runtime_executable().hlo_modules()
  serialized = module.as_serialized_hlo_module_proto()
  if not trips_are_said:
    proto = hlo_pb2.HloModuleProto.FromString(serialized)
    for computation in proto.computations:
      for instruction in computation.instructions:
        instruction.ClearField('backend_config')
    serialized = proto.SerializeToString()
  return hlo.Program(serialized)


def flops(read):
  return hlo.total(products.find(read), 'flops')


def chain(x, kernels):
  return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x,
                      kernels)[0]


def test_a_scan_counts_every_trip():
  read = program(chain, (M, K), (TRIPS, K, K))
  assert flops(read) == TRIPS * 2 * M * K * K
  assert not read.unknown_loops


def test_scans_within_scans_multiply():
  def outer(x, kernels):
    step = lambda x, _: (chain(x, kernels), None)
    return jax.lax.scan(step, x, length=3)[0]

  read = program(outer, (M, K), (TRIPS, K, K))
  assert flops(read) == 3 * TRIPS * 2 * M * K * K


def test_gradients_of_a_scan():
  # Forward, and two products for each of them in the backward pass.
  grad = jax.grad(lambda x, kernels: chain(x, kernels).sum(), (0, 1))
  read = program(grad, (M, K), (TRIPS, K, K))
  assert flops(read) == 3 * TRIPS * 2 * M * K * K


def test_a_loop_of_unknown_length_is_named():
  def until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x + x, x)

  read = program(until_large, (K, K))
  assert len(read.unknown_loops) == 1
  assert flops(read) == 2 * K**3


@pytest.mark.parametrize('lower', [0, 3])
@pytest.mark.parametrize('said', [True, False])
def test_a_loop_is_counted_from_where_it_starts(lower, said):
  """With and without what a CPU program says of it and a TPU's does not."""

  def count_to_ten(x):
    step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0] < 10, step, (lower, x))[1]

  read = program(count_to_ten, (K, K), trips_are_said=said)
  assert flops(read) == (10 - lower) * 2 * K**3
  assert not read.unknown_loops


@pytest.mark.parametrize('goes_on', [
    lambda i, x: i <= 10,
    lambda i, x: (i < 10) & (x.sum() < 100),
])
def test_a_loop_that_does_not_just_count_is_named(goes_on):
  def loop(x):
    step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ carry[1]))
    return jax.lax.while_loop(lambda carry: goes_on(*carry), step, (3, x))[1]

  read = program(loop, (K, K), trips_are_said=False)
  assert len(read.unknown_loops) == 1
  assert flops(read) == 2 * K**3


def test_all_branches_of_a_conditional_count():
  def either(x):
    twice = lambda x: x @ x @ x
    return jax.lax.cond(x[0, 0] > 0, twice, lambda x: x @ x, x)

  read = program(either, (K, K))
  assert flops(read) == (2 + 1) * 2 * K**3


def test_batched_products():
  read = program(lambda x, y: jnp.einsum('bij,bjk->bik', x, y), (3, M, K),
                 (3, K, 4))
  assert flops(read) == 2 * 3 * M * K * 4


@pytest.mark.parametrize(
    ('options', 'pairs'),
    [
        # Eight positions, three taps, of which two see the padding.
        ({'padding': 'SAME'}, 8 * 3 - 2),
        ({'padding': 'VALID'}, 6 * 3),
        ({'padding': 'VALID', 'window_strides': (2,)}, 3 * 3),
        # Holes between the inputs: from 7 places two taps see a number, from 6
        # places one.
        ({'padding': [(0, 0)], 'lhs_dilation': (2,)}, 7 * 2 + 6 * 1),
    ],
)
def test_a_convolution_costs_what_meets_numbers(options, pairs):
  options = {'window_strides': (1,)} | options
  read = program(
      lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, **options),
      (2, 4, 8), (5, 4, 3),
  )
  assert flops(read) == 2 * pairs * 2 * 4 * 5


def test_an_all_reduce_in_a_scan():
  mesh = partitioning.make_mesh(num_model_partitions=2)

  def reduce(xs):
    step = lambda total, x: (total + jax.lax.psum(x, 'data'), None)
    return jax.lax.scan(step, jnp.zeros(xs.shape[1:]), xs)[0]

  sharded = jax.shard_map(
      reduce, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
      check_vma=False,
  )
  (found,) = collectives.find(program(sharded, (TRIPS, M, K)))
  assert (found.kind, found.dtype, found.shape) == ('all-reduce', 'f32', (M, K))
  assert found.times == TRIPS and found.bytes == TRIPS * M * K * 4
  # A ring of four sends each number 2 * 3 / 4 times.
  assert found.group_size == 4 and found.traffic == 1.5 * found.bytes


def test_a_gather_counts_the_whole_array_and_a_scatter_too():
  mesh = partitioning.make_mesh()

  def both(x):
    whole = jax.lax.all_gather(x, 'data', tiled=True)
    return jax.lax.psum_scatter(jnp.sin(whole), 'data', tiled=True)

  spec = PartitionSpec('data')
  sharded = jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec)
  found = collectives.find(program(sharded, (64, K)))
  assert {x.kind for x in found} == {'all-gather', 'reduce-scatter'}
  for x in found:
    assert x.bytes == 64 * K * 4
    assert x.traffic == pytest.approx(7 / 8 * x.bytes)


def test_products_know_their_scope():
  def layer(x, kernel, lora_a):
    with jax.named_scope('query'):
      y = x @ kernel
      with jax.named_scope('adapter'):
        return y + x @ lora_a

  found = products.find(program(layer, (M, K), (K, K), (K, K)))
  adapter = [x.flops for x in found if '/adapter/' in x.op_name]
  assert adapter == [2 * M * K * K] and len(found) == 2


def test_combined_collectives_keep_their_names():
  mesh = partitioning.make_mesh()

  def sums(x, y):
    with jax.named_scope('network'):
      x = jnp.sin(x)
    with jax.named_scope('adapter'):
      y = jnp.cos(y)
    return jax.lax.psum((x, y), 'data')

  sharded = jax.shard_map(
      sums, mesh=mesh, in_specs=PartitionSpec('data'),
      out_specs=PartitionSpec(),
  )
  found = collectives.find(program(sharded, (8, K), (8, 2 * K)))
  sizes = {('/adapter/' in x.op_name): x.bytes for x in found}
  assert sizes == {False: K * 4, True: 2 * K * 4}

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which task uses which expert, against sums made by hand."""

import jax.numpy as jnp
import numpy as np

from moe_peft.core import observe
from moe_peft.core import partitioning
from moe_peft.routers import snapshots
from moe_peft.routers import usage

SITE = 'decoder/layers_0/mlp/wo'


class _Model:
  """Its one router gives token 1 to the first expert, others to both."""

  def apply(self, params, batch, mutable):
    del params, mutable
    tokens = batch['decoder_target_tokens'][..., None]
    weights = jnp.where(tokens == 1, jnp.array([1.0, 0.0]), 0.5)
    sown = {'adapter': {'combine_weights': (weights,)}}
    collection = {'decoder': {'layers_0': {'mlp': {'wo': sown}}}}
    return None, {'routing': collection}


def batch(*rows):
  filled = [*rows, *[(0, 0, 0)] * (8 - len(rows))]
  return {'decoder_target_tokens': np.array(filled, np.int32)}


def test_means_are_over_the_tokens_of_a_task():
  seen = []
  batches = [
      ('a', batch((1, 1, 2), (1, 0, 0))),
      ('b', batch((2, 2, 0))),
      ('a', batch((2, 2, 2))),
  ]
  tasks, sites = usage.measure(
      _Model(), {}, batches, partitioning.make_mesh(), lambda: seen.append(1)
  )
  assert tasks == ['a', 'b'] and len(seen) == 3
  of_site = sites[SITE]
  # Of the seven tokens of a, three are all the first expert's.
  np.testing.assert_allclose(of_site['load'], [[5 / 7, 2 / 7], [0.5, 0.5]])
  np.testing.assert_allclose(of_site['entropy'], [4 / 7, 1.0])
  np.testing.assert_allclose(of_site['left_behind'], [0, 0])
  assert 0 <= of_site['chance'] <= np.log(2)


def test_a_layer_of_a_scan_with_one_expert_has_nothing_to_choose():
  """Neither the means over sites nor the snapshots know of it."""

  class Scanned(_Model):

    def apply(self, params, batch, mutable):
      tokens = batch['decoder_target_tokens'][..., None]
      layers = jnp.array([[1.0, observe.ABSENT], [0.5, 0.5]])
      weights = layers[:, None, None] * jnp.ones_like(tokens, jnp.float32)
      sown = {'adapter': {'combine_weights': (weights,)}}
      return None, {'routing': {'decoder': {'decoder': {'mlp': {'wo': sown}}}}}

  rows, mesh = batch((1, 1, 2)), partitioning.make_mesh()
  _, sites = usage.measure(Scanned(), {}, [('a', rows)], mesh, lambda: None)
  weights = snapshots.Snapshots(Scanned(), {'a': rows}, mesh).weights({})
  assert [*sites] == [*weights] == ['decoder/layers_1/mlp/wo']


def test_a_model_without_routers_has_none():
  class Silent(_Model):

    def apply(self, params, batch, mutable):
      return None, {}

  mesh = partitioning.make_mesh()
  assert not usage.has_routers(Silent(), {}, batch((1, 2, 3)), mesh)
  assert usage.has_routers(_Model(), {}, batch((1, 2, 3)), mesh)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Similarity of experts against updates that are built."""

import numpy as np

from moe_peft.routers import similarity

SITE = 'encoder/layers_0/mlp/wo'


def _params(**arrays):
  return {f'{SITE}/adapter/{name}': x for name, x in arrays.items()}


def test_cosines_are_those_of_the_updates():
  random = np.random.default_rng(0)
  lora_a = random.normal(size=(4, 7, 2))
  lora_b = random.normal(size=(4, 2, 5))
  updates = np.einsum('eir,ero->eio', lora_a, lora_b).reshape(4, -1)
  norms = np.linalg.norm(updates, axis=1)
  expected = updates @ updates.T / norms[:, None] / norms
  found = similarity.by_site(_params(lora_a=lora_a, lora_b=lora_b))
  np.testing.assert_allclose(found[SITE], expected, rtol=1e-12)


def test_equal_and_orthogonal_experts():
  # Expert 1 is expert 0 in another basis, three times as large; expert 2
  # writes to other features; expert 3 adds nothing.
  lora_a = np.zeros((4, 3, 2))
  lora_b = np.zeros((4, 2, 3))
  lora_a[0], lora_b[0, :, :2] = np.eye(3)[:, :2], np.eye(2)
  turn = np.array([[0.0, 2.0], [-1.0, 0.0]])
  lora_a[1] = lora_a[0] @ turn
  lora_b[1] = 3 * np.linalg.inv(turn) @ lora_b[0]
  lora_a[2], lora_b[2, :, 2] = lora_a[0], 1.0
  cosines = similarity.by_site(_params(lora_a=lora_a, lora_b=lora_b))[SITE]
  np.testing.assert_allclose(
      cosines[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12
  )
  assert np.isnan(cosines[3]).all()


def test_a_shared_lora_a():
  random = np.random.default_rng(0)
  lora_a, lora_b = random.normal(size=(1, 7, 2)), random.normal(size=(3, 2, 5))
  shared = similarity.by_site(_params(lora_a=lora_a, lora_b=lora_b))
  each = similarity.by_site(
      _params(lora_a=np.repeat(lora_a, 3, axis=0), lora_b=lora_b)
  )
  np.testing.assert_allclose(shared[SITE], each[SITE], rtol=1e-12)


def test_a_pair_that_every_token_uses_makes_experts_no_more_alike():
  draw = np.random.default_rng(0).normal
  experts = _params(lora_a=draw(size=(3, 7, 2)), lora_b=draw(size=(3, 2, 5)))
  shared = _params(
      shared_lora_a=draw(size=(1, 7, 2)), shared_lora_b=draw(size=(1, 2, 5))
  )
  np.testing.assert_array_equal(
      similarity.by_site(experts | shared)[SITE],
      similarity.by_site(experts)[SITE],
  )


def test_vectors_are_compared_by_their_distance_from_one():
  scaling = np.array([[1.5, 1.0], [3.0, 1.0], [1.0, 0.5], [0.5, 1.0]])
  np.testing.assert_allclose(
      similarity.by_site(_params(scaling=scaling))[SITE],
      [[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]],
      atol=1e-12,
  )


def test_matrices_of_one_expert_count_together():
  """MixLoRA's expert has a pair for each matrix of the MLP."""
  random = np.random.default_rng(0)
  arrays = {
      name: random.normal(size=shape)
      for name, shape in (
          ('wi_lora_a', (3, 4, 2)), ('wi_lora_b', (3, 2, 6)),
          ('wo_lora_a', (3, 6, 2)), ('wo_lora_b', (3, 2, 4)),
      )
  }
  flat = np.concatenate(
      [
          np.einsum(
              'eir,ero->eio', arrays[f'{n}_lora_a'], arrays[f'{n}_lora_b']
          ).reshape(3, -1)
          for n in ('wi', 'wo')
      ],
      axis=1,
  )
  flat /= np.linalg.norm(flat, axis=1, keepdims=True)
  found = similarity.by_site(_params(**arrays))
  np.testing.assert_allclose(found[SITE], flat @ flat.T, rtol=1e-12)


def test_scanned_layers_are_sites_of_their_own():
  random = np.random.default_rng(0)
  layers = [
      {'lora_a': random.normal(size=(3, 5, 2)),
       'lora_b': random.normal(size=(3, 2, 4))}
      for _ in range(2)
  ]
  stacked = {
      f'decoder/decoder/mlp/wo/adapter/{name}': np.stack(
          [x[name] for x in layers], axis=1
      )
      for name in layers[0]
  }
  found = similarity.by_site(stacked)
  for i, layer in enumerate(layers):
    np.testing.assert_allclose(
        found[f'decoder/layers_{i}/mlp/wo'],
        similarity.by_site(_params(**layer))[SITE],
    )


def test_kernels_of_the_base_need_not_be_arrays():
  params = _params(lora_a=np.ones((2, 3, 2)), lora_b=np.ones((2, 2, 3)))
  found = similarity.by_site({**params, 'mlp/wo/kernel': object()})
  np.testing.assert_allclose(found[SITE], 1.0)


def test_one_expert_has_nothing_to_be_compared_with():
  params = _params(lora_a=np.ones((1, 3, 2)), lora_b=np.ones((1, 2, 3)))
  assert similarity.by_site(params) == {}


def test_an_expert_that_adds_nothing_has_no_direction():
  params = _params(scaling=np.array([[1.0, 1.0], [1.0, 2.0]]))
  np.testing.assert_array_equal(
      similarity.by_site(params)[SITE], [[np.nan, np.nan], [np.nan, 1.0]]
  )

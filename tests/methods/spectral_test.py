# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What LoRAs of the kernel begin with, and what they compute."""

import jax
import numpy as np
import pytest

from moe_peft.methods import spectral
from tests.methods import formulas_test as formulas

KERNEL = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)
U, S, V = np.linalg.svd(KERNEL, full_matrices=False)


def products(adapter):
  values = adapter.from_kernel(KERNEL)
  np.testing.assert_array_equal(values['lora_a'], values['frozen_a'])
  np.testing.assert_array_equal(values['lora_b'], values['frozen_b'])
  return values['lora_a'] @ values['lora_b'] * adapter.scale


def near(got, want):
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_pissa_and_milora_are_ends_of_the_spectrum():
  options = dict(rank=3, alpha=6.0)
  near(products(spectral.PiSSA(**options))[0], (U[:, :3] * S[:3]) @ V[:3])
  near(products(spectral.MiLoRA(**options))[0], (U[:, -3:] * S[-3:]) @ V[-3:])


def test_olora_is_the_first_of_a_qr_and_not_divided_by_the_scale():
  values = spectral.OLoRA(rank=3, alpha=6.0).from_kernel(KERNEL)
  q, r = np.linalg.qr(KERNEL.T)
  near(values['lora_b'][0] @ values['lora_b'][0].T, np.eye(3))
  near(products(spectral.OLoRA(rank=3, alpha=6.0))[0],
       2.0 * (q[:, :3] @ r[:3]).T)


def test_mica_trains_what_the_minor_directions_get():
  adapter = spectral.MiCA(site=formulas.SITE, rank=2, alpha=5.0)
  fresh = adapter.init(jax.random.key(0), formulas.X, formulas.Y)['params']
  assert not np.any(fresh['lora_a']) and np.any(fresh['frozen_b'])
  values = adapter.from_kernel(KERNEL)
  near(values['frozen_b'][0], V[-2:])
  params = formulas.filled(adapter)
  want = formulas.lora_mixture(
      np.ones((*formulas.X.shape[:2], 1)),
      {'lora_a': params['lora_a'], 'lora_b': params['frozen_b']}, 2.5,
  )
  formulas.close(formulas.apply(adapter, params), want)


def test_goat_has_a_segment_for_each_expert():
  got = products(spectral.GOAT(num_experts=3, rank=2))
  for expert, first in enumerate((0, 3, 6)):
    place = slice(first, first + 2)
    near(10 * got[expert], (U[:, place] * S[place]) @ V[place])


@pytest.mark.slow
@pytest.mark.parametrize('experts', [1, 3])
def test_what_it_began_with_is_subtracted(experts):
  cls = spectral.PiSSA if experts == 1 else spectral.GOAT
  adapter = cls(site=formulas.SITE, num_experts=experts, rank=2, alpha=5.0)
  params = formulas.filled(adapter)
  weights = np.ones((*formulas.X.shape[:2], 1))
  if experts > 1:
    weights = formulas.top_2(
        formulas.softmax(formulas.X @ params['router']['kernel'])
    )
  mixture = formulas.lora_mixture(weights, params, 2.5)
  taken = np.einsum(
      'bli,eir,ero->blo', formulas.X, params['frozen_a'], params['frozen_b']
  )
  want = mixture - 2.5 / experts * taken
  formulas.close(formulas.apply(adapter, params), want)

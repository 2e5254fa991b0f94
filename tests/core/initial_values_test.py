# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Initial values that are made of kernels."""

import functools

import jax
import numpy as np
import pytest

from moe_peft.core import adapted_sites
from moe_peft.core import initial_values
from moe_peft.core import trainable
from moe_peft.methods import spectral
from tests import tiny_network
from tests.checks import tiny
from tests.refusals import refused


@functools.cache
def started(cls, scan=False, **options):
  """The subject, its adapters, and its parameters once they are filled."""
  config = tiny_network.Config(scan=scan)
  subject = tiny.subject(
      tiny.network(cls, '.*/(query|wo)', config, **options)
  )
  _, adapters = adapted_sites.trace(
      lambda: tiny.init(subject.module, jax.random.key(0))
  )
  values = initial_values.from_base(adapters, subject.params)
  return subject, adapters, values


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True], ids=['unrolled', 'scanned'])
def test_training_begins_at_the_base_to_the_last_bit(scan):
  subject, _, values = started(spectral.PiSSA, scan, rank=2)
  assert initial_values.wanted(subject.params)
  params = {**subject.params, **values}
  assert all(params[k].shape == x.shape for k, x in subject.params.items())
  want, _ = subject.base(subject.base_params, subject.batch)
  got, _ = subject.evaluate(params, subject.batch)
  np.testing.assert_array_equal(got, want)
  constants = [path for path in params if trainable.is_constant(path)]
  assert {path.rpartition('/')[2] for path in constants} == {
      'frozen_a', 'frozen_b'
  }
  trained = trainable.num_trained(params) - trainable.num_params(
      subject.base_params
  )
  assert 2 * trained == trainable.num_params(
      {k: x for k, x in params.items() if trainable.is_adapter(k)}
  )


def test_each_layer_of_a_scan_has_its_own_kernel():
  subject, _, values = started(spectral.PiSSA, scan=True, rank=2)
  layer = 'encoder/layers/mlp/wo'
  kernel = np.asarray(subject.params[f'{layer}/kernel'])
  a, b = (values[f'{layer}/adapter/{x}'] for x in ('lora_a', 'lora_b'))
  for index in range(2):
    u, s, v = np.linalg.svd(kernel[:, index])
    want = (u[:, :2] * s[:2]) @ v[:2]
    got = a[0, index] @ b[0, index] * (16.0 / 2)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_layer_without_a_kernel_is_refused():
  subject, adapters, _ = started(spectral.PiSSA, rank=2)
  params = {k: x for k, x in subject.params.items() if 'kernel' not in k}
  with refused('SITES', 'PiSSA', 'query'):
    initial_values.from_base(adapters, params)


def test_a_kernel_whose_inputs_do_not_come_first_is_refused():
  subject, adapters, _ = started(spectral.PiSSA, rank=2)
  turned = {
      k: np.transpose(x) if k.endswith('wo/kernel') else x
      for k, x in subject.params.items()
  }
  with refused('SITES', 'wo/kernel'):
    initial_values.from_base(adapters, turned)


def test_a_rank_beyond_the_spectrum_is_refused():
  with refused('RANK'):
    spectral.GOAT(num_experts=4, rank=3).from_kernel(np.ones((8, 20)))


@pytest.mark.slow
def test_experts_that_begin_alike_are_refused():
  for cls in (spectral.PiSSA, spectral.MiCA):
    with refused('NUM_EXPERTS', cls.__name__):
      cls(num_experts=2, rank=3).from_kernel(np.ones((8, 20)))

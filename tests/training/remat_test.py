# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""REMAT_POLICY = 'auto' takes the fastest policy that fits."""

import types

import jax
import pytest

from moe_peft.training import experiment as experiment_lib
from moe_peft.training import remat
from tests import refusals
from tests.training import tiny

NEEDED = {'none': 300, 'minimal': 200, 'full': 100}


@pytest.fixture(name='setup')
def _setup(tmp_path, monkeypatch):
  """A setup whose step needs NEEDED bytes, on a device of 250."""

  def compile_step(setup):
    needed = NEEDED[remat.policy_of(setup.experiment)]
    if needed > 250:  # As TPUs' compiler does.
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: too large')
    stats = types.SimpleNamespace(
        argument_size_in_bytes=needed, output_size_in_bytes=40,
        alias_size_in_bytes=40, temp_size_in_bytes=5,
        generated_code_size_in_bytes=0,
    )
    return types.SimpleNamespace(memory_analysis=lambda: stats)

  monkeypatch.setattr(remat, 'compile_step', compile_step)
  return experiment_lib.lay_out(
      tiny.experiment(tmp_path, 'lora', REMAT_POLICY='auto')
  )


@pytest.mark.parametrize(
    ('limit', 'policy'),
    [(None, 'none'), (250, 'minimal'), (205, 'minimal'), (204, 'full')],
)
def test_the_first_that_fits_is_taken(setup, monkeypatch, limit, policy):
  monkeypatch.setattr(remat, 'limit_of', lambda setup: limit)
  found = remat.for_training(setup)
  assert remat.policy_of(found.experiment) == policy
  assert remat.for_training(found) is found


def test_what_cannot_fit_is_refused_with_its_size(setup, monkeypatch):
  monkeypatch.setattr(remat, 'limit_of', lambda setup: 50)
  with refusals.refused('REMAT_POLICY', 'NUM_MICROBATCHES', 'BASE_DTYPE'):
    remat.for_training(setup)


def test_what_the_compiler_refuses_is_no_stack_trace(setup, monkeypatch):
  monkeypatch.setattr(remat, 'limit_of', lambda setup: 250)
  monkeypatch.setitem(NEEDED, 'minimal', 400)
  monkeypatch.setitem(NEEDED, 'full', 300)
  with refusals.refused('REMAT_POLICY', 'NUM_MICROBATCHES'):
    remat.for_training(setup)


@pytest.mark.slow
def test_the_figures_are_those_of_the_compiler(setup):
  found = remat.figures(setup)
  assert found == {'none': None, 'minimal': 205, 'full': 105}
  assert remat.summary(found).startswith('none too much, minimal 0.00 GiB')

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports compute in torch what JAX computes, cell by cell of a table."""

import pytest
import safetensors

from moe_peft import errors
from moe_peft.hf import export
from tests import refusals
from tests.hf import adapted
from tests.hf import parity

# Every kind of expert, router and module, with both engines of generation.
FAST = [
    ('all_kinds_t5', 't5', 'full'),
    ('all_kinds_t5', 't5', 'peft'),
    ('all_kinds', 'llama', 'full'),
    ('all_kinds', 'phi4_mini', 'peft'),
    ('lora', 'gemma3', 'merged'),
    ('smear', 'llama', 'full'),
    ('molora_sentence', 'phi3', 'full'),
]
# `python -m tests.hf.parity` has all cells.
SLOW = [
    *((method, 't5', 'full') for method in adapted.METHODS),
    *(('all_kinds', family, 'full') for family in adapted.FAMILIES),
]


def check(tmp_path, method, family, file_format, generate):
  try:
    with parity.one_fixture(method, family):
      cell = parity.measure(
          method, family, file_format, tmp_path / 'out', generate
      )
  except errors.UserError as error:
    assert file_format == 'merged', error  # `full` and `peft` hold all.
    assert not all(s.linear for s in parity.trained(method, family).sites)
    return
  assert cell.equal, cell
  assert cell.effect > 0.01
  assert cell.same_tokens in (None, True)


@pytest.mark.hf
@pytest.mark.parametrize(('method', 'family', 'file_format'), FAST)
def test_every_kind_of_expert_is_equal(
    tmp_path, hf, method, family, file_format
):
  check(tmp_path, method, family, file_format, generate=file_format == 'full')


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.parametrize(('method', 'family', 'file_format'), SLOW)
def test_every_method_is_equal(tmp_path, hf, method, family, file_format):
  check(tmp_path, method, family, file_format, generate=False)


@pytest.mark.hf
@pytest.mark.parametrize('family', ['gemma3', 'phi3'])
def test_rounded_weights_are_what_is_compared(tmp_path, hf, family):
  """Norms without their 1, joined matrices."""
  cell = parity.measure(
      'lora', family, 'merged', tmp_path / 'out', dtype='bfloat16'
  )
  assert cell.equal, cell
  file = tmp_path / 'out' / 'model.safetensors'
  with safetensors.safe_open(file, 'numpy') as tensors:
    names = list(tensors.keys())
    assert {tensors.get_slice(x).get_dtype() for x in names} == {'BF16'}


def test_only_what_is_merged_is_rounded(tmp_path):
  for options in ({'dtype': 'bfloat16'}, {'dtype': 'float16'}):
    with refusals.refused('--dtype'):
      export.export(
          adapted.make('lora', 'llama'), tmp_path / 'out', 'full', **options
      )
  assert not list(tmp_path.iterdir())

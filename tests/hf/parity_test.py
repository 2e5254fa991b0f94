# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports compute in torch what JAX computes, cell by cell of a table."""

import numpy as np
import pytest
import safetensors

from moe_peft import errors
from moe_peft.core import routing
from moe_peft.hf import export
from moe_peft.methods import mor_lora
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
# Whose exported code has parts of its own. `python -m tests.hf.parity` has all
# cells.
KINDS = (
    'ia3', 'mov', 'sira', 'adamix', 'mode', 'mixlora', 'smora', 'bottleneck',
    'expert_choice', 'bank',
)
SLOW = [
    *(
        pytest.param(
            method, 't5', 'full',
            marks=() if method in KINDS else pytest.mark.long,
        )
        for method in adapted.METHODS
    ),
    *(
        ('all_kinds', family, 'full')
        for family in adapted.FAMILIES if family != 'llama'  # It is above.
    ),
    ('one_block', 'phi3', 'peft'),  # LoRAs on rows of joined layers.
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


@pytest.mark.slow
@pytest.mark.hf
def test_an_expert_without_any_probability_is_used_by_neither(hf):
  """The softmax of a logit far below the others is 0 in float32."""
  from moe_peft.hf import torch_router  # Which imports torch.

  trained = adapted.make((
      adapted.rule('.*/wo', mor_lora.MoRLoRA, {
          'select': mor_lora.StraightThrough(k=2)
      }, num_experts=3, rank=2),
  ))
  spec = trained.sites[0].spec
  module = torch_router.Routed()
  module.spec = spec
  logits = np.array([[0.0, -200.0, -300.0], [0.0, -1.0, -300.0]], np.float32)
  module.router = hf.eye(3)
  found = module.route(hf.from_numpy(logits)[None])[0].numpy()
  np.testing.assert_array_equal(found, [[0.5, 0, 0], [0.5, 0.5, 0]])
  router = routing.Router(3, select=mor_lora.StraightThrough(k=2))
  ours = router.apply({'params': {'kernel': np.eye(3)}}, logits[None])
  np.testing.assert_array_equal(found, ours.combine_weights[0])

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Banks in PEFT's own formats: Arrow and X-LoRA compute the same there."""

import json

import numpy as np
import pytest

from moe_peft.core import selection
from moe_peft.experts import bank
from moe_peft.experts import bank_peft
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.methods import bank as bank_method
from tests import refusals
from tests.experts import banks


def difference(torch, model, trained):
  """Largest difference of logits over the largest, torch against JAX."""
  rng = np.random.default_rng(3)
  ids = rng.integers(3, 384, (2, 9)).astype(np.int32)
  arrays = {'input_ids': ids, 'attention_mask': np.ones_like(ids)}
  if trained.network.task_type != 'CAUSAL_LM':
    arrays['decoder_input_ids'] = ids[:, :5]
  want = fixture.logits(trained, trained.params, arrays)
  with torch.no_grad():
    found = model(
        **{k: torch.from_numpy(v).long() for k, v in arrays.items()}
    ).logits.numpy()
  bare = {k: v for k, v in trained.params.items() if '/adapter/' not in k}
  moved = want - fixture.logits(trained, bare, arrays)
  assert np.abs(moved).max() > 0.01 * np.abs(want).max()
  return np.abs(found - want).max() / np.abs(want).max()


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize('family', ['t5', 'llama'])
def test_arrow_is_that_of_peft(tmp_path, hf, family):
  import peft
  from peft.tuners.lora import arrow
  import transformers

  sources, base = banks.write_all(tmp_path, family)
  sources = sources[:1] + [banks.one_more(tmp_path, family, s) for s in (7, 8)]
  folder = tmp_path / 'bank'
  made = bank.build(sources, base, folder)
  trained = banks.in_jax(
      folder, family, scores=bank_method.ArrowScores(temperature=0.7),
      select=selection.TopK(k=2, normalize=True),
  )
  auto = getattr(transformers, trained.network.auto)
  model = arrow.create_arrow_model(
      auto.from_pretrained(tmp_path / 'hf'),
      [str(folder / bank_peft.FOLDER / name) for name in made.names],
      peft.ArrowConfig(top_k=2, router_temperature=0.7, rng_seed=0),
  ).eval()
  assert difference(hf, model, trained) < 1e-5
  # What PEFT saves of it is read again, without the router's LoRA.
  model.save_pretrained(tmp_path / 'saved')
  again = bank_peft.experts_in(tmp_path / 'saved')
  assert [name for name, _ in again] == ['task_0', 'task_1', 'task_2']
  bank.build([str(tmp_path / 'saved')], base, tmp_path / 'again',
             unchecked=True)
  for path, array in bank.load(folder)[1].items():
    other = bank.load(tmp_path / 'again')[1][path]
    if path.endswith('lora_a'):  # Singular vectors have no sign.
      np.testing.assert_allclose(np.abs(other), np.abs(array), atol=1e-5)


@pytest.mark.slow
@pytest.mark.hf
def test_xlora_begins_as_the_average(tmp_path, hf):
  import peft
  import transformers

  sources, base = banks.write_all(tmp_path, 'llama')
  folder = tmp_path / 'bank'
  bank.build(sources, base, folder)
  trained = banks.in_jax(folder, 'llama', scores=bank_method.NoScores())
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  model.config.use_cache = False
  model = peft.PeftModel.from_pretrained(model, folder / 'xlora').eval()
  assert difference(hf, model, trained) < 1e-5
  again = bank_peft.experts_in(folder / 'xlora')
  assert [name for name, _ in again] == list(banks.LORAS)
  file = folder / 'xlora' / folders.ADAPTER_CONFIG
  fields = json.loads(file.read_text())
  file.write_text(json.dumps({**fields, 'adapters': {'0': 'user/hub'}}))
  with refusals.refused(file, 'user/hub'):
    bank.build([str(folder / 'xlora')], base, tmp_path / 'other')

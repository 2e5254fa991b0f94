# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Banks in PEFT's own formats: Arrow and X-LoRA compute the same there."""

import dataclasses
import json

import numpy as np
import pytest

from moe_peft.core import selection
from moe_peft.experts import bank
from moe_peft.experts import bank_peft
from moe_peft.hf import export
from moe_peft.hf import fixture
from moe_peft.hf import folders
from moe_peft.hf import verify
from moe_peft.hf import xlora_config
from moe_peft.hf import xlora_format
from moe_peft.methods import bank as bank_method
from moe_peft.methods import dynmole
from moe_peft.methods import xlora
from moe_peft.training import tensor_files
from tests import refusals
from tests.experts import banks
from tests.hf import adapted


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
  moved = want - fixture.logits(trained, trained.base_params, arrays)
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
  for name in ('user/hub', 'x' * 999):
    file.write_text(json.dumps({**fields, 'adapters': {'0': name}}))
    with refusals.refused(file, name[:100]):
      bank.build([str(folder / 'xlora')], base, tmp_path / 'other')


SELECT = 'routing.Router.select'


def xlora_run(family, layerwise=False, select=None, **classifier):
  """A `Trained` of X-LoRA over three experts of all layers."""
  scores = xlora.ClassifierScores(layerwise=layerwise, temperature=0.6)
  rule = adapted.rule(
      '.*/(query|key|value|wo)', bank_method.Bank,
      {'scores': scores, 'select': select or selection.TopK(k=2)},
      xlora.TwoPasses, num_experts=3, rank=2, alpha=5.0,
  )
  rule = dataclasses.replace(rule, layerwise=layerwise, **classifier)
  return adapted.make((rule,), family)


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize(
    ('family', 'options'),
    [
        ('llama', {}),
        ('llama', {'depth': 3, 'width': 5, 'select': selection.Soft()}),
        ('llama_scan', {'depth': 2, 'width': 5, 'dropout': 0.0}),
        ('gemma2', {}),
        ('phi3', {'depth': 2, 'width': 7}),
        ('qwen3', {}),
    ],
)
def test_xlora_is_that_of_peft(tmp_path, hf, family, options):
  trained = xlora_run(family, **options)
  export.export(trained, tmp_path / 'written', 'peft')
  folder = (tmp_path / 'written').rename(tmp_path / 'moved')
  found = verify.verify(folder)
  assert found.equal and found.same_base, found
  assert found.effect > 0.01 * found.size
  assert [x for _, x in bank_peft.experts_in(folder)] == [
      folder / xlora_format.EXPERT.format(index) for index in range(3)
  ]
  # The classifier has as many parameters as PEFT's, which are all that trains.
  model, _ = verify.load(folder)
  theirs = sum(
      x.numel() for name, x in model.named_parameters()
      if 'internal_xlora_classifier' in name
  )
  ours = sum(
      x.size for path, x in trained.params.items()
      if path.startswith('adapter/')
  )
  assert ours == theirs


@pytest.mark.parametrize(('dropout', 'last'), [(0.2, 3), (0.0, 2)])
def test_a_classifier_counts_its_layers_as_peft_does(tmp_path, dropout, last):
  matrices = [(np.ones((4, 5)), np.ones(5)), (np.ones((5, 3)), np.ones(3))]
  classifier = xlora_config.Classifier(matrices, dropout)
  xlora_format.write(tmp_path, '', [tmp_path / 'a'], classifier)
  arrays = tensor_files.TensorFiles([tmp_path / folders.ADAPTER_WEIGHTS])
  scope = 'base_model.internal_xlora_classifier.layers'
  assert {name: x.shape for name, x in arrays.items()} == {
      f'{scope}.0.weight': (5, 4), f'{scope}.0.bias': (5,),
      f'{scope}.{last}.weight': (3, 5), f'{scope}.{last}.bias': (3,),
  }
  fields = folders.read_json(tmp_path / folders.ADAPTER_CONFIG)
  sizes = [fields[x] for x in ('hidden_size', 'xlora_depth', 'xlora_size')]
  assert sizes == [4, 2, 5]


@pytest.mark.slow
def test_xlora_that_peft_has_not(tmp_path):
  for family, options, where in (
      ('t5', {}, '--format'),
      ('llama', {'layerwise': True}, 'LAYERWISE'),
      ('llama', {'hidden_states': '.*/pre_mlp_layer_norm'}, 'HIDDEN_STATES'),
      ('llama', {'select': selection.TopK(k=2, normalize=True)}, SELECT),
      ('llama', {'select': dynmole.Mass()}, SELECT),
  ):
    with refusals.refused(where):
      export.export(xlora_run(family, **options), tmp_path / 'out', 'peft')
  for file_format in ('full', 'merged', 'experts', 'gguf'):
    with refusals.refused('--format'):
      export.export(xlora_run('llama'), tmp_path / 'out', file_format)
  assert not list(tmp_path.iterdir())

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""X-LoRA folders of PEFT come with their classifier, or are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from moe_peft.cli import bank as command
from moe_peft.core import selection
from moe_peft.experts import bank
from moe_peft.experts import bank_base
from moe_peft.experts import bank_file
from moe_peft.experts import bank_gin
from moe_peft.experts import bank_sources
from moe_peft.hf import export
from moe_peft.hf import folders
from moe_peft.hf import verify
from moe_peft.hf import xlora_config
from moe_peft.hf import xlora_format
from moe_peft.methods import bank as bank_method
from moe_peft.methods import xlora
from moe_peft.training import bases
from tests import refusals
from tests.experts import banks
from tests.hf import adapted
from tests.hf import bank_peft_test


def saved_by_peft(torch, tmp_path, sources, **options):
  """A random X-LoRA over some LoRAs, as PEFT saves it; and its model."""
  import peft
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  model.config.use_cache = False
  torch.manual_seed(1)
  model = peft.get_peft_model(model, peft.XLoraConfig(
      task_type='CAUSAL_LM', hidden_size=adapted.LLAMA.emb_dim,
      adapters={str(i): source for i, source in enumerate(sources)}, **options,
  )).eval()
  for name, x in model.named_parameters():
    if 'internal_xlora_classifier' in name:
      torch.nn.init.normal_(x, std=0.5)
  model.save_pretrained(tmp_path / 'saved')
  return model, tmp_path / 'saved'


def rules_of_xlora(folder):
  """The rules that `xlora.gin` gives gin/methods/bank_xlora.gin."""
  values = banks.macros(folder / bank_gin.XLORA_FILE)
  rule = adapted.rule(
      values['SITES'], bank_method.Bank,
      {'scores': xlora.ClassifierScores(temperature=values['TEMPERATURE']),
       'select': selection.TopK(k=values['NUM_SELECTED_EXPERTS'])},
      xlora.TwoPasses, num_experts=values['NUM_EXPERTS'], rank=values['RANK'],
      alpha=values['ALPHA'],
  )
  return (dataclasses.replace(
      rule, depth=values['CLASSIFIER_DEPTH'], width=values['CLASSIFIER_WIDTH'],
      dropout=values['CLASSIFIER_DROPOUT'],
  ),)


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize(
    ('layout', 'options'),
    [
        ('t5', {}),
        ('scan', {
            'xlora_depth': 3, 'xlora_size': 5, 'softmax_temperature': 0.6,
            'top_k_lora': 2, 'global_scaling_weight': 1.7,
        }),
        ('t5', {
            'xlora_depth': 2, 'xlora_size': 7, 'xlora_dropout_p': 0.0,
        }),
    ],
)
def test_a_classifier_of_peft_comes_with_its_experts(
    tmp_path, hf, layout, options
):
  sources, base = banks.write_all(tmp_path, 'llama', layout)
  model, saved = saved_by_peft(hf, tmp_path, sources, **options)
  folder = tmp_path / 'bank'
  made = bank.build([str(saved)], base, folder, unchecked=True)
  assert made.names == list(banks.LORAS) and made.classifier == str(saved)
  config = adapted.LLAMA.replace(scan_layers=layout == 'scan')
  trained = banks.read(folder, config, rules_of_xlora(folder))
  assert bank_peft_test.difference(hf, model, trained) < 1e-5
  # Out again it is the same, as is what the bank itself has for PEFT.
  export.export(trained, tmp_path / 'out', 'peft')
  found = verify.verify(tmp_path / 'out')
  assert found.equal, found
  width = adapted.LLAMA.emb_dim
  want = xlora_config.read(saved, width)
  for other in (tmp_path / 'out', folder / 'xlora'):
    got = xlora_config.read(other, width)
    for ours, theirs in zip(got.matrices, want.matrices, strict=True):
      np.testing.assert_array_equal(ours[0], theirs[0])
      np.testing.assert_array_equal(ours[1], theirs[1])
  assert got.scale == want.scale and got.num_selected == want.num_selected


def written_xlora(tmp_path, **changes):
  """An X-LoRA of two LoRAs, with changed fields; its base."""
  sources, base = banks.write_all(tmp_path, 'llama')
  (tmp_path / 'x').mkdir()
  zeros = np.zeros((adapted.LLAMA.emb_dim, 2), np.float32)
  xlora_format.write(
      tmp_path / 'x', banks.NAME, [Path(x) for x in sources[:2]],
      xlora_config.Classifier([(zeros, zeros[0])]),
  )
  file = tmp_path / 'x' / folders.ADAPTER_CONFIG
  folders.write_json(file, {**folders.read_json(file), **changes})
  return str(tmp_path / 'x'), base, sources


@pytest.mark.slow
def test_a_classifier_goes_with_its_own_experts_alone(tmp_path, capsys):
  given, base, sources = written_xlora(tmp_path)
  out = tmp_path / 'bank'
  with refusals.refused('--from', given):
    bank.build([given, sources[2]], base, out)
  command.main(['build', '--base', base, '--out', str(out), '--from', given])
  said = ' '.join(capsys.readouterr().out.split())
  assert 'methods/bank_xlora.gin' in said and f'{out}/xlora.gin' in said
  command.main(['show', str(out)])
  assert 'with the classifier of' in capsys.readouterr().out
  for change in (
      lambda: bank.add(out, [sources[2]]), lambda: bank.remove(out, ['few']),
  ):
    with refusals.refused(out, f'--from {out}/experts/all'):
      change()
  bank.build([f'{out}/xlora'], base, tmp_path / 'again')
  again = [bases.read_arrays(x) for x in (out, tmp_path / 'again')]
  for path in ('adapter/router/kernel', 'adapter/router/bias'):
    np.testing.assert_array_equal(*(x[path] for x in again))
  # The experts without it, which others join.
  bank.build([str(out), sources[2]], base, tmp_path / 'free')
  assert not bank_file.read(tmp_path / 'free').classifier
  with refusals.refused('--from', given):
    bank.add(tmp_path / 'free', [given])
  (tmp_path / 't5').mkdir()
  _, t5_base = banks.write_all(tmp_path / 't5', 't5')
  with refusals.refused('--base', given):
    bank_sources.classifier(Path(given), bank_base.read(t5_base), True)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('enable_softmax', False), ('enable_softmax_topk', True),
        ('layerwise_scalings', True), ('scaling_pass_value', 0.1),
        ('use_trainable_adapters', True), ('new_field', 3),
        ('hidden_size', 25), ('hidden_size', None), ('xlora_depth', 0),
        ('xlora_depth', True), ('xlora_size', 2**20), ('xlora_dropout_p', 1.0),
        ('xlora_dropout_p', None), ('softmax_temperature', 0),
        ('softmax_temperature', 'x'), ('top_k_lora', 3), ('top_k_lora', 0),
        ('global_scaling_weight', -1.0), ('adapters', {'0': 'a'}),
        ('adapters', {'a': 'a', 'b': 'b'}), ('adapters', {'1': 'a', '0': 'b'}),
    ],
)
def test_fields_of_an_xlora_that_are_not_understood(tmp_path, field, value):
  zeros = np.zeros((24, 2), np.float32)
  xlora_format.write(
      tmp_path, '', [Path('a'), Path('b')],
      xlora_config.Classifier([(zeros, zeros[0])]),
  )
  assert xlora_config.read(tmp_path, 24).num_selected is None
  file = tmp_path / folders.ADAPTER_CONFIG
  folders.write_json(file, {**folders.read_json(file), field: value})
  with refusals.refused(field, file):
    xlora_config.read(tmp_path, 24)


def test_tensors_of_an_xlora_that_are_none_of_it(tmp_path):
  zeros = np.zeros((24, 2), np.float32)
  write = lambda bias: xlora_format.write(
      tmp_path, '', [Path('a'), Path('b')],
      xlora_config.Classifier([(zeros, bias)]),
  )
  write(zeros[0] + np.nan)
  with refusals.refused(tmp_path, 'layers.0.bias'):
    xlora_config.read(tmp_path, 24)
  write(zeros[0])
  file = tmp_path / folders.ADAPTER_CONFIG
  folders.write_json(file, {**folders.read_json(file), 'xlora_depth': 2})
  with refusals.refused(tmp_path, 'layers.2.weight'):
    xlora_config.read(tmp_path, 24)

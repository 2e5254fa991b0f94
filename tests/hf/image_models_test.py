# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that of a model that reads images the language model is taken."""

import pytest

from moe_peft.hf import export
from moe_peft.hf import folders
from moe_peft.hf import image_models
from moe_peft.hf import import_base
from moe_peft.hf import trained as trained_lib
from moe_peft.hf import verify
from tests import refusals
from tests.hf import adapted
from tests.training import tiny


def test_the_text_config_keeps_the_outer_ids():
  found = image_models.text_config({
      'model_type': 'gemma3', 'eos_token_id': [1, 2], 'vision_config': {},
      'text_config': {'hidden_size': 8},
  })
  assert found['model_type'] == 'gemma3_text'
  assert (found['hidden_size'], found['eos_token_id']) == (8, [1, 2])
  assert 'vision_config' not in found


def test_other_files_stay_and_one_without_a_text_config_is_refused():
  llama = {'model_type': 'llama'}
  assert image_models.text_config(llama) is llama
  with refusals.refused('text_config', 'None'):
    image_models.text_config({'model_type': 'gemma3'})


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('language_model.model.norm.weight', 'model.norm.weight'),
        ('model.language_model.norm.weight', 'model.norm.weight'),
        ('language_model.lm_head.weight', 'lm_head.weight'),
        ('model.norm.weight', 'model.norm.weight'),
        ('model.vision_tower.x.weight', None),
    ],
)
def test_tensors_have_the_names_of_the_language_model(name, expected):
  assert image_models.text_name(name) == expected


@pytest.mark.slow
@pytest.mark.hf
def test_adapters_of_the_decoder_lie_beside_it(tmp_path, hf):
  """PEFT puts them on no module of the whole model, and only warns."""
  import transformers

  small = {
      'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1,
      'num_attention_heads': 2,
  }
  text = {
      k: x for k, x in adapted.FAMILIES['gemma3'].items() if k != 'model_type'
  }
  config = transformers.Gemma3Config(
      text_config=text, vision_config={**small, 'image_size': 28},
      mm_tokens_per_image=1,
  )
  whole = transformers.Gemma3ForConditionalGeneration(config)
  whole.save_pretrained(tmp_path / 'whole')
  name = 'google/gemma-3-4b-it'
  base = tmp_path / 'base'
  import_base.import_base(
      tmp_path / 'whole', base, file_format='safetensors', hub_id=name
  )
  source = import_base.read_source(base)
  trained = adapted.make(
      'lora', import_base.read_hf_config(base),
      base_model=trained_lib.name_of_base(source, '', 'peft'),
  )
  export.export(trained, tmp_path / 'out', 'peft')
  verdict = verify.verify(tmp_path / 'out')
  assert verdict.equal and verdict.effect > 0.1
  with refusals.refused('--hub_id', name):
    trained_lib.name_of_base(source, name, 'experts')


def test_a_decoder_is_named_as_the_whole_model_by_cards_alone(tmp_path):
  name = 'google/gemma-3-4b-it'
  source = {'base_model': '', 'part_of': name}
  for file_format in ('merged', 'full', 'gguf'):
    assert trained_lib.name_of_base(source, name, file_format) == name
  # What is refused is so before the base, of which there is none, is read.
  folders.write_json(tmp_path / import_base.SOURCE_FILE, source)
  tiny.load(tmp_path / 'run', INITIAL_CHECKPOINT_PATH=str(tmp_path))
  with refusals.refused('--hub_id', name):
    trained_lib.from_run(name, 'peft')

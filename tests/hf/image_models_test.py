# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that of a model that reads images the language model is taken."""

import pytest

from moe_peft.hf import image_models
from tests import refusals


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

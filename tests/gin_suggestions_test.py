# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What was meant where a name is misspelled."""

from moe_peft import gin_suggestions


def test_the_nearest_names_are_suggested():
  names = ['TRAIN_STEPS', 'BATCH_SIZE']
  assert 'TRAIN_STEPS' in gin_suggestions.nearest('TRAIN_STEP', names)
  assert not gin_suggestions.nearest('X', names)


def test_messages_of_gin_name_what_was_meant():
  files = ['gin/methods/molora.gin', 'gin/methods/lora.gin']
  suggest = lambda message: gin_suggestions.for_message(message, files)
  assert files[0] in suggest('Unable to open file: gin/methods/molra.gin. ...')
  assert 'Import inject' in suggest("'inject' was not provided by an import")
  assert not suggest('Something else.')

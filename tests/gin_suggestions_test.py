# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What was meant where a name is misspelled."""

import pytest

from moe_peft import gin_suggestions


def test_the_nearest_names_are_suggested():
  names = ['TRAIN_STEPS', 'BATCH_SIZE']
  assert 'TRAIN_STEPS' in gin_suggestions.nearest('TRAIN_STEP', names)
  assert not gin_suggestions.nearest('X', names)


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        # A letter more, less or other; neighbours that changed places; cases.
        *((x, 'NUM_EXPERTS') for x in (
            'NUM_EXPRTS', 'NUM_EXXPERTS', 'NUM_EXPERTD', 'NUM_EXPETRS',
            'num_experts')),
        ('LEARNIGN_RATE', 'LEARNING_RATE'),
        # Other words, numbers and plurals; what is as short as a word.
        *((x, '') for x in (
            'END_LEARNING_RATE', 'MIN_LEARNING_RATE', 'NUM_EXPERTS_2',
            'NUM_EXPERTS2', 'NUM_EXPERT', 'EVAL_SPLITS', 'EVALS_SPLIT',
            'RANKS', 'BANK', 'MODEL_DIRS', 'TRAIN_BATCH_SIZE')),
    ],
)
def test_only_a_slip_is_surely_another_name(name, meant):
  names = ['NUM_EXPERTS', 'LEARNING_RATE', 'EVAL_SPLIT', 'RANK', 'MODEL_DIR',
           'BATCH_SIZE']
  assert gin_suggestions.misspelt(name, names) == meant


def test_messages_of_gin_name_what_was_meant():
  files = ['gin/methods/molora.gin', 'gin/methods/lora.gin']
  suggest = lambda message: gin_suggestions.for_message(message, files)
  assert files[0] in suggest('Unable to open file: gin/methods/molra.gin. ...')
  assert 'Import inject' in suggest("'inject' was not provided by an import")
  assert not suggest('Something else.')


@pytest.mark.parametrize(
    ('module', 'attribute', 'script'),
    [
        ('t5x.eval', 'train', 'train'),
        ('t5x.train', 'evaluate', 'eval'),
        # `python -m moe_peft`, `python -m moe_peft.train`.
        ('moe_peft.__main__', 'infer', 'infer'),
        ('moe_peft.train', 'train', 'train'),
    ],
)
def test_the_script_of_a_gin_file_of_t5x_is_named(module, attribute, script):
  said = f"<module '{module}' from 'x.py'> has no attribute {attribute}"
  remedy = gin_suggestions.for_message(said, [])
  assert remedy.endswith(f' t5x.{script}.')


def test_what_a_module_has_is_suggested():
  said = "<module 'moe_peft.gin_suggestions' from ''> has no attribute neares"
  assert 'nearest' in gin_suggestions.for_message(said, [])

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A base whose id 0 is `!` trains it, and its end, and answers with both."""

import json

import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.hf import import_base
from moe_peft.training import loop
from moe_peft.training import restored
from moe_peft.training import run
from tests import small_tokenizers
from tests.hf import import_decoder_test as models

END = '<|im_end|>'
ROWS = [
    {'inputs': 'a cat', 'targets': '!!! sat!'},
    {'inputs': '!', 'targets': 'the mat'},
    {'inputs': '! !!', 'targets': '!'},
]


def load(folder, tokenizer=small_tokenizers.byte_level, **bindings):
  """An imported decoder and its rows; `folder` is made once."""
  words = tokenizer()
  ends = list(words.get_added_tokens_decoder())
  config = {
      **models.SMALL,
      'vocab_size': words.get_vocab_size(),
      'num_hidden_layers': 1,
      'eos_token_id': [ends[-1], ends[0]],
  }
  if not (folder / 'base').exists():
    hf = models.write_model(
        folder / 'hf', config, models.random_tensors(config)
    )
    words.save(str(hf / 'tokenizer.json'))
    import_base.import_base(hf, folder / 'base')
    (folder / 'rows.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in ROWS)
    )
    (folder / 'task.gin').write_text(
        'from __gin__ import dynamic_registration\n'
        'from moe_peft.data import local\n'
        'MIXTURE_OR_TASK_NAME = @local.register_task()\n'
    )
  rows = str(folder / 'rows.jsonl')
  values = {
      'local.register_task.name': folder.name,
      'local.register_task.train': rows,
      'local.register_task.validation': rows,
      'MODEL_DIR': str(folder / 'run'),
      'INITIAL_CHECKPOINT_PATH': str(folder / 'base'),
      'TASK_FEATURE_LENGTHS': {'inputs': 12, 'targets': 12},
      'TRAINABLE_REGEX': '.*', 'TRAIN_STEPS': 60, 'LEARNING_RATE': 1e-2,
      'WARMUP_STEPS': 1, 'BATCH_SIZE': 8, 'EVAL_BATCH_SIZE': 8,
      'ACTIVATION_DTYPE': 'float32', **bindings,
  }
  gin_files.load_gin(
      [str(folder / 'base' / 'model.gin'), 'gin/methods/molora.gin',
       'gin/runs/finetune.gin', str(folder / 'task.gin')],
      [f'{name}={value!r}' for name, value in values.items()],
  )


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_rows_hold_the_id_0_and_the_end(packing, tmp_path):
  load(tmp_path, PACKING=packing)
  experiment = run.build()
  batch = next(loop.train_data(experiment))
  batch = {name: np.asarray(x) for name, x in batch.items()}
  vocabulary = experiment.model.output_vocabulary
  real, ids = batch['decoder_segment_ids'] > 0, batch['decoder_target_tokens']
  assert (ids[real] == 0).any() and not ids[~real].any()
  counted = ids[batch['decoder_loss_weights'] > 0]
  assert (counted == 0).any()
  assert (counted == vocabulary.eos_id - vocabulary.id_offset).any()
  assert not batch['decoder_loss_weights'][~real].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('tokenizer', 'packing'),
    [
        (small_tokenizers.byte_level, False),
        pytest.param(
            small_tokenizers.byte_level, True, marks=pytest.mark.long
        ),
        pytest.param(
            small_tokenizers.byte_level_with_bos, False, marks=pytest.mark.long
        ),
    ],
)
def test_a_run_learns_them_and_answers(tokenizer, packing, tmp_path):
  load(tmp_path, tokenizer, PACKING=packing)
  assert run.run_experiment()
  load(tmp_path, tokenizer, PACKING=packing)
  answers = list(restored.infer([row['inputs'] for row in ROWS]))
  assert answers == [row['targets'] for row in ROWS]
  rows = json.loads((tmp_path / 'run' / 'routing' / 'rows.json').read_text())
  pieces = rows['rows'][0]['decoder']
  begins = tokenizer is small_tokenizers.byte_level_with_bos
  assert (pieces[0] == '⟨start⟩') == begins
  assert ''.join(pieces[begins:]).startswith('a cat⟨end⟩!')

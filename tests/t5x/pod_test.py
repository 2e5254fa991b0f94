# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The leaves of configs/pod: read as they are, and run by stock T5X, shrunk."""

import json

import gin
import jax
import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.hf import import_base
from tests.data import small_chat
from tests.hf import import_decoder_test as models
from tests.t5x import processes
from tests.t5x import resume_test
from tests.t5x import training

pytest.importorskip('t5x')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

FILES = sorted(gin_files.resource('configs/pod').glob('*.gin'))
SIZES = {
    **models.SMALL,
    'vocab_size': 264,
    'hidden_size': 16,
    'intermediate_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'tie_word_embeddings': True,
}
SHRUNK = """
from __gin__ import dynamic_registration
import __main__ as script
from t5x import utils
from moe_peft.data import vocabularies
from moe_peft.methods import moelora
from moe_peft.models import decoder_config
include 'gin/models/llama3_2_1b.gin'
include 'gin/models/t5x_decoder_only.gin'
include 'gin/methods/moelora.gin'
{run}
decoder_config.DecoderConfig:
  vocab_size = 264
  emb_dim = 16
  num_heads = 4
  num_kv_heads = 2
  num_layers = 2
  head_dim = 8
  mlp_dim = 32
  rope_theta = 500.0
  rope_scaling = None
ACTIVATION_DTYPE = 'float32'
BOS_ID = {bos_id}
VOCABULARY_FILE = '{folder}/base/tokenizer.json'
vocabularies.TokenizerVocabulary:
  eos_id = {eos_id}
  stop_ids = ()
TRAIN_FILES = '{folder}/train.jsonl'
VALIDATION_FILES = '{folder}/train.jsonl'
TASK_FEATURE_LENGTHS = {{'inputs': 64, 'targets': 32}}
NUM_EXPERTS = 4
RANK = 2
# All of them: what a sample holds goes by the order of rows, and hosts share
# rows out in another one.
moelora.MoELoRA.num_contrasted = 768
"""
TRAIN = """
BASE_DTYPE = 'float32'
BATCH_SIZE = 8
LEARNING_RATE = 0.1
WARMUP_STEPS = 0
script.train:
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
  stats_period = 1
train/utils.DatasetConfig.shuffle = False
"""
STEPS = 3
NUMBERS = range(10, 58)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_a_leaf_is_read_without_rows_or_tokenizer(file):
  planning.load([str(file)], ['TRAIN_STEPS=10'], '')
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  config = model.module.module.config
  assert config.scan_layers and config.remat_policy == 'full'
  partitions = gin.query_parameter('%NUM_MODEL_PARTITIONS')
  assert config.num_kv_heads % partitions == 0
  if file.stem in ('llama3_1_8b_molora', 'gemma3_1b_sira'):
    step = planning.step()
    assert step.choices['packing'] and step.choices['base_dtype'] == 'bfloat16'
    assert step.batch['decoder_loss_weights'].shape == (64, 2048)


def _write_leaf(folder, name, run, more=''):
  file = folder / f'{name}.gin'
  file.write_text(
      SHRUNK.format(
          folder=folder, run=run, bos_id=1,
          eos_id=small_chat.SPECIAL.index(small_chat.END),
      ) + more
  )
  return file


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory):
  """An imported base with a chat template, conversations, and the leaf."""
  folder = tmp_path_factory.mktemp('pod')
  hf = models.write_model(folder / 'hf', SIZES, models.random_tensors(SIZES))
  small_chat.write_tokenizer(hf, small_chat.CHATML)
  import_base.import_base(hf, folder / 'base', 'scan')
  # Each twice and all of one length, in order: two hosts, which share rows out
  # and pack their own, see in a step what one sees.
  rows = [
      {'messages': [
          {'role': 'user', 'content': f'{i} + 1'},
          {'role': 'assistant', 'content': str(i + 1)},
      ]} for i in NUMBERS for _ in range(2)
  ]
  lines = map(json.dumps, rows)
  (folder / 'train.jsonl').write_text('\n'.join(lines))
  _write_leaf(folder, 'train', "include 'gin/runs/t5x_pod.gin'", TRAIN)
  processes.train(
      folder / 'train.gin', folder / 'one', str(folder / 'base/checkpoint_0'),
      TRAIN_STEPS=STEPS, NUM_MODEL_PARTITIONS=1,
  )
  return folder


def _check_losses(folder, name):
  expected = processes.losses(folder / 'one')
  assert len(set(expected)) == STEPS
  np.testing.assert_allclose(
      processes.losses(folder / name), expected, rtol=1e-4
  )


def test_eight_devices_train_as_one(folder):
  macros = {
      'MODEL_DIR': str(folder / 'eight'), 'TRAIN_STEPS': STEPS,
      'INITIAL_CHECKPOINT_PATH': str(folder / 'base/checkpoint_0'),
      'NUM_MODEL_PARTITIONS': 2,
  }
  with training.parsed('train', [folder / 'train.gin'], **macros) as main:
    assert jax.device_count() == 8
    main()
  _check_losses(folder, 'eight')


def test_two_processes_train_as_one(folder):
  resume_test.train_together(
      folder / 'train.gin', folder / 'two', str(folder / 'base/checkpoint_0'),
      folder / 'logs', TRAIN_STEPS=STEPS, NUM_MODEL_PARTITIONS=2,
  )
  _check_losses(folder, 'two')


def _answers(folder, script, file):
  """The lines that t5x.eval or t5x.infer writes of the validation split."""
  leaf = _write_leaf(
      folder, script,
      f"include 'gin/runs/t5x_{script}.gin'\ninclude 'gin/runs/t5x_chat.gin'",
  )
  macros = {
      f'{script.upper()}_OUTPUT_DIR': str(folder / script), 'BATCH_SIZE': 8,
      'CHECKPOINT_PATH': str(folder / 'one' / f'checkpoint_{STEPS}'),
  }
  with training.parsed(script, [leaf], **macros) as main:
    main()
  lines = (folder / script / file).read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_evaluation_and_inference_give_the_same_answers(folder):
  file = f'inference_eval/chat-00000{STEPS}.jsonl'
  evaluated = _answers(folder, 'eval', file)
  inferred = _answers(folder, 'infer', 'chat-predict.jsonl-00000-of-00001')
  asked = [str(i + 1) for i in NUMBERS for _ in range(2)]
  assert [line['target'] for line in evaluated] == asked
  assert [line['prediction'] for line in evaluated] == [
      line['prediction'] for line in inferred
  ]

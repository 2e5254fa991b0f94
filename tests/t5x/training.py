# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs stock `t5x.train` in this process, on a tiny task and a tiny base."""

import functools
import sys
from unittest import mock

import jax
import seqio
import tensorflow as tf

from moe_peft import command_line
from moe_peft import trainable
from moe_peft.data import vocabularies

TASK = 't5x_test_reverse'
# Added to every configuration.
_COMMON = f"""
from __gin__ import dynamic_registration
import __main__ as train_script

MIXTURE_OR_TASK_NAME = '{TASK}'
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 8}}
BATCH_SIZE = 8
USE_CACHED_TASKS = False
DROPOUT_RATE = 0.0
train_script.train:
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
"""
# Divisible by the eight host devices, which T5X puts on the axis `model`.
TINY = """
network.T5Config:
  emb_dim = 8
  num_heads = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 4
  mlp_dim = 16
"""
BASE = f"""
from __gin__ import dynamic_registration
import optax
from t5x import models
from t5x import optimizers
from t5x import utils
from t5x.examples.t5 import network
include 'gin/models/t5x_tiny_t5.gin'
include 't5x/configs/runs/pretrain.gin'
{TINY}
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @network.Transformer()
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = @optimizers.OptaxWrapper()
optimizers.OptaxWrapper.optax_optimizer = @optax.sgd()
optax.sgd.learning_rate = 0.1
utils.SaveCheckpointConfig.period = 2
TRAIN_STEPS = 2
RANDOM_SEED = 7
"""


def adapted(method, more='', run=''):
  """Configuration of adapters on the network of `examples.t5`."""
  return f"""
from __gin__ import dynamic_registration
from t5x.examples.t5 import network
include 'gin/models/t5x_tiny_t5.gin'
include 'gin/models/t5x_examples_t5.gin'
include 'gin/methods/{method}.gin'
include 'gin/runs/t5x_finetune.gin'
{run}
{TINY}
WARMUP_STEPS = 0
{more}
"""


def _rows(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  words = [f'word{i}' for i in range(32)]
  return tf.data.Dataset.from_tensor_slices(
      {'inputs': words, 'targets': [word[::-1] for word in words]}
  )


@functools.cache
def add_task():
  feature = seqio.Feature(vocabularies.byte_vocabulary(), add_eos=True)
  seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(_rows, splits=('train', 'validation')),
      preprocessors=[
          seqio.preprocessors.tokenize,
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={'inputs': feature, 'targets': feature},
      metric_fns=[],
  )


def train(config, folder, **macros):
  """Trains and returns the last train state.

  Args:
    config: gin source.
    folder: MODEL_DIR.
    **macros: More bindings.
  """
  import gin
  from t5x import gin_utils
  from t5x import train as train_script

  add_task()
  folder.mkdir(parents=True, exist_ok=True)
  files = []
  for name, source in (('run', config), ('common', _COMMON)):
    files.append(folder.parent / f'{folder.name}_{name}.gin')
    files[-1].write_text(source)
  gin.clear_config(clear_constants=True)
  stock = str(train_script._DEFAULT_GIN_SEARCH_PATHS[0])
  ours = str(command_line.resource('gin').parent)
  bindings = [f'{k} = {v!r}' for k, v in macros.items()]
  # As the command does: gin files say `import __main__ as train_script`.
  # The registrations of earlier runs in this process may be replaced.
  with (
      mock.patch.dict(sys.modules, {'__main__': train_script}),
      gin.config.interactive_mode(),
  ):
    gin_utils.parse_gin_flags(
        [ours, stock],
        [str(file) for file in files],
        [f"MODEL_DIR = '{folder}'", *bindings],
    )
    step, state = gin.get_configurable(train_script.train)()
  assert step == state.step
  return state


def flat_params(state):
  """`{path: array}` of the parameters of a train state."""
  return jax.device_get(trainable.flatten(state.state_dict()['target']))

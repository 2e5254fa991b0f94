# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments small enough for tests: real gin files, real words."""

from typing import Any

from moe_peft import gin_files
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import run

SIZES = {
    't5.T5Config.emb_dim': 16,
    't5.T5Config.num_heads': 2,
    't5.T5Config.head_dim': 8,
    't5.T5Config.mlp_dim': 32,
    't5.T5Config.num_encoder_layers': 1,
    't5.T5Config.num_decoder_layers': 1,
    'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 16},
    'MIXTURE_OR_TASK_NAME': 'past_tense',
    'INITIAL_CHECKPOINT_PATH': None,
    'TRAIN_STEPS': 4,
    'WARMUP_STEPS': 1,
    'BATCH_SIZE': 8,
    'EVAL_BATCH_SIZE': 8,
    'EVAL_EXAMPLES': 16,
    'LOG_PERIOD': 1,
    'NUM_EXPERTS': 4,
    'RANK': 2,
    # An attention and an MLP layer: each adapted layer has to be compiled.
    'SITES': '.*/(query|wo)',
}

# Undoes the small sizes: those of gin/models/tiny_t5.gin.
FULL_SIZES = {
    't5.T5Config.emb_dim': 128,
    't5.T5Config.num_heads': 4,
    't5.T5Config.head_dim': 32,
    't5.T5Config.mlp_dim': 384,
    't5.T5Config.num_encoder_layers': 3,
    't5.T5Config.num_decoder_layers': 3,
}


def load(model_dir: Any, method: str = 'molora', **bindings: Any) -> None:
  """Loads the gin configuration of a tiny experiment."""
  values = {**SIZES, 'MODEL_DIR': str(model_dir), **bindings}
  if method != 'molora':  # These say themselves how many experts go where.
    for name in {'NUM_EXPERTS', 'SITES'} - bindings.keys():
      values.pop(name)
  if method in ('full', 'mov', 'smora'):  # Methods without a rank.
    values.pop('RANK', None)
  gin_files.load_gin(
      [
          'gin/models/tiny_t5.gin',
          f'gin/methods/{method}.gin',
          'gin/runs/finetune.gin',
      ],
      [f'{name}={value!r}' for name, value in values.items()],
  )


def experiment(
    model_dir: Any, method: str = 'molora', **bindings: Any
) -> experiment_lib.Experiment:
  """Returns a tiny experiment."""
  load(model_dir, method, **bindings)
  return run.build()

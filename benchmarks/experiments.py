# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiments of the shipped gin files, and batches without data."""

from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import gin_files
from moe_peft.models import encoder_decoder
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import run

# Bindings with which T5 1.1 Small is compiled and run within seconds.
ONE_LAYER = {
    't5.T5Config.num_encoder_layers': 1,
    't5.T5Config.num_decoder_layers': 1,
    't5.T5Config.vocab_size': 4000,
}


def method_names() -> list[str]:
  """Names of the files in gin/methods/."""
  folder = gin_files.resource('gin/methods')
  return sorted(path.stem for path in folder.glob('*.gin'))


def build(
    model: str,
    method: str,
    lengths: tuple[int, int],
    batch_size: int,
    bindings: Mapping[str, Any] | None = None,
) -> experiment_lib.Experiment:
  """An experiment with random parameters and without dropout.

  Gin makes adapters when the network runs: compile what you need before you
  build the next one.

  Args:
    model: File of gin/models/.
    method: File of gin/methods/.
    lengths: Tokens of inputs and targets.
    batch_size: Rows.
    bindings: Further gin bindings.
  """
  values = {
      'MODEL_DIR': 'unused',
      'MIXTURE_OR_TASK_NAME': 'past_tense',
      'TASK_FEATURE_LENGTHS': {'inputs': lengths[0], 'targets': lengths[1]},
      'BATCH_SIZE': batch_size,
      'TRAIN_STEPS': 1000,
      'INITIAL_CHECKPOINT_PATH': None,
      'ACTIVATION_DTYPE': 'float32',
      'DROPOUT_RATE': 0.0,
      **(bindings or {}),
  }
  gin_files.load_gin(
      [
          f'gin/models/{model}.gin',
          f'gin/methods/{method}.gin',
          'gin/runs/finetune.gin',
      ],
      [f'{name}={value!r}' for name, value in values.items()],
  )
  return run.build()


def prepare(
    experiment: experiment_lib.Experiment,
) -> experiment_lib.Setup:
  """As `experiment.prepare`, with random numbers for initial values.

  To compile a whole network's initialization would take longer than most of
  what is timed here. They are drawn on the device, each in the type that it is
  stored in: a large base is never on the host.

  Args:
    experiment: The one that gin has just built.
  """
  setup = experiment_lib.lay_out(experiment)
  number, key = itertools.count(), jax.random.key(0, impl='rbg')
  draw = lambda x: jax.device_put(
      _draw(jax.random.fold_in(key, next(number)), x.shape, x.dtype), x.sharding
  )
  return dataclasses.replace(
      setup,
      trainable=jax.tree.map(draw, setup.trainable),
      frozen=jax.tree.map(draw, setup.frozen),
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Random numbers; of integers all bits."""
  if jnp.issubdtype(dtype, jnp.integer):
    return jax.random.bits(key, shape, jnp.uint8).astype(dtype)
  return (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)


def describe(bindings: Mapping[str, Any] | None) -> str:
  """Sizes that differ from those of the gin file, for titles."""
  return ''.join(
      f', {name.rpartition(".")[2]} {value}'
      for name, value in (bindings or {}).items()
  )


def random_batch(
    experiment: experiment_lib.Experiment,
) -> dict[str, np.ndarray]:
  """Model features of real tokens only: no padding, every target counts.

  Args:
    experiment: The one that gin has just built.

  Returns:
    `decoder_input_tokens`, `decoder_target_tokens` and `decoder_loss_weights`,
    <int32>[rows, targets], and `encoder_input_tokens`, <int32>[rows, inputs].
    A decoder alone has no encoder's, rows of inputs and targets together, and
    `decoder_segment_ids`.
  """
  config = experiment.model.module.module.config
  inputs, targets = (
      experiment.task_feature_lengths[name] for name in ('inputs', 'targets')
  )
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(
      1, config.vocab_size, (experiment.batch_size, length), np.int32
  )
  both = isinstance(experiment.model, encoder_decoder.EncoderDecoderModel)
  tokens = draw(targets if both else inputs + targets)
  batch = {
      'decoder_input_tokens': np.roll(tokens, 1, axis=1),
      'decoder_target_tokens': tokens,
      'decoder_loss_weights': np.ones_like(tokens),
  }
  if both:
    return batch | {'encoder_input_tokens': draw(inputs)}
  return batch | {'decoder_segment_ids': np.ones_like(tokens)}


def num_tokens(batch: Mapping[str, np.ndarray]) -> int:
  """Tokens that go through the network, inputs and targets."""
  return sum(
      batch[name].size
      for name in ('encoder_input_tokens', 'decoder_target_tokens')
      if name in batch
  )

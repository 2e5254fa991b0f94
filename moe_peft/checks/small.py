# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A configuration, shrunk: small in every size, the same in every other way.

Layers, widths, vocabulary and lengths get small. Methods with their experts and
ranks, sites, routers, scans, packing, executions and the axes of the mesh stay.
Arithmetic is float32, in which what is equal can be told from what is not.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from moe_peft.checks import subject as subject_lib
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import train_step

TASK = 'moe_peft_check'
# Sizes of networks by the name of their field, ours and T5X's.
_SIZES = {'vocab_size': 64, 'emb_dim': 32, 'mlp_dim': 48, 'head_dim': 8}
_LAYERS = ('num_layers', 'num_encoder_layers', 'num_decoder_layers')
_DEPTHS = (2, 4, 8)
_LENGTHS = {'inputs': 16, 'targets': 12}
_ROWS = 8


def subject(experiment: experiment_lib.Experiment) -> subject_lib.Subject:
  """What is checked of an experiment; it is shrunk.

  Raises:
    errors.UserError: What the experiment describes cannot be trained.
  """
  small = shrink(experiment)
  model = small.model
  train_step.check(experiment_lib.lay_out(small, devices(small)))

  def with_module(module):
    return dataclasses.replace(model, module=module)

  def call(module, params, batch, training):
    adapted = isinstance(module, inject.AdaptedModule)
    outputs, state = with_module(module).apply(
        params, batch,
        dropout_rng=jax.random.key(1) if training else None,
        mutable=('intermediates',),
        step=jnp.int32(0) if training and adapted else None,
    )
    return outputs, losses.collect(state.get('intermediates', {}))

  def loss(module, params, batch):
    value, _ = with_module(module).loss(
        params, batch, jax.random.key(1), step=jnp.int32(0)
    )
    return value

  unpacked = dataclasses.replace(small, packing=False)
  return subject_lib.Subject(
      module=model.module,
      init=lambda module, key: with_module(module).init(
          key, small.task_feature_lengths
      ),
      call=call,
      loss=loss,
      batch=batch(unpacked),
      reads='decoder_input_tokens',
      padding='decoder_target_tokens',
      packed=batch(small) if small.packing else None,
      trainable_regex=small.trainable_regex,
      loss_factors=model.loss_factors,
      experiment=small,
      sizes=sizes(experiment.model.module, model.module),
  )


def shrink(
    experiment: experiment_lib.Experiment,
) -> experiment_lib.Experiment:
  """The experiment with small sizes, random parameters and rows."""
  mesh = {
      name: _least_part(getattr(experiment, name))
      for name in ('num_expert_partitions', 'num_model_partitions')
  }
  lengths = {
      name: min(length, _LENGTHS.get(name, length))
      for name, length in experiment.task_feature_lengths.items()
  }
  model = experiment.model
  changes = {}
  if getattr(model, 'target_length', None) is not None:
    changes['target_length'] = min(model.target_length, lengths['targets'])
  init = lambda module: jax.eval_shape(
      lambda: dataclasses.replace(model, module=module).init(
          jax.random.key(0), lengths
      )
  )
  module = shrink_module(model.module, init, mesh['num_model_partitions'])
  microbatches = _least_part(experiment.num_microbatches)
  rows = _ROWS * microbatches * mesh['num_expert_partitions']
  register(lengths, getattr(_config(module), 'vocab_size', 64))
  return dataclasses.replace(
      experiment,
      model=dataclasses.replace(model, module=module, **changes),
      mixture_or_task_name=TASK,
      task_feature_lengths=lengths,
      batch_size=rows,
      eval_batch_size=rows,
      num_microbatches=microbatches,
      initial_checkpoint_path=None,
      eval_period=0,
      eval_mixture_or_task_name=None,
      base_results_dir=None,
      param_budget=None,
      log_period=1,
      **mesh,
  )


def devices(
    experiment: experiment_lib.Experiment,
) -> Sequence[jax.Device]:
  """The devices of its mesh with two for data; one if there are too few."""
  number = (
      2 * experiment.num_expert_partitions * experiment.num_model_partitions
  )
  there = jax.devices()
  return there[:number] if len(there) >= number else there[:1]


def _least_part(number: int) -> int:
  """The least number of parts, above one, into which `number` parts merge."""
  return next((n for n in range(2, number + 1) if number % n == 0), 1)


def _config(module: inject.AdaptedModule) -> Any:
  return getattr(module.module, 'config', None)


def shrink_module(
    module: inject.AdaptedModule,
    init: Any,
    num_parts: int = 1,
) -> inject.AdaptedModule:
  """An adapted network with a small configuration, as few layers as can be.

  A network without a field `config` of sizes that are known stays as it is,
  and so does one that cannot be built small.

  Args:
    module: The network.
    init: Traces the initialization of such a network.
    num_parts: Wide axes must be multiples of it.
  """
  config = _config(module)
  if not dataclasses.is_dataclass(config):
    return module
  fields = {f.name for f in dataclasses.fields(config)}
  known = {k: getattr(config, k) for k in fields if isinstance(
      getattr(config, k), int) and not isinstance(getattr(config, k), bool)}
  sizes = _small_sizes(known, num_parts)
  if 'dtype' in fields:
    sizes['dtype'] = jnp.float32
  # A list has one value for each layer of a pattern.
  patterns = [
      len(getattr(config, k)) for k in fields
      if isinstance(getattr(config, k), tuple | list)
  ]
  for depth in _DEPTHS:
    depth = max([depth, *patterns])
    layers = {k: min(known[k], depth) for k in _LAYERS if k in known}
    small = module.clone(module=module.module.clone(
        config=dataclasses.replace(config, **sizes, **layers)
    ))
    try:
      init(small)
      return small
    except Exception:  # Too few layers, or sizes that do not go together.
      continue
  return module


def _small_sizes(
    known: Mapping[str, int], num_parts: int
) -> dict[str, int]:
  """Small sizes by name; those that were equal or in proportion still are."""
  up = lambda n: -(-n // num_parts) * num_parts
  sizes = {k: up(min(known[k], n)) for k, n in _SIZES.items() if k in known}
  if 'num_heads' in known:
    heads, keys = known['num_heads'], known.get('num_kv_heads')
    shared = min(keys or heads, 2)
    if keys is not None:
      sizes['num_kv_heads'] = up(shared)
    sizes['num_heads'] = up(shared) * (heads // (keys or heads))
    if known.get('emb_dim') == heads * known.get('head_dim', 0):
      sizes['emb_dim'] = sizes['num_heads'] * sizes['head_dim']
  return sizes


def sizes(own: inject.AdaptedModule, small: inject.AdaptedModule) -> str:
  """What of a network is small now, in a sentence."""
  name, was, now = type(own.module).__name__, _config(own), _config(small)
  if was == now:
    return f'{name}, in its own size.'
  changed = {
      field.name: (getattr(now, field.name), getattr(was, field.name))
      for field in dataclasses.fields(was)
      if _text(getattr(now, field.name)) != _text(getattr(was, field.name))
  }
  return f'{name}, shrunk: ' + ', '.join(
      f'{field} {_text(new)} ({_text(old)})'
      for field, (new, old) in changed.items()
  ) + '.'


def _text(value: Any) -> str:
  return str(getattr(value, '__name__', value))


def register(lengths: Mapping[str, int], vocab_size: int) -> None:
  """Registers the task `TASK`: random ids, at most half of a row long."""

  def rows(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    rng = np.random.default_rng(0)
    drawn = [
        {
            name: rng.integers(
                2, vocab_size, rng.integers(1, max(length // 2, 1) + 1)
            ).tolist()
            for name, length in lengths.items()
        }
        for _ in range(64)
    ]
    ragged = {
        name: tf.ragged.constant([row[name] for row in drawn], tf.int32)
        for name in lengths
    }
    return tf.data.Dataset.from_tensor_slices(ragged).map(
        lambda row: {name: x for name, x in row.items()}
    )

  seqio.TaskRegistry.remove(TASK)
  seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(rows, splits=['train']),
      preprocessors=[],
      output_features={
          name: seqio.Feature(
              seqio.PassThroughVocabulary(vocab_size), add_eos=False
          )
          for name in lengths
      },
  )


def batch(
    experiment: experiment_lib.Experiment,
) -> dict[str, jax.Array]:
  """The first batch that a run of the experiment would train on."""
  features = next(loop.train_data(experiment))
  return {name: jnp.asarray(np.asarray(x)) for name, x in features.items()}

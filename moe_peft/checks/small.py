# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A configuration, shrunk: small in every size, the same in every other way.

Layers, widths, vocabulary and lengths get small. Methods with their experts and
ranks, sites, routers, scans, packing, executions and the axes of the mesh stay.
Arithmetic is float32, in which what is equal can be told from what is not.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.checks import random_rows
from moe_peft.checks import subject as subject_lib
from moe_peft.core import adapted_sites
from moe_peft.core import initial_values
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import objectives
from moe_peft.training import train_step

# Sizes of networks by the name of their field, ours and T5X's.
_SIZES = {'vocab_size': 64, 'window': 6}
_WIDTHS = {'emb_dim': 32, 'mlp_dim': 48}
_LAYERS = ('num_layers', 'num_encoder_layers', 'num_decoder_layers')
# Layers, the size of heads (None: its own), and a factor of widths, from the
# smallest. Experts that begin with parts of a kernel need as many of its
# singular values as they have ranks.
_TRIES = (
    (2, 8, 1), (4, 8, 1), (8, 8, 1),
    (2, 16, 2), (2, 32, 4), (2, 64, 8), (2, None, 1),
)
_LENGTHS = {'inputs': 16, 'targets': 12}
_ROWS = 8


def subject(experiment: experiment_lib.Experiment) -> subject_lib.Subject:
  """What is checked of an experiment; it is shrunk.

  Raises:
    errors.UserError: What the experiment describes cannot be trained.
  """
  small = shrink(experiment)
  train_step.check(experiment_lib.lay_out(small, devices(small)))
  calls = _Calls(small)
  rows = random_rows.batch(dataclasses.replace(
      small, packing=False, objective=objectives.TargetTokens()
  ))
  masks = ('decoder_segment_ids', 'decoder_target_tokens')
  return subject_lib.Subject(
      module=small.model.module,
      init=calls.init,
      call=calls.call,
      loss=calls.loss,
      batch=rows,
      reads='decoder_input_tokens',
      padding=next(name for name in masks if name in rows),
      packed=random_rows.batch(small) if small.packing else None,
      trainable_regex=small.trainable_regex,
      loss_factors=small.model.loss_factors,
      experiment=small,
      sizes=sizes(experiment.model.module, small.model.module),
  )


class _Calls:
  """The model of an experiment around any network of its signature."""

  def __init__(self, experiment: experiment_lib.Experiment):
    self._experiment = experiment

  def _around(self, module):
    return dataclasses.replace(self._experiment.model, module=module)

  def init(self, module, key):
    lengths = self._experiment.task_feature_lengths
    return self._around(module).init(key, lengths)

  def call(self, module, params, batch, training):
    adapted = isinstance(module, inject.AdaptedModule)
    outputs, state = self._around(module).apply(
        params, batch,
        dropout_rng=jax.random.key(1) if training else None,
        mutable=('intermediates',),
        step=jnp.int32(0) if training and adapted else None,
    )
    return outputs, losses.collect(state.get('intermediates', {}))

  def loss(self, module, params, batch):
    value, _ = self._around(module).loss(
        params, batch, jax.random.key(1), step=jnp.int32(0)
    )
    return value


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
  if getattr(model, 'bos_id', None) is not None:
    changes['bos_id'] = min(model.bos_id, 1)
  init = lambda module: dataclasses.replace(model, module=module).init(
      jax.random.key(0), lengths
  )
  module = shrink_module(model.module, init, mesh['num_model_partitions'])
  microbatches = _least_part(experiment.num_microbatches)
  rows = _ROWS * microbatches * mesh['num_expert_partitions']
  random_rows.register(
      {**lengths, **experiment.objective.task_lengths(lengths)},
      getattr(_config(module), 'vocab_size', 64),
      experiment.example_ids,
  )
  return dataclasses.replace(
      experiment,
      model=dataclasses.replace(model, module=module, **changes),
      mixture_or_task_name=random_rows.TASK,
      task_feature_lengths=lengths,
      batch_size=rows,
      eval_batch_size=rows,
      num_microbatches=microbatches,
      initial_checkpoint_path=None,
      base_dtype=quantized.float_dtype(experiment.base_dtype),
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
    init: Makes all variables of such a network.
    num_parts: Wide axes must be multiples of it.
  """
  config = _config(module)
  if not dataclasses.is_dataclass(config):
    return module
  own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  # A list has one value for each layer of a pattern.
  pattern = max(
      (len(x) for x in own.values() if isinstance(x, tuple | list)), default=0
  )
  for depth, head_dim, factor in _TRIES:
    layers = {k: min(own[k], max(depth, pattern)) for k in _LAYERS if k in own}
    changes = layers | _small_sizes(own, num_parts, head_dim, factor)
    small = module.clone(module=module.module.clone(
        config=dataclasses.replace(config, **changes)
    ))
    try:
      _try(functools.partial(init, small))
      return small
    except Exception:  # Too few layers, or sizes that do not go together.
      continue
  return module


def _try(init: Callable[[], Mapping[str, Any]]) -> None:
  """Traces an initialization; what begins with kernels gets random ones."""
  variables, adapters = adapted_sites.trace(init)
  params = trainable.flatten(variables['params'])
  if initial_values.wanted(params):
    rng = np.random.default_rng(0)
    initial_values.from_base(
        adapters, {k: rng.normal(size=x.shape) for k, x in params.items()}
    )


def _small_sizes(
    own: Mapping[str, Any], num_parts: int, head_dim: int | None, factor: int
) -> dict[str, Any]:
  """Small sizes by name; those that were equal or in proportion still are."""
  up = lambda n: -(-n // num_parts) * num_parts
  wanted = _SIZES | {k: n * factor for k, n in _WIDTHS.items()}
  sizes = {k: up(min(own[k], n)) for k, n in wanted.items() if own.get(k)}
  if 'dtype' in own:
    sizes['dtype'] = jnp.float32
  if 'num_heads' not in own or 'head_dim' not in own:
    return sizes
  heads = own['num_heads']
  keys = own.get('num_kv_heads', heads)
  sizes['head_dim'] = min(own['head_dim'], head_dim or own['head_dim'])
  sizes['num_heads'] = up(min(keys, 2)) * (heads // keys)
  if 'num_kv_heads' in own:
    sizes['num_kv_heads'] = up(min(keys, 2))
  if own.get('emb_dim') == heads * own['head_dim']:
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

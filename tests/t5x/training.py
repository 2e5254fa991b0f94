# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the stock scripts of T5X in this process, on a tiny task."""

import contextlib
import functools
import gc
import importlib
import importlib.util
from pathlib import Path
import sys
from unittest import mock

import gin
import jax
import numpy as np
import seqio
import tensorflow as tf

from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.data import metrics
from moe_peft.data import ranking
from moe_peft.data import vocabularies

TASK = 't5x_test_reverse'
CHOICES_TASK = 't5x_test_choose'
MIXTURE = 't5x_test_both'
DATA = f"""
MIXTURE_OR_TASK_NAME = '{TASK}'
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 8}}
DROPOUT_RATE = 0.0
"""
# Added to every configuration of a script.
_COMMON = {
    'train': f"""
from __gin__ import dynamic_registration
import __main__ as train_script
{DATA}
BATCH_SIZE = 8
USE_CACHED_TASKS = False
train_script.train:
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
""",
    **{
        script: f"""
from __gin__ import dynamic_registration
from t5x import utils
{DATA}
MIXTURE_OR_TASK_NAME = '{MIXTURE}'
utils.DatasetConfig.split = 'validation'
utils.DatasetConfig.batch_size = 8
"""
        for script in ('eval', 'infer')
    },
}


def _rows(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  words = [f'word{i}' for i in range(32)]
  return tf.data.Dataset.from_tensor_slices(
      {'inputs': words, 'targets': [word[::-1] for word in words]}
  )


@functools.cache
def add_task():
  """Registers the tasks: 32 words, to be written backwards, or to choose."""
  feature = seqio.Feature(vocabularies.byte_vocabulary(), add_eos=True)
  tokenized = [
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
  ]
  common = {
      'source': seqio.FunctionDataSource(_rows, splits=('train', 'validation')),
      'output_features': {'inputs': feature, 'targets': feature},
  }
  seqio.TaskRegistry.add(
      TASK,
      preprocessors=tokenized,
      metric_fns=[metrics.exact_match],
      **common,
  )
  seqio.TaskRegistry.add(
      CHOICES_TASK,
      preprocessors=[_choices, ranking.rank_classification, *tokenized],
      postprocess_fn=ranking.rank_target,
      metric_fns=[ranking.rank_accuracy],
      **common,
  )
  seqio.MixtureRegistry.add(MIXTURE, [TASK, CHOICES_TASK], default_rate=1.0)


def _choices(dataset):
  """The word backwards or as it is."""
  return dataset.map(
      lambda row: {
          'inputs': row['inputs'],
          'choices': tf.stack([row['targets'], row['inputs']]),
          'label': 0,
          'training': False,
      }
  )


@contextlib.contextmanager
def _main_module(script):
  """Puts `script` in the place of `__main__`, which gin files import."""
  # `mock.patch.dict` would also forget every module imported meanwhile.
  main, sys.modules['__main__'] = sys.modules['__main__'], script
  try:
    # What gin files import shows errors of scripts in a way of its own.
    with mock.patch.object(sys, 'excepthook', sys.excepthook):
      yield
  finally:
    sys.modules['__main__'] = main


def _folder_of(package):
  """The folder that holds `package/`."""
  spec = importlib.util.find_spec(package)
  return Path(next(iter(spec.submodule_search_locations))).parent


@contextlib.contextmanager
def configured(script, config, folder, package='t5x', **macros):
  """Configures `t5x.<script>` by gin and gives its main function.

  Args:
    script: 'train', 'eval' or 'infer'.
    config: gin source.
    folder: Parent of the gin files.
    package: Whose gin files are included. The script runs in the folder that
      holds it: gin finds files of packages without `__init__.py` only there.
    **macros: More bindings.
  """
  add_task()
  folder.mkdir(parents=True, exist_ok=True)
  files = []
  for name, source in (('run', config), ('common', _COMMON[script])):
    files.append(folder / f'{script}_{name}.gin')
    files[-1].write_text(source)
  with parsed(script, files, package, **macros) as main:
    yield main


@contextlib.contextmanager
def parsed(script, files, package='t5x', **macros):
  """As `configured`, for gin files that there are."""
  from t5x import gin_utils

  # A writer of an earlier run, collected while TensorFlow traces a function,
  # would become a part of it.
  gc.collect()
  module = importlib.import_module(f't5x.{script}')
  gin.clear_config(clear_constants=True)
  # The registrations of earlier runs in this process may be replaced.
  paths = [gin_files.resource('gin').parent, _folder_of('t5x')]
  with (
      contextlib.chdir(_folder_of(package)),
      _main_module(module),
      gin.config.interactive_mode(),
  ):
    gin_utils.parse_gin_flags(
        [str(path) for path in paths],
        [str(file) for file in files],
        [f'{name} = {value!r}' for name, value in macros.items()],
    )
    function = {'eval': 'evaluate'}.get(script, script)
    yield gin.get_configurable(getattr(module, function))


@contextlib.contextmanager
def on_one_device():
  """Lays out what runs on one device: a program for eight compiles longer."""
  from t5x import partitioning

  from moe_peft.t5x import partitioners

  mesh = jax.sharding.Mesh(np.array([jax.devices()[:1]]), ('data', 'model'))
  with (
      mock.patch.object(partitioning, 'get_cpu_mesh', lambda: mesh),
      mock.patch.object(partitioners.Partitioner, 'mesh', mesh),
  ):
    yield


def train(config, folder, **macros):
  """Trains in `folder`, on one device, and returns the last train state."""
  macros['MODEL_DIR'] = str(folder)
  with (
      on_one_device(),
      configured('train', config, folder / 'gin', **macros) as main,
  ):
    step, state = main()
  assert step == state.step
  return state


def run(script, config, folder, **macros):
  """Runs 'eval' or 'infer' on one device; the results lie in `folder`."""
  macros[f'{script.upper()}_OUTPUT_DIR'] = str(folder)
  with (
      on_one_device(),
      configured(script, config, folder / 'gin', **macros) as main,
  ):
    main()


def flat_params(state):
  """`{path: array}` of the parameters of a train state."""
  return jax.device_get(trainable.flatten(state.state_dict()['target']))


def check_trained(state, base_params, steps):
  """The base is as it was, all adapters and only they have a state."""
  params = flat_params(state)
  frozen = {k: v for k, v in params.items() if not trainable.is_adapter(k)}
  assert frozen.keys() == base_params.keys()
  for path, value in frozen.items():
    np.testing.assert_array_equal(value, base_params[path], err_msg=path)
  assert int(state.step) == steps
  adapters = params.keys() - frozen.keys()
  started = {'lora_b': 0.0, 'scaling': 1.0}  # What every method begins with.
  experts = {k for k in adapters if k.split('/')[-1] in started}
  assert experts
  for path in experts:
    assert (params[path] != started[path.split('/')[-1]]).any(), path
  assert not any('expert' in path for path in params)
  # Adam has two moments of every trained parameter and nothing else.
  sizes = [x.size for x in jax.tree.leaves(state.param_states) if x.ndim]
  assert sum(sizes) == 2 * sum(params[k].size for k in adapters)

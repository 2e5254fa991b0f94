# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Under T5X the experts of a bank come with the base, and stay."""

import contextlib
import importlib
import sys

import gin
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moe_peft.cli import flags
from moe_peft.cli import t5x_config
from moe_peft.core import trainable
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from tests.t5x import training
from tests.training import tiny

with contextlib.suppress(ImportError):
  importlib.import_module('t5x')  # It registers with gin: before it is locked.

_FILES = 'gin/models/tiny_t5.gin', 'gin/methods/{}.gin', 'gin/runs/finetune.gin'


@pytest.mark.t5x
@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'fresh', 'given'),
    [
        ('bank', 'router/(?!gates)', False),
        ('bank_xlora', '(.*/)?adapter/router', False),
        # As in the xlora.gin of a bank that has a classifier.
        ('bank_xlora', "FRESH_REGEX = 'state/.*'", True),
    ],
)
def test_only_the_router_learns(tmp_path, method, fresh, given):
  if 't5x' not in sys.modules:
    pytest.skip('t5x is not on the path')
  more = {'SITES': '.*/(query|wo)'}
  setup = experiment_lib.prepare(tiny.experiment(tmp_path, 'molora', **more))
  rng = np.random.default_rng(0)
  params = {
      path: rng.normal(0, 0.1, x.shape).astype(np.float32)
      if '/lora_' in path else np.asarray(x)
      for path, x in {**setup.trainable, **setup.frozen}.items()
      if '/router/' not in path
  }
  sizes = tiny.SIZES['t5.T5Config.emb_dim'], tiny.SIZES['NUM_EXPERTS']
  classifier = {
      'adapter/router/kernel': rng.normal(size=sizes).astype(np.float32),
      'adapter/router/bias': rng.normal(size=sizes[1]).astype(np.float32),
  } if given else {}
  if given:
    more['FRESH_REGEX'] = 'state/.*'
  base = bases.write_t5x(params | classifier, tmp_path / 'base')
  values = {
      **tiny.SIZES, **more, 'MODEL_DIR': str(tmp_path / 'unused'),
      'INITIAL_CHECKPOINT_PATH': str(base), 'TRAIN_STEPS': 2,
      'CHECKPOINT_PERIOD': 1,
  }
  file = tmp_path / 'leaf.gin'
  flag_values = [f'--gin.{name}={value!r}' for name, value in values.items()]
  t5x_config.main(
      flags.rewrite_gin_args([
          *(f'--gin_file={x.format(method)}' for x in _FILES), *flag_values,
          f'--out={file}',
      ])
  )
  assert fresh in file.read_text()
  file.write_text(
      file.read_text()
      + 'train_script.train.infer_eval_dataset_cfg = None\n'
      + 'train_script.train.train_eval_dataset_cfg = None\n'
  )
  gin.clear_config()  # What T5X registers cannot be when it is locked.
  with training.parsed(
      'train', [file], MODEL_DIR=str(tmp_path / 't5x')
  ) as main:
    _, state = main()
  after = trainable.flatten(jax.device_get(state.params))
  for path, array in params.items():
    np.testing.assert_array_equal(after[path], array, err_msg=path)
  routers = after.keys() - params.keys()
  assert routers and routers >= classifier.keys()
  assert all('/router/' in f'/{path}' for path in routers)
  with ocp.PyTreeCheckpointer() as reader:
    saved = [
        reader.restore(tmp_path / f't5x/checkpoint_{step}/state')
        for step in (1, 2)
    ]
  first, last = (trainable.flatten(x['target']) for x in saved)
  assert routers <= first.keys()
  for path, array in classifier.items():  # One step is not far.
    np.testing.assert_allclose(first[path], array, atol=0.05)
  for path in routers:
    assert (first[path] != last[path]).any(), path
    np.testing.assert_array_equal(after[path], last[path], err_msg=path)

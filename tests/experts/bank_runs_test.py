# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""From runs to a bank, and runs over the bank."""

import jax
import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.experts import bank
from moe_peft.experts import bank_base
from moe_peft.experts import bank_experts
from moe_peft.runs import results_file
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from tests import refusals
from tests.training import tiny

SIZES = {**tiny.SIZES, 'TRAIN_STEPS': 2, 'EVAL_EXAMPLES': 4}
FEW = {'SITES': '.*/(query|wo)'}
for name in ('NUM_EXPERTS', 'RANK', 'INITIAL_CHECKPOINT_PATH', 'SITES'):
  del SIZES[name]


def load(folder, method, *files, **bindings):
  """Loads a tiny experiment; `files` come last."""
  values = {**SIZES, 'MODEL_DIR': str(folder), **bindings}
  gin_files.load_gin(
      ['gin/models/tiny_t5.gin', f'gin/methods/{method}.gin',
       'gin/runs/finetune.gin', *map(str, files)],
      [f'{name}={value!r}' for name, value in values.items()],
  )


def train(folder, method, *files, **bindings):
  """Runs it, and returns its parameters."""
  load(folder, method, *files, **bindings)
  assert run.run_experiment() == folder
  return params_of(run.build())


def params_of(experiment):
  setup = experiment_lib.prepare(experiment)
  checkpointer = loop.open_checkpoints(setup)
  params = jax.device_get(loop.restore_params(setup, checkpointer))
  checkpointer.close()
  return params


def make_base(folder, seed):
  load(folder, 'full', INITIAL_CHECKPOINT_PATH=None, SEED=seed)
  setup = experiment_lib.prepare(run.build())
  return str(bases.save_base(jax.device_get(setup.trainable), folder).parent)


@pytest.mark.slow
def test_runs_become_a_bank_and_only_its_router_learns(tmp_path):
  base = make_base(tmp_path / 'base', 0)
  runs = {'one': ('past_tense', 3), 'two': ('lemma', 2)}
  trained = {
      name: train(
          tmp_path / name, 'lora', MIXTURE_OR_TASK_NAME=task, RANK=rank,
          SEED=rank, INITIAL_CHECKPOINT_PATH=base, **FEW,
      )
      for name, (task, rank) in runs.items()
  }
  folder = tmp_path / 'bank'
  made = bank.build([str(tmp_path / name) for name in runs], base, folder)
  assert [(x.rank, x.trained_on, x.checked) for x in made.experts] == [
      (3, 'past_tense', 'fingerprint'), (2, 'lemma', 'fingerprint')
  ]
  _, params = bank.load(folder)
  for index, (name, (_, rank)) in enumerate(runs.items()):
    for path in (x for x in params if x.endswith('lora_a')):
      other = path.replace('lora_a', 'lora_b')
      want = 16.0 / rank * trained[name][path][0] @ trained[name][other][0]
      ours = params[path][index] @ params[other][index]
      np.testing.assert_allclose(ours, want, atol=1e-6)
  # The router learns, the experts and the base do not.
  after = train(tmp_path / 'router', 'bank', folder / bank.GIN_FILE)
  stored = bases.read_arrays(folder)
  routers = [x for x in after if '/router/' in x]
  assert routers and stored.keys() == after.keys() - set(routers)
  for path, array in stored.items():
    np.testing.assert_array_equal(array, after[path], err_msg=path)
  # Arrow has nothing to learn, and is a run all the same.
  train(
      tmp_path / 'arrow', 'bank_arrow', folder / bank.GIN_FILE,
      TRAIN_STEPS=0, WARMUP_STEPS=0, NUM_SELECTED_EXPERTS=2,
  )
  assert results_file.read(tmp_path / 'arrow') is not None
  # A run of another base, and one with a router, are no experts of it.
  other = make_base(tmp_path / 'other', 1)
  with refusals.refused('--from', tmp_path / 'one', 'another base'):
    bank.build([str(tmp_path / 'one')], other, tmp_path / 'none')
  with refusals.refused('--from', tmp_path / 'router', 'Bank'):
    bank.add(folder, [str(tmp_path / 'router')])
  with refusals.refused('--base', 'hf import'):
    bank_base.read(base)
  assert bank_experts.is_run(tmp_path / 'one')
  assert not bank_experts.is_run(folder)


@pytest.mark.slow
def test_gates_are_trained_apart_and_compete(tmp_path):
  base = make_base(tmp_path / 'base', 0)
  train(tmp_path / 'lora', 'lora', RANK=2, INITIAL_CHECKPOINT_PATH=base, **FEW)
  bank.build([str(tmp_path / 'lora')], base, tmp_path / 'alone')
  trained = train(
      tmp_path / 'gate', 'phatgoose', tmp_path / 'alone' / bank.GIN_FILE
  )
  folder = tmp_path / 'bank'
  made = bank.build(
      [f'one={tmp_path}/gate', f'two={tmp_path}/gate'], base, folder
  )
  assert made.gated
  bank.add(folder, [f'three={tmp_path}/gate'])  # They go through `add`.
  load(tmp_path / 'x', 'bank_phatgoose', folder / bank.GIN_FILE, TRAIN_STEPS=0)
  setup = experiment_lib.prepare(run.build())
  params = {**setup.trainable, **setup.frozen}
  routers = [x for x in params if x.endswith('/router/gates')]
  assert routers
  for path in routers:
    gate = trained[path.replace('router/gates', 'gate')]
    assert np.any(gate)
    for index in range(3):
      np.testing.assert_array_equal(params[path][:, index], gate)
  # One expert without a gate, and the bank has none.
  bank.add(folder, [f'four={tmp_path}/lora'])
  assert not bank.load(folder)[0].gated
  load(tmp_path / 'x', 'bank_phatgoose', folder / bank.GIN_FILE, TRAIN_STEPS=0)
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'router/gates'):
    experiment_lib.prepare(run.build())


@pytest.mark.slow
def test_experts_that_do_not_train_must_come_with_the_base(tmp_path):
  base = make_base(tmp_path / 'base', 0)
  load(tmp_path / 'x', 'bank', INITIAL_CHECKPOINT_PATH=base)
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'lora_b', 'bank build'):
    experiment_lib.prepare(run.build())
  load(tmp_path / 'x', 'bank', INITIAL_CHECKPOINT_PATH=base,
       TRAINABLE_REGEX='.*/adapter/.*')
  setup = experiment_lib.prepare(run.build())
  assert any(map(trainable.is_adapter, setup.trainable))

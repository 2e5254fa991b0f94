# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""From runs to a bank, and runs over the bank."""

import json

import gin
import jax
import numpy as np
import pytest

from moe_peft import evaluate
from moe_peft import gin_files
from moe_peft import train as train_door
from moe_peft.cli import bank as bank_command
from moe_peft.cli import flags
from moe_peft.cli import hf as hf_command
from moe_peft.cli import init
from moe_peft.core import trainable
from moe_peft.experts import bank
from moe_peft.experts import bank_arrays
from moe_peft.experts import bank_base
from moe_peft.experts import bank_experts
from moe_peft.experts import bank_file
from moe_peft.experts import bank_gin
from moe_peft.experts import bank_peft
from moe_peft.hf import xlora_config
from moe_peft.runs import config_file
from moe_peft.runs import results_file
from moe_peft.runs import run_file
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from tests import refusals
from tests import small_tokenizers
from tests.hf import import_decoder_test as models
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


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return make_base(tmp_path_factory.mktemp('base') / 'base', 0)


@pytest.fixture(scope='module')
def alone(base, tmp_path_factory):
  """A folder with a run `lora` and a bank `alone`, of nothing else."""
  folder = tmp_path_factory.mktemp('alone')
  train(folder / 'lora', 'lora', RANK=2, INITIAL_CHECKPOINT_PATH=base, **FEW)
  bank.build([str(folder / 'lora')], base, folder / 'alone')
  record = folder / 'alone' / bank_file.FILE
  record.write_text(record.read_text().replace(
      '"licence": ""', '"licence": "mit"'
  ))
  return folder


@pytest.mark.slow
def test_runs_become_a_bank_and_only_its_router_learns(base, tmp_path):
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
  after = train(tmp_path / 'router', 'bank', folder / bank_gin.FILE)
  stored = bases.read_arrays(folder)
  routers = [x for x in after if '/router/' in x]
  assert routers and stored.keys() == after.keys() - set(routers)
  for path, array in stored.items():
    np.testing.assert_array_equal(array, after[path], err_msg=path)
  # Arrow has nothing to learn, and is a run all the same.
  train(
      tmp_path / 'arrow', 'bank_arrow', folder / bank_gin.FILE,
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


def test_a_run_that_has_changed_its_base_is_no_expert(tmp_path):
  load(tmp_path, 'lora', INITIAL_CHECKPOINT_PATH=None, TRAINABLE_REGEX='.*')
  (tmp_path / config_file.FILE).write_text(gin.config_str())
  with refusals.refused('--from', tmp_path, 'has trained', 'adapters alone'):
    bank_experts.of_run('one', tmp_path, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    'method, one, columns',
    [('phatgoose', 'gate', 'gates'), ('retrieval', 'centroid', 'centroids')],
)
def test_columns_are_trained_apart_and_compete(
    base, alone, tmp_path, method, one, columns
):
  trained = train(tmp_path / 'gate', method, alone / 'alone' / bank_gin.FILE)
  folder, routed = tmp_path / 'bank', f'bank_{method}'
  made = bank.build(
      [f'one={tmp_path}/gate', f'two={tmp_path}/gate'], base, folder
  )
  assert {x.licence for x in made.experts} == {'mit'}  # Of the LoRA inside.
  bank.add(folder, [f'three={tmp_path}/gate'])  # They go through `add`.
  load(tmp_path / 'x', routed, folder / bank_gin.FILE, TRAIN_STEPS=0)
  setup = experiment_lib.prepare(run.build())
  params = {**setup.trainable, **setup.frozen}
  routers = [x for x in params if x.endswith(f'/router/{columns}')]
  assert routers
  for path in routers:
    column = trained[path.replace(f'router/{columns}', one)]
    assert np.any(column)
    for index in range(3):
      np.testing.assert_array_equal(params[path][:, index], column)
  # One expert without a column, and the bank has none.
  bank.add(folder, [f'four={alone}/lora'])
  for steps in (0, 2):  # With zeros they could not begin to learn.
    load(tmp_path / 'x', routed, folder / bank_gin.FILE, TRAIN_STEPS=steps)
    with refusals.refused('INITIAL_CHECKPOINT_PATH', f'router/{columns}'):
      experiment_lib.prepare(run.build())


@pytest.mark.slow
def test_commands_lead_from_a_decoder_to_a_router_over_its_loras(tmp_path):
  """Runs, PEFT folders, a bank of these, a router, scores and an export."""
  words = small_tokenizers.byte_level()
  config = {**models.SMALL, 'vocab_size': words.get_vocab_size(),
            'num_hidden_layers': 1, 'eos_token_id': 1}
  hf = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  words.save(str(hf / 'tokenizer.json'))
  at = lambda name: str(tmp_path / name)
  hf_command.main(['import', str(hf), '--out', at('base')])

  def trained(name, method, *more, steps=2):
    rows = [{'prompt': f'{name} {x}', 'completion': f'{x}'} for x in range(40)]
    (tmp_path / f'{name}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows)
    )
    init.main(['--base', at('base'), '--data', at(f'{name}.jsonl'),
               '--method', method, '--out', at(f'{name}.gin')])
    sizes = {'MODEL_DIR': at(f'run_{name}'), 'TRAIN_STEPS': steps,
             'WARMUP_STEPS': steps // 2, 'BATCH_SIZE': 8, 'NUM_MICROBATCHES': 1,
             'EVAL_BATCH_SIZE': 8, 'EVAL_EXAMPLES': 2}
    assert not train_door.main(flags.rewrite_gin_args([
        f'--gin_file={at(f"{name}.gin")}', *more,
        *(f'--gin.{key}={value!r}' for key, value in sizes.items()),
    ]))
    return at(f'run_{name}')

  hf_command.main(['export', trained('one', 'lora'), '--out', at('one')])
  bank_command.main(['build', '--base', at('base'), '--out', at('bank'),
                     '--from', at('one'), '--from', f'two={at("one")}'])
  folder = trained('router', 'bank', f'--gin_file={at("bank/bank.gin")}')
  info = run_file.read(tmp_path / 'run_router')
  assert info.num_params_trainable == sum(
      2 * width for width in router_inputs(tmp_path / 'bank')
  )
  evaluate.main([folder])
  again = results_file.read(tmp_path / 'run_router', 'results_validation.json')
  assert again.adapted == results_file.read(tmp_path / 'run_router').adapted
  assert not hf_command.main(
      ['export', folder, '--out', at('full'), '--format', 'full']
  )
  # X-LoRA has one classifier of the model's hidden states.
  folder = trained('xlora', 'bank_xlora', f'--gin_file={at("bank/bank.gin")}')
  info = run_file.read(tmp_path / 'run_xlora')
  assert info.num_params_trainable == 2 * (config['hidden_size'] + 1)
  evaluate.main([folder])
  assert not hf_command.main(['export', folder, '--out', at('xlora')])
  assert bank_peft.experts_in(tmp_path / 'xlora') == [
      (name, tmp_path / 'xlora' / name) for name in ('expert_0', 'expert_1')
  ]
  # Read back, it has its classifier before any step.
  bank_command.main(['build', '--base', at('base'), '--out', at('again'),
                     '--from', at('xlora')])
  trained('scored', 'bank_xlora', f'--gin_file={at("again/xlora.gin")}',
          steps=0)
  params = params_of(run.build())
  arrays = xlora_config.read(tmp_path / 'xlora', config['hidden_size'])
  for name, array in bank_arrays.classifier(arrays).items():
    assert np.any(array)
    np.testing.assert_array_equal(params[name], array)


def router_inputs(folder):
  """How many inputs the router of each layer of a bank reads."""
  _, params = bank.load(folder)
  return [x.shape[1] for path, x in params.items() if path.endswith('lora_a')]


def test_a_classifier_comes_with_its_own_settings(tmp_path):
  """Without them X-LoRA is refused; other methods need none."""
  experts = [bank_file.Record(x, '', 'peft', 'name') for x in ('one', 'two')]
  zeros = np.zeros((8, 2), np.float32)
  bank_gin.write(
      tmp_path, bank_file.Bank(experts, {}, '', {}, 't5', 2, 'theirs'),
      FEW['SITES'], tmp_path,
      xlora_config.Classifier([(zeros, zeros[0])], temperature=0.6),
  )
  own, others = tmp_path / bank_gin.XLORA_FILE, tmp_path / bank_gin.FILE
  load(tmp_path / 'x', 'bank', others)
  setup = experiment_lib.lay_out(run.build())
  assert 'adapter/router/kernel' not in setup.trainable
  load(tmp_path / 'x', 'bank_xlora', own)
  setup = experiment_lib.lay_out(run.build())
  assert setup.trainable['adapter/router/kernel'].shape[-1] == 2
  for files in ([others], [own, others]):
    load(tmp_path / 'x', 'bank_xlora', *files)
    with refusals.refused(bank_gin.FILE, bank_gin.XLORA_FILE):
      experiment_lib.lay_out(run.build())


@pytest.mark.slow
def test_experts_that_do_not_train_must_come_with_the_base(base, tmp_path):
  load(tmp_path / 'x', 'bank', INITIAL_CHECKPOINT_PATH=base)
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'lora_b', 'bank build'):
    experiment_lib.prepare(run.build())
  load(tmp_path / 'x', 'bank', INITIAL_CHECKPOINT_PATH=base,
       TRAINABLE_REGEX='.*/adapter/.*')
  setup = experiment_lib.prepare(run.build())
  assert any(map(trainable.is_adapter, setup.trainable))

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the training step and loop on tiny real experiments."""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal

import gin
import jax
import numpy as np
import pytest

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.data import local
from moe_peft.data import provenance
from moe_peft.runs import metrics_files
from moe_peft.runs import run_file
from moe_peft.training import bases
from moe_peft.training import checksums
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import hosts
from moe_peft.training import loop
from moe_peft.training import method_settings
from moe_peft.training import metrics
from moe_peft.training import run
from moe_peft.training import train_step
from tests import refusals
from tests.training import tiny


def train(experiment, evaluate=lambda step, params: None):
  """Runs the loop; returns (setup, last state or None, rows of metrics)."""
  setup = experiment_lib.prepare(experiment)
  # The loop donates the fresh parameters: keep a copy to compare with.
  fresh = {name: np.array(value) for name, value in setup.trainable.items()}
  frozen = jax.tree.map(np.array, dict(setup.frozen))
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    state = loop.train(setup, checkpointer, evaluate)
  assert_bit_equal(jax.device_get(setup.frozen), frozen)
  rows, _ = metrics_files.read_lines(
      experiment.run_dir / metrics_files.TRAIN
  )
  return dataclasses.replace(setup, trainable=fresh), state, rows


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of four steps: (folder, setup, state, rows)."""
  folder = tmp_path_factory.mktemp('trained')
  return folder, *train(tiny.experiment(folder))


def open_checkpoints(experiment):
  """Opens and closes the checkpoints of a run; returns the newest step."""
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    return checkpointer.latest_step()


def losses(rows):
  return [row['loss'] for row in rows]


def assert_bit_equal(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    jax.tree.map(  # Of a quantized kernel both arrays.
        functools.partial(np.testing.assert_array_equal, err_msg=name),
        actual[name], value,
    )


@pytest.mark.slow
def test_only_adapters_train_and_the_base_keeps_its_bits(trained):
  _, setup, state, rows = trained
  assert all(trainable.is_adapter(name) for name in state.params)
  changed = [
      name
      for name, value in state.params.items()
      if not np.array_equal(value, setup.trainable[name])
  ]
  # Routers get a gradient once lora_b is not zero, so after the first step.
  assert sorted(changed) == sorted(state.params)
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert rows[0]['router_entropy'] == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_a_trained_run_without_steps_is_scored_as_it_was_left(trained):
  folder, _, expected, _ = trained
  _, state, _ = train(tiny.experiment(folder, TRAIN_STEPS=0, WARMUP_STEPS=0))
  assert_bit_equal(
      jax.device_get(state.params), jax.device_get(expected.params)
  )


@pytest.mark.slow
def test_scored_again_without_steps_a_run_keeps_those_that_it_has(tmp_path):
  def run_it(**bindings):
    tiny.load(tmp_path, EVAL_PERIOD=1, WARMUP_STEPS=0, **bindings)
    run.run_experiment()
    steps = run_file.read(tmp_path).steps
    rows, _ = metrics_files.read_lines(tmp_path / metrics_files.EVALUATION)
    return steps, [(row['step'], row['loss']) for row in rows]

  trained = run_it(TRAIN_STEPS=2)
  assert trained[0] == 2 and [step for step, _ in trained[1]] == [0, 1, 2]
  assert run_it(TRAIN_STEPS=0) == trained


def test_no_optimizer_state_for_frozen_parameters(tmp_path):
  setup = experiment_lib.prepare(tiny.experiment(tmp_path))
  state = train_step.init_state(setup)
  num_moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  # AdamW: two moments for each trainable parameter, and a few counters.
  trained = trainable.num_params(setup.trainable)
  assert 2 * trained <= num_moments <= 2 * trained + 10


def test_resume_is_bit_equal_to_no_interruption(tmp_path):
  whole = tiny.experiment(tmp_path / 'whole', TRAIN_STEPS=6, DROPOUT_RATE=0.1)
  _, expected, expected_rows = train(whole)

  stopped = tiny.experiment(
      tmp_path / 'parts', TRAIN_STEPS=6, DROPOUT_RATE=0.1, CHECKPOINT_PERIOD=10,
      EVAL_PERIOD=3,
  )

  def stop_after_three(step, params):
    os.kill(os.getpid(), signal.SIGTERM)

  _, state, rows = train(stopped, stop_after_three)
  assert state is None
  assert [row['step'] for row in rows] == [1, 2, 3]
  _, state, rows = train(stopped)
  assert losses(rows) == losses(expected_rows)
  assert_bit_equal(jax.device_get(state.params),
                   jax.device_get(expected.params))
  for left, right in zip(jax.tree.leaves(state.opt_state),
                         jax.tree.leaves(expected.opt_state), strict=True):
    np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_logs_do_not_show_where_a_run_was_killed(tmp_path):
  def experiment(folder):
    return tiny.experiment(
        tmp_path / folder, TRAIN_STEPS=6, LOG_PERIOD=4, CHECKPOINT_PERIOD=3,
        EVAL_PERIOD=5,
    )

  def rows(folder, file):
    found, _ = metrics_files.read_lines(tmp_path / folder / file)
    for row in found:
      for name in ('tokens_per_second', 'steps_per_second'):
        row.pop(name, None)
    return found

  def kill(step, params):
    raise InterruptedError

  train(experiment('whole'))
  with pytest.raises(InterruptedError):  # With a row of step 4, saved at 3.
    train(experiment('killed'), kill)
  train(experiment('killed'))
  for file in (metrics_files.TRAIN, metrics_files.ROUTERS):
    whole = rows('whole', file)
    assert [row['step'] for row in whole] == [4, 6]
    assert rows('killed', file) == whole


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(trained, tmp_path):
  _, _, expected, _ = trained
  _, state, _ = train(tiny.experiment(tmp_path))
  assert_bit_equal(state.params, expected.params)


@pytest.mark.slow
def test_microbatches_do_not_change_the_gradient(tmp_path):
  setups = [
      experiment_lib.prepare(
          tiny.experiment(
              tmp_path, DROPOUT_RATE=0.0, NUM_MICROBATCHES=n, BATCH_SIZE=16
          )
      )
      for n in (1, 2)
  ]
  batch = next(loop.train_data(setups[0].experiment))
  results = []
  for setup in setups:
    with setup.context():
      results.append(
          train_step.make_train_step(setup)(
              train_step.init_state(setup), setup.frozen, batch
          )[1]
      )
  one, two = results
  assert one['loss'].count == two['loss'].count
  for name in ('loss', 'accuracy', 'grad_norm', 'router_entropy'):
    np.testing.assert_allclose(
        one[name].compute(), two[name].compute(), rtol=2e-5, err_msg=name
    )


@pytest.mark.parametrize(
    'partitions',
    [
        pytest.param((1, 1), marks=pytest.mark.long),
        pytest.param((4, 1), marks=pytest.mark.long),
        pytest.param((2, 2), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_train_as_one(tmp_path, monkeypatch, partitions):
  num_experts, num_model = partitions
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
    _, _, expected = train(tiny.experiment(tmp_path / 'one', DROPOUT_RATE=0.0))
  setup, _, rows = train(
      tiny.experiment(
          tmp_path / 'eight',
          DROPOUT_RATE=0.0,
          NUM_EXPERT_PARTITIONS=num_experts,
          NUM_MODEL_PARTITIONS=num_model,
      )
  )
  assert setup.mesh.size == 8
  np.testing.assert_allclose(losses(rows), losses(expected), rtol=1e-5)


@pytest.mark.slow
def test_full_fine_tuning_is_a_method_like_the_others(tmp_path):
  setup, state, _ = train(tiny.experiment(tmp_path, 'full'))
  assert not setup.frozen
  for name, value in state.params.items():
    # Relative position buckets of distances that never occur do not move.
    if 'rel_embedding' not in name and 'token_embedder' not in name:
      assert not np.array_equal(value, setup.trainable[name]), name


@pytest.mark.slow
def test_another_experiment_is_refused_and_nothing_is_lost(
    trained, monkeypatch
):
  folder = trained[0]
  with refusals.refused('MODEL_DIR', folder, 'SEED'):
    open_checkpoints(tiny.experiment(folder, SEED=1))
  with refusals.refused('MODEL_DIR', 'trainable parameters'):
    open_checkpoints(tiny.experiment(folder, RANK=3))
  with monkeypatch.context() as patch:
    patch.setattr(provenance, 'identities', None)  # Which reads all data.
    with refusals.refused('TRAIN_STEPS', folder, 4, 3):
      train(tiny.experiment(folder, TRAIN_STEPS=3))
  with refusals.refused('PACKING', folder / 'checkpoints/4'):
    train(tiny.experiment(folder, TRAIN_STEPS=5, PACKING=True))
  # The run itself still continues.
  assert open_checkpoints(tiny.experiment(folder, TRAIN_STEPS=5)) == 4


@pytest.mark.slow
def test_a_base_may_move_but_not_change(tmp_path):
  frozen = experiment_lib.prepare(tiny.experiment(tmp_path / 'any')).frozen
  frozen = jax.device_get(frozen)
  base, run_dir = tmp_path / 'base', tmp_path / 'run'

  def of_base(folder):
    return tiny.experiment(run_dir, INITIAL_CHECKPOINT_PATH=str(folder))

  bases.save_base(frozen, base)
  setup = experiment_lib.prepare(of_base(base))
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    data = loop.train_data(setup.experiment)
    checkpointer.save(2, train_step.init_state(setup), data)
    checkpointer.wait()
  moved = base.rename(tmp_path / 'moved')
  assert open_checkpoints(of_base(moved)) == 2
  bases.save_base({k: -v for k, v in frozen.items()}, base)
  with refusals.refused('MODEL_DIR', 'base', base):
    open_checkpoints(of_base(base))


@pytest.mark.slow
def test_more_steps_continue_a_finished_run(trained, tmp_path):
  shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
  _, state, rows = train(tiny.experiment(tmp_path, TRAIN_STEPS=6))
  assert int(state.step) == 6
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
  setup = experiment_lib.prepare(tiny.experiment(tmp_path))
  step_fn = train_step.make_train_step(setup)
  batch = next(loop.train_data(setup.experiment))
  name = min(name for name in setup.frozen if 'mlp' in name)
  bad = {**setup.frozen, name: setup.frozen[name] * np.nan}
  with setup.context():
    first, _ = step_fn(train_step.init_state(setup), setup.frozen, batch)
    kept = jax.device_get(first)
    state, skipped = step_fn(first, bad, batch)
    after = jax.device_get(state)
    _, taken = step_fn(state, setup.frozen, batch)
  assert after.step == kept.step + 1
  for left, right in zip(jax.tree.leaves((after.params, after.opt_state)),
                         jax.tree.leaves((kept.params, kept.opt_state)),
                         strict=True):
    np.testing.assert_array_equal(left, right)
  assert skipped['skipped'].compute() == 1 and skipped['loss'].count == 0
  assert taken['skipped'].compute() == 0 and np.isfinite(taken['loss'].total)
  assert metrics.merge(skipped, taken)['loss'] == taken['loss']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('steps', 'stopped_at', 'skipped'),
    [
        (30, 6, [0, 0, 1, 3]),
        pytest.param(4, 4, [0, 0, 1, 1], marks=pytest.mark.long),
    ],
)
def test_a_run_that_diverges_ends_and_keeps_its_checkpoint(
    tmp_path, steps, stopped_at, skipped
):
  train(tiny.experiment(tmp_path, TRAIN_STEPS=2))
  with refusals.refused(
      'LEARNING_RATE', f'up to step {stopped_at}', 'checkpoint of step 2',
      'past_tense, training row',
  ):
    train(tiny.experiment(
        tmp_path, TRAIN_STEPS=steps, LEARNING_RATE=1e30, LOG_PERIOD=3,
        CHECKPOINT_PERIOD=2, MAX_SKIPPED_STEPS=3,
    ))
  assert os.listdir(tmp_path / 'checkpoints') == ['2']
  rows, _ = metrics_files.read_lines(tmp_path / metrics_files.TRAIN)
  assert [row['skipped'] for row in rows] == skipped
  assert rows[-1]['loss'] is None  # JSON has no NaN.


def test_other_data_are_named_and_files_may_move():
  then = {'a.jsonl': 'one', 'b.jsonl': 'two'}
  provenance.check_identities(3, None, then)  # Saved by an older version.
  provenance.check_identities(3, then, {'b.jsonl': 'two', 'c.jsonl': 'one'})
  with refusals.refused('b.jsonl', 'step 3', 'two', 'three'):
    provenance.check_identities(3, then, {'a.jsonl': 'one', 'b.jsonl': 'three'})
  with refusals.refused('b.jsonl', 'absent'):
    provenance.check_identities(3, then, {'a.jsonl': 'one'})


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data(tmp_path):
  file = tmp_path / 'rows.jsonl'
  row = '{"inputs": "walk %d", "targets": "walked"}\n'
  file.write_text(''.join(row % i for i in range(16)))
  name = local.register_task('changing', train=str(file), validation=str(file))

  def experiment(steps, **bindings):
    return tiny.experiment(
        tmp_path / 'run', MIXTURE_OR_TASK_NAME=name, TRAIN_STEPS=steps,
        **bindings,
    )

  train(experiment(2))
  before = provenance.identities(name)[str(file)]
  file.write_text(file.read_text() + row % 16)
  assert open_checkpoints(experiment(3)) == 2  # To evaluate it.
  with refusals.refused(file, 'step 2', before[:12], 'ALLOW_CHANGED_DATA'):
    train(experiment(3))
  _, state, _ = train(experiment(3, ALLOW_CHANGED_DATA=True))
  assert int(state.step) == 3
  train(experiment(3))  # Those are its data now.


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_method(tmp_path):
  """What changes no shape is compared, and config.gin stays that of the run."""

  def go_on(steps, method='molora_topk', **bindings):
    experiment = tiny.experiment(
        tmp_path, method, NUM_EXPERTS=4, SITES='.*/query', TRAIN_STEPS=steps,
        **bindings,
    )
    return train(experiment)

  go_on(2)
  with refusals.refused('ALPHA', 'step 2', '16.0', '8.0', 'CHANGED_METHOD'):
    go_on(3, ALPHA=8.0)
  with refusals.refused('NORMALIZE', 'not set'):
    go_on(3, 'molora')
  _, state, _ = go_on(3, ALPHA=16, LEARNING_RATE=1e-4, CHECKPOINT_PERIOD=7)
  assert int(state.step) == 3
  go_on(4, ALPHA=8.0, ALLOW_CHANGED_METHOD=True)
  with refusals.refused('ALPHA', 'step 4', '8.0', '16.0'):
    go_on(5)  # The other one is its method now.


def test_of_a_method_what_differs_is_named():
  then = {'ALPHA': '16.0', 'routing.Router.select': '@selection.TopK()'}
  check = lambda now: method_settings.check(7, then, {**then, **now})
  check({'ALPHA': '16'})
  method_settings.check(7, None, then)  # Saved by an older version.
  with refusals.refused('ALPHA', 'step 7', '16.0', '8'):
    check({'ALPHA': '8', 'routing.Router.select': '@selection.Soft()'})
  with refusals.refused('routing.Router.select', '@selection.Soft()'):
    check({'routing.Router.select': '@selection.Soft()'})


def test_the_settings_of_a_method_are_what_its_rules_reach(tmp_path):
  tiny.load(tmp_path, 'sira', WARMUP_STEPS=1)
  found = method_settings.settings()
  assert {'ALPHA', 'CAPACITY_FACTOR', 'GATE_DROPOUT', 'AUX_LOSS_FACTOR'} <= {
      *found
  }
  assert not {'TRAIN_STEPS', 'MODEL', 'WARMUP_STEPS', 'EVAL_PERIOD'} & {*found}
  # How experts run changes no number, and may suit other devices.
  with gin.unlock_config():
    gin.bind_parameter('sira.SiRA.execution', 'einsum')
  assert method_settings.settings() == found
  # Those of the run's own config.gin are the same.
  (tmp_path / 'config.gin').write_text(gin.config_str())
  gin_files.load_gin([str(tmp_path / 'config.gin')])
  assert method_settings.settings() == found


@pytest.mark.slow
def test_learning_rates_by_group(tmp_path):
  setup, state, rows = train(
      tiny.experiment(
          tmp_path, LEARNING_RATE=3e-3, ROUTER_LEARNING_RATE=0.0
      )
  )
  for name, value in state.params.items():
    stays = np.array_equal(value, setup.trainable[name])
    assert stays == ('/router/' in name), name
  # Linear warm-up over one step, then cosine to zero at step 4.
  expected = [0.0, 3e-3] + [
      3e-3 * 0.5 * (1 + np.cos(np.pi * i / 3)) for i in (1, 2)
  ]
  np.testing.assert_allclose(
      [row['learning_rate'] for row in rows], expected, rtol=1e-5
  )


@pytest.mark.slow
def test_routers_may_follow_the_step(tmp_path):
  _, _, rows = train(
      tiny.experiment(
          tmp_path, 'smoe_dropout', NUM_MICROBATCHES=1, SITES='.*/(query|wo)'
      )
  )
  # SMoE-Dropout: k grows from 8 of 16 experts, linearly over 4 steps, to 16.
  np.testing.assert_allclose(
      [row['expert_usage'] for row in rows],
      [8 / 16, 10 / 16, 12 / 16, 14 / 16],
      rtol=1e-6,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('base_dtype', 'options'),
    [('bfloat16', {}),
     ('int8', {'ATTENTION': 'chunked', 'REMAT_POLICY': 'auto'})],
)
def test_the_base_may_be_stored_in_less(tmp_path, base_dtype, options):
  setup, state, rows = train(
      tiny.experiment(
          tmp_path, BASE_DTYPE=base_dtype, TRAIN_STEPS=2, **options
      )
  )
  kinds = {str(x.dtype) for x in setup.frozen.values()}
  assert kinds == {'bfloat16', base_dtype}
  assert {str(x.dtype) for x in state.params.values()} == {'float32'}
  assert all(np.isfinite(losses(rows)))


@pytest.mark.slow
def test_packed_rows_train(tmp_path):
  _, _, rows = train(
      tiny.experiment(
          tmp_path,
          PACKING=True,
          TASK_FEATURE_LENGTHS={'inputs': 96, 'targets': 48},
      )
  )
  assert all(np.isfinite(losses(rows)))


@pytest.mark.parametrize(
    ('bindings', 'where', 'names'),
    [
        ({'MIXTURE_OR_TASK_NAME': 'past_tens'}, 'MIXTURE_OR_TASK_NAME',
         ('past_tens', 'past_tense')),
        ({'TASK_FEATURE_LENGTHS': {'inputs': 4, 'targets': 4}},
         'TASK_FEATURE_LENGTHS', ('past_tense',)),
        ({'NUM_EXPERT_PARTITIONS': 3},
         'NUM_EXPERT_PARTITIONS * NUM_MODEL_PARTITIONS', (3, 8)),
        ({'BATCH_SIZE': 12}, 'BATCH_SIZE / NUM_MICROBATCHES', (12, 16)),
        ({'NUM_MICROBATCHES': 3}, 'NUM_MICROBATCHES', (3, 'BATCH_SIZE')),
        ({'TRAIN_STEPS': -1}, 'TRAIN_STEPS', (-1,)),
        ({'SITES': '.*/qury'}, None, ('qury', 'query')),
        ({'INITIAL_CHECKPOINT_PATH': 'nowhere'}, 'INITIAL_CHECKPOINT_PATH',
         ('nowhere',)),
        ({'INITIAL_CHECKPOINT_PATH': 'bases/tiny_t5'},
         'INITIAL_CHECKPOINT_PATH', ('bases/tiny_t5', 'gin/models/')),
        ({'TRAINABLE_REGEX': 'nothing'}, 'TRAINABLE_REGEX', ('nothing',)),
        ({'WARMUP_STEPS': 10}, 'WARMUP_STEPS', (10, 'TRAIN_STEPS')),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    tmp_path, bindings, where, names
):
  with pytest.raises(errors.UserError) as info:
    experiment_lib.prepare(tiny.experiment(tmp_path, **bindings))
  assert info.value.where == (where or info.value.where)
  assert all(str(name) in str(info.value) for name in names), info.value


def test_several_processes_are_those_of_t5x(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with refusals.refused('jax.process_count()', 't5x.train'):
    experiment_lib.prepare(tiny.experiment(tmp_path))


@pytest.mark.parametrize(
    ('where', 'value'),
    [
        ('SLURM_STEP_NUM_TASKS', '16'),
        ('OMPI_COMM_WORLD_SIZE', '2'),
        ('TPU_WORKER_HOSTNAMES', '10.0.0.1,10.0.0.2'),
    ],
)
def test_launchers_of_several_processes_are_told(where, value):
  with refusals.refused(where, 't5x.train'):
    hosts.check_one_process({where: value})


def test_one_process_of_a_launcher_trains():
  hosts.check_one_process({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8',
                           'TPU_WORKER_HOSTNAMES': 'localhost'})


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with refusals.refused('MODEL_DIR', tmp_path / 'file', 'no folder'):
    tiny.experiment(tmp_path / 'file' / 'run')
  experiment = tiny.experiment(tmp_path / 'run')
  experiment = dataclasses.replace(experiment, model_dir=str(tmp_path / 'file'))
  with refusals.refused('MODEL_DIR', tmp_path / 'file'):
    loop.open_checkpoints(experiment_lib.prepare(experiment))


@pytest.mark.slow
def test_a_flipped_bit_is_found_wherever_it_is(trained, tmp_path):
  shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
  experiment = tiny.experiment(tmp_path, TRAIN_STEPS=5)
  setup = experiment_lib.prepare(experiment)
  checkpoint = tmp_path / 'checkpoints' / '4'
  files = [
      file for item in ('state', 'data', 'identity', 'notes')
      for file in (checkpoint / item).rglob('*') if file.is_file()
  ]
  random = np.random.default_rng(0)
  for file in files:
    content = file.read_bytes()
    if not content:
      continue
    flipped = bytearray(content)
    flipped[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(flipped)
    with refusals.refused(file, 'damaged'):
      loop.open_checkpoints(setup)
    file.unlink()
    with refusals.refused(file, 'damaged'):
      loop.open_checkpoints(setup)
    file.write_bytes(content)
  assert open_checkpoints(experiment) == 4


@pytest.mark.slow
def test_the_newest_whole_checkpoint_is_used(tmp_path, capsys):
  def experiment(steps):
    return tiny.experiment(tmp_path, TRAIN_STEPS=steps, CHECKPOINT_PERIOD=2)

  _, expected, rows = train(experiment(4))
  checkpoints = tmp_path / 'checkpoints'
  assert {path.name for path in checkpoints.iterdir()} == {'2', '4'}
  file = max(
      (x for x in (checkpoints / '4' / 'state').rglob('*') if x.is_file()),
      key=lambda x: x.stat().st_size,
  )
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  assert open_checkpoints(experiment(4)) == 2
  warning = capsys.readouterr().err
  assert str(file) in warning and 'step 2 is used' in warning
  _, state, again = train(experiment(4))
  assert_bit_equal(state.params, expected.params)
  assert losses(again) == losses(rows)
  names = {path.name for path in checkpoints.iterdir()}
  assert names == {'2', '4', 'damaged_4'}  # Nothing is deleted.


@pytest.mark.slow
def test_a_damaged_checkpoint_without_checksums_is_named(trained, tmp_path):
  shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'checkpoints' / '4' / checksums.ITEM)
  for file in (tmp_path / 'checkpoints' / '4' / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  with refusals.refused(tmp_path / 'checkpoints' / '4', 'damaged'):
    train(tiny.experiment(tmp_path, TRAIN_STEPS=5))


def test_folders_are_shown_by_their_names(capsys):
  run.console.print('writing to runs/[lr=1]/[/b]')
  assert 'runs/[lr=1]/[/b]' in capsys.readouterr().err

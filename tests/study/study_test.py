# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of studies: tiny runs in real processes, resumed and tabulated."""

import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from moe_peft.cli import study
from moe_peft.study import configurations
from moe_peft.study import processes
from moe_peft.study import records
from moe_peft.study import study as study_lib
from tests import refusals
from tests.cli.commands_test import FILES
from tests.training import tiny


def write_study(folder: Path, name: str = 'one', **bindings):
  """A gin file that trains for two steps."""
  folder.mkdir(exist_ok=True)
  values = {**tiny.SIZES, 'EVAL_EXAMPLES': 8, 'TRAIN_STEPS': 2, **bindings}
  lines = [f"include '{file}'" for file in FILES] + [
      f'{key} = {value!r}' for key, value in values.items()
  ]
  (folder / f'{name}.gin').write_text(
      'from __gin__ import dynamic_registration\n'
      'from moe_peft.models import t5\n' + '\n'.join(lines)
  )


@pytest.fixture
def started(monkeypatch):
  """Folders of the runs that were started."""
  folders = []
  real = processes._Children.train

  def counted(self, folder, arguments, cores):
    folders.append(folder)
    return real(self, folder, arguments, cores)

  monkeypatch.setattr(processes._Children, 'train', counted)
  return folders


@pytest.mark.slow
def test_a_study_tunes_tabulates_and_never_repeats(tmp_path, started, capsys):
  """Two trials at once, then the best with its seed; records are enough."""
  write_study(
      tmp_path / 'tiny', SEEDS=(3,), TUNE={'LEARNING_RATE': (1e-9, 3e-2)},
      TRAIN_STEPS=8,
  )
  out, results = tmp_path / 'out', tmp_path / 'results'
  command = [str(tmp_path / 'tiny'), '--out', str(out), '--jobs=2',
             '--results', str(results)]
  study.main(command)
  (trials,) = json.loads((results / 'tuning.json').read_text()).values()
  trials.sort(key=lambda trial: float(trial['LEARNING_RATE']))
  best = max(trials, key=lambda trial: trial['validation'])  # First of equals.
  assert {trial['LEARNING_RATE'] for trial in trials} == {'1e-09', '0.03'}
  (row,) = json.loads((results / 'results.json').read_text())
  assert row['tuned'] == {'LEARNING_RATE': best['LEARNING_RATE']}
  assert (row['name'], row['split'], row['seed']) == ('one', 'test', 3)
  for trial in trials:
    run_dir = out / 'one' / 'tuning' / f'LEARNING_RATE={trial["LEARNING_RATE"]}'
    assert json.loads((run_dir / 'results.json').read_text())['split'] == (
        'validation')
    assert f'LEARNING_RATE = {float(trial["LEARNING_RATE"])}' in (
        run_dir / 'config.gin').read_text()
  # The trials share the scores of the base; the test split has its own.
  assert len(list((out / 'base_results').glob('*.json'))) == 2
  for trial in trials:  # Also where they were not measured.
    run_dir = out / 'one' / 'tuning' / f'LEARNING_RATE={trial["LEARNING_RATE"]}'
    lines = (run_dir / 'metrics' / 'eval.jsonl').read_text().splitlines()
    assert json.loads(lines[0])['step'] == 0
  assert len(started) == 3
  # The best trial is not trained again.
  run_dir = out / 'one' / 'seed3'
  assert 'Continuing from step 8' in (run_dir / 'log.txt').read_text()
  steps = [
      json.loads(line)['step']
      for line in (run_dir / 'metrics' / 'eval.jsonl').read_text().splitlines()
  ]
  assert sorted(set(steps)) == [0, 8] and len(steps) == 2 * len(row['adapted'])
  trial_dir = out / 'one' / 'tuning' / f'LEARNING_RATE={best["LEARNING_RATE"]}'
  cost = lambda folder: json.loads((folder / 'run.json').read_text())['seconds']
  assert cost(run_dir) > cost(trial_dir)  # Both processes count.
  assert row['device'] == f'{jax.device_count()} cpu'
  assert row['peak_memory_bytes'] >= json.loads(
      (trial_dir / 'run.json').read_text())['peak_memory_bytes']
  assert '| one |' in capsys.readouterr().out

  # A finished run whose row is lost is read, not trained.
  (results / 'results.json').unlink()
  study.main(command)
  assert json.loads((results / 'results.json').read_text()) == [row]
  shutil.rmtree(out)  # The records are enough.
  study.main(command)
  assert len(started) == 3


def test_a_trial_becomes_the_run_of_its_own_seed_alone(tmp_path):
  configuration = configurations.Configuration(
      Path('one.gin'), tmp_path, [3, 4], [{}], {}, False
  )
  values = {'ALPHA': '1.0'}
  trial = configuration.trial(values).folder
  take_over = lambda seed: study_lib.take_over(
      configuration.trial(values), configuration.run(seed, values, 'test')
  )
  run = tmp_path / 'seed3'
  for part in ('checkpoints', 'metrics', 'tensorboard'):
    (trial / part).mkdir(parents=True)
    (trial / part / 'kept').touch()
  (trial / 'metrics' / 'eval.jsonl').touch()
  take_over(3)  # It has not ended.
  assert not run.exists()
  (trial / 'run.json').write_text('{"seed": 3}')
  take_over(4)
  assert not (tmp_path / 'seed4').exists()
  take_over(3)
  files = sorted(str(f.relative_to(run)) for f in run.rglob('*') if f.is_file())
  assert files == ['checkpoints/kept', 'metrics/kept', 'tensorboard/kept']


@pytest.mark.slow
def test_a_stopped_study_goes_on(tmp_path):
  """SIGTERM reaches the run, which saves; the second call continues it."""
  write_study(tmp_path / 'tiny', TRAIN_STEPS=150, CHECKPOINT_PERIOD=1000)
  command = [
      sys.executable, '-m', 'moe_peft', 'study', str(tmp_path / 'tiny'),
      '--out', str(tmp_path / 'out'), '--seeds=0',
  ]
  run_dir = tmp_path / 'out' / 'one' / 'seed0'
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    metrics = run_dir / 'metrics' / 'train.jsonl'
    while not (metrics.exists() and metrics.stat().st_size):
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert 'run the same command to continue' in process.stderr.read()
  saved = int(metrics.read_text().splitlines()[-1].split('"step": ')[1]
              .split(',')[0])
  assert 0 < saved < 150
  subprocess.run(command, check=True)
  assert f'Continuing from step {saved}' in (run_dir / 'log.txt').read_text()


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path):
  write_study(tmp_path / 'tiny', WARMUP_STEPS=9)
  out = tmp_path / 'out'
  with refusals.refused(out / 'one' / 'seed0', 'WARMUP_STEPS', 'log.txt'):
    study.main([str(tmp_path / 'tiny'), '--out', str(out)])


@pytest.mark.parametrize(
    ('macros', 'where', 'names'),
    [
        ({'TUNE': {'ALPHAS': (1.0, 2.0)}}, 'TUNE', ['one.gin', 'ALPHAS']),
        ({'TUNE': {'ALPHA': 1.0}}, 'TUNE', ['one.gin', '1.0']),
        ({'TUNE': {'ALPHA': ()}}, 'TUNE', ['one.gin', '()']),
        ({'SEEDS': 3}, 'SEEDS', ['one.gin', '3']),
        ({'SEEDS': (1, 1)}, 'SEEDS', ['one.gin', '(1, 1)']),
    ],
)
def test_wrong_grids_and_seeds_are_named(macros, where, names, tmp_path):
  write_study(tmp_path / 'tiny', **macros)
  with refusals.refused(where, *names):
    study.main([str(tmp_path / 'tiny'), '--out', str(tmp_path / 'out')])


def test_rows_of_another_configuration_are_refused(tmp_path, monkeypatch):
  """Before anything runs; what only says where things lie may change."""
  ran = []
  monkeypatch.setattr(
      processes, 'run_all', lambda commands, *_: ran.extend(commands)
  )
  write_study(tmp_path / 'tiny', SEEDS=(0,))
  out = tmp_path / 'out'
  command = [str(tmp_path / 'tiny'), '--out', str(out)]
  study.main(command)
  study.main([*command, '--gin.NAME=MODEL_DIR=elsewhere'])
  macros = out / 'configs' / 'one.json'
  with refusals.refused(macros, 'TRAIN_STEPS = 2', '3', '--out'):
    study.main([*command, '--gin.NAME=TRAIN_STEPS=3'])
  with refusals.refused(macros, 'EVAL_SPLIT = test', 'validation'):
    study.main([*command, '--split=validation'])
  records.Records(out).add_row({
      'name': 'one', 'seed': 0, 'trainable': 1, 'base': {}, 'adapted': {},
      'tuned': {'ALPHA': '4.0'},
  })
  with refusals.refused(out / 'results.json', 'one with seed 0', '4.0'):
    study.main(command)
  assert len(ran) == 2


def test_a_folder_of_folders_is_a_study_each(tmp_path, monkeypatch):
  folders = []
  monkeypatch.setattr(
      processes, 'run_all',
      lambda commands, *_: folders.extend(folder for folder, _ in commands),
  )
  for name in ('wide', 'narrow'):
    (tmp_path / 'all' / name).mkdir(parents=True)
    write_study(tmp_path / 'all' / name, SEEDS=(0,))
  # A mistake in the last file is found before the first one runs.
  write_study(tmp_path / 'all' / 'wide', 'two', SEEDS='0')
  command = [str(tmp_path / 'all'), '--out', str(tmp_path / 'out')]
  with refusals.refused('SEEDS', 'two.gin'):
    study.main(command)
  assert not folders
  write_study(tmp_path / 'all' / 'wide', 'two', SEEDS=(0,))
  study.main([*command, '--only=one', '--reference=one'])
  out = tmp_path / 'out'
  assert folders == [out / 'narrow/one/seed0', out / 'wide/one/seed0']


@pytest.mark.parametrize('name', ['wide', 'ablations', 'narrow'])
def test_shipped_studies_are_read_with_as_many_trials_for_all(name, tmp_path):
  folder = f'configs/study/{name}'
  options = configurations.StudyOptions(folder, tmp_path, tmp_path)
  (loaded,) = configurations.load(options).values()
  assert len({len(configuration.trials) for configuration in loaded}) == 1
  assert len(loaded) > 5


@pytest.mark.parametrize(
    ('arguments', 'where', 'names'),
    [
        (['configs/words', '--reference=x'], '--reference', ['x', 'lora_r4']),
        (['configs/words', '--tune=ALPHA'], '--tune', ['LEARNING_RATE=1e-3']),
        (['configs/words', '--tune=ALPHAS=1,2'], '--tune', ['ALPHAS']),
        (['configs/words', '--jobs=0'], '--jobs', ['0']),
        (['configs/words', '--only=x'], '--only', ['x', 'lora_r4']),
        (['configs/words', '--seeds=a'], '--seeds', ['a']),
        (['configs/words', '--seeds=1,1'], '--seeds', ['1,1']),
        (['tests/study'], 'tests/study', ['no gin file']),
    ],
)
def test_study_says_what_is_wrong(arguments, where, names, tmp_path):
  with refusals.refused(where, *names):
    study.main([*arguments, '--out', str(tmp_path)])

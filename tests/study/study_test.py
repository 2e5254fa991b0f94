# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of studies: tiny runs in real processes, resumed and tabulated."""

import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from moe_peft.cli import study
from moe_peft.study import claims
from moe_peft.study import configurations
from moe_peft.study import loading
from moe_peft.study import processes
from moe_peft.study import records
from moe_peft.study import run_rows
from moe_peft.study import study as study_lib
from moe_peft.study import tuning
from tests import refusals
from tests.cli.commands_test import FILES
from tests.training import tiny


def write_study(folder: Path, name: str = 'one', **bindings):
  """A gin file that trains for two steps."""
  folder.mkdir(parents=True, exist_ok=True)
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
@pytest.mark.usefixtures('one_device')
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
  assert row['device'] == '1 cpu'
  assert row['peak_memory_bytes'] >= json.loads(
      (trial_dir / 'run.json').read_text())['peak_memory_bytes']
  assert '| one |' in capsys.readouterr().out

  # A finished run whose row is lost is read, not trained.
  (results / 'results.json').unlink()
  study.main(command)
  assert json.loads((results / 'results.json').read_text()) == [row]
  study.main([*command, '--controls'])
  (controlled,) = json.loads((results / 'results.json').read_text())
  controls = controlled.pop('controls')
  assert controlled == row
  assert list(controls) == ['shuffled', 'task_mean', 'uniform']
  assert '| one | 1 |' in (results / 'controls.md').read_text()
  assert len(started) == 4
  shutil.rmtree(out)  # The records are enough.
  study.main([*command, '--controls'])
  assert len(started) == 4


def test_the_time_that_is_left_is_hours_and_minutes():
  assert study_lib._hours(7500.0) == '2:05'


def test_a_trial_becomes_the_run_of_its_own_seed_alone(tmp_path):
  configuration = configurations.Configuration(
      Path('one.gin'), tmp_path, [3, 4], [{}], {}, False
  )
  values = {'ALPHA': '1.0'}
  tried = configuration.trial(tuning.Trial(values, None, None))
  trial = tried.folder
  take_over = lambda seed: configuration.run(
      seed, values, 'test'
  ).take_over(tried)
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
  shutil.rmtree(run)
  shutil.rmtree(trial / 'checkpoints')
  take_over(3)  # Its checkpoints have been removed.
  assert not run.exists()


def test_a_run_does_not_go_on_with_other_tuned_values(tmp_path):
  configuration = configurations.Configuration(
      Path('one.gin'), tmp_path, [3], [{}], {}, False
  )
  of = lambda alpha: configuration.run(3, {'ALPHA': alpha}, 'test')
  of('1.0').note_values()
  of('2.0').note_values()  # Nothing has begun.
  (tmp_path / 'seed3').mkdir()
  of('2.0').note_values()
  with refusals.refused(tmp_path / 'seed3.json', 'ALPHA = 2.0', '4.0'):
    of('4.0').note_values()


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
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


@pytest.mark.slow
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
        ({'TUNE': {'ALPHA': (1.0, 1.0)}}, 'TUNE', ['ALPHA', '1.0, 1.0']),
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
  study.main([*command, '--gin.NAME=COMPILATION_CACHE_DIR=elsewhere'])
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


def test_two_studies_do_not_write_one_folder(tmp_path, monkeypatch):
  """Each would write the rows that it knows, without those of the other."""
  write_study(tmp_path / 'all' / 'tiny', SEEDS=(0,))
  write_study(tmp_path / 'all' / 'other', SEEDS=(0,))
  out = tmp_path / 'results'
  runs = f'--out={tmp_path / "runs"}'
  command = [str(tmp_path / 'all'), runs, f'--results={out}']
  second = []

  def run_second(*_):
    second.append(True)
    folder = out / 'tiny'  # One of those of the first is enough.
    with refusals.refused('--results', folder, f'process {os.getpid()} on'):
      study.main([str(tmp_path / 'all/tiny'), runs, f'--results={folder}'])

  monkeypatch.setattr(processes, 'run_all', run_second)
  study.main(command)
  study.main(command)  # The first one has let go.
  assert second


def test_a_folder_of_folders_is_a_study_each(tmp_path, monkeypatch):
  folders = []
  monkeypatch.setattr(
      processes, 'run_all',
      lambda commands, *_: folders.extend(folder for folder, _ in commands),
  )
  for name in ('wide', 'narrow'):
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


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['wide', 'ablations', 'narrow', 'languages', 'bank_smollm2']
)
def test_shipped_studies_are_read_with_as_many_trials_for_all(name, tmp_path):
  folder = f'configs/study/{name}'
  options = configurations.StudyOptions(folder, tmp_path, tmp_path)
  (loaded,) = loading.load(options).values()
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
        (['configs/words', '--gin.NAME=SEED=7'], '--gin.SEED', ['--seeds']),
        (['configs/words', '--seeds=a'], '--seeds', ['a']),
        (['configs/words', '--seeds=1,1'], '--seeds', ['1,1']),
        (['tests/study'], 'tests/study', ['no gin file']),
    ],
)
def test_study_says_what_is_wrong(arguments, where, names, tmp_path):
  with refusals.refused(where, *names):
    study.main([*arguments, '--out', str(tmp_path)])


@pytest.mark.slow
def test_claims_name_arms_that_train_one_thing_each(tmp_path):
  """Twelve claims; arms of one claim differ, and none has trials but one's."""
  options = configurations.StudyOptions('configs/claims', tmp_path, tmp_path)
  loaded = loading.load(options)
  assert len(loaded) == 12
  for name, arms in loaded.items():
    claim = claims.read(arms[0].file.parent)
    # Arms in no contrast do not decide the claim; they say why it is so.
    more = {arm.name for arm in arms} - set(claim.arms)
    assert set(claim.arms) <= {arm.name for arm in arms}, name
    assert not more or name == '02_token', name
    # Comments aside, no two files are the same.
    texts = {re.sub('#.*', '', arm.file.read_text()) for arm in arms}
    assert len(texts) == len(arms), name
    tuned = name == '10_tuned'
    assert {len(arm.trials) for arm in arms} == {10 if tuned else 1}, name
    assert claim.look[0] < min(len(arm.seeds) for arm in arms)


def test_rows_of_several_machines_are_merged(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(processes, 'run_all', lambda *_: pytest.fail('It ran.'))
  write_study(tmp_path / 'tiny', SEEDS=(0, 1))
  row = {
      'name': 'one', 'seed': 0, 'trainable': 1, 'held_out': [],
      'base': {'t': 1.0}, 'adapted': {'t': 2.0},
  }
  for seed in (0, 1):
    records.Records(tmp_path / f'there{seed}').add_row({**row, 'seed': seed})
  out = tmp_path / 'out'
  command = [str(tmp_path / 'tiny'), '--out', str(out)]
  both = [f'--merge={tmp_path / name}' for name in ('there0', 'there1')]
  study.main([*command, *both])
  study.main([*command, *both])  # Nothing is there twice.
  assert [r['seed'] for r in records.Records(out).rows] == [0, 1]
  assert '0 new rows' in capsys.readouterr().err
  records.Records(tmp_path / 'tuned').add_row({**row, 'tuned': {'A': '1'}})
  study.main([*command, f'--merge={tmp_path / "tuned"}'])  # Left out.
  assert len(records.Records(out).rows) == 2
  (tmp_path / 'there0' / 'results.json').unlink()
  with refusals.refused(tmp_path / 'there0', 'no rows'):
    study.main([*command, both[0]])
  records.Records(tmp_path / 'other').add_row({**row, 'trainable': 2})
  with refusals.refused(tmp_path / 'other', 'one with seed 0'):
    study.main([*command, f'--merge={tmp_path / "other"}'])
  (tmp_path / 'there1' / 'configs').mkdir()
  (tmp_path / 'there1' / 'configs' / 'one.json').write_text(
      '{"TRAIN_STEPS": "9"}'
  )
  with refusals.refused(out / 'configs' / 'one.json', '9', '2'):
    study.main([*command, both[1]])


@pytest.mark.slow
def test_a_claim_says_its_power_and_ends_what_the_look_decides(
    tmp_path, monkeypatch, capsys
):
  """Arms that the early look has decided get no further seeds."""
  folder = tmp_path / 'tiny'
  for name in ('one', 'two', 'three'):
    write_study(folder, name, SEEDS=tuple(range(5)))
  (folder / 'claim.gin').write_text(
      "CLAIM = 'One is better.'\nEARLY_LOOK = (4, 0.03)\n"
      "CONTRASTS = (('better', 'one', 'two'), ('better', 'one', 'three'))\n"
  )
  out, ran = tmp_path / 'out', []
  level = {'one': 50.0, 'two': 30.0, 'three': 49.5}

  def run_all(commands, jobs, done):
    for index, (run, _) in enumerate(commands):
      ran.append(f'{run.parent.name}/{run.name}')
      done(index)

  def read_run(run):
    seed = int(run.name[-1])
    return {'trainable': 1, 'held_out': [], 'base': {'t': 1.0},
            'adapted': {'t': level[run.parent.name] + seed}}

  monkeypatch.setattr(processes, 'run_all', run_all)
  monkeypatch.setattr(run_rows, 'read', read_run)
  study.main([str(folder), '--out', str(out)])
  # Four seeds of all, then the fifth of the contrast that is open.
  assert len(ran) == 14 and set(ran[12:]) == {'one/seed4', 'three/seed4'}
  said = capsys.readouterr().err
  assert '5 seeds an arm, 2 contrasts' in said and ' left]' in said
  table = (out / 'claim.md').read_text()
  assert 'One is better.' in table
  # It is judged by the seeds of the look, though `one` has another by now.
  assert 'one better than two | reproduced | 4 of 5, 4 of 5 |' in table


def test_an_arm_of_several_folders_is_one(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'run_all', lambda *_: pytest.fail('It ran.'))
  for inside in ('a', 'b', 'c'):
    write_study(tmp_path / 'all' / inside, SEEDS=(0,))
  write_study(tmp_path / 'all' / 'c', SEEDS=(0,), RANK=1)  # Another one.
  there, out = tmp_path / 'there', tmp_path / 'out'
  records.Records(there / 'a').add_row({
      'name': 'one', 'seed': 0, 'trainable': 1, 'held_out': [],
      'base': {'t': 1.0}, 'adapted': {'t': 2.0},
  })
  study.main([str(tmp_path / 'all'), f'--out={out}', f'--merge={there}'])
  found = {x: len(records.Records(out / x).rows) for x in 'abc'}
  assert found == {'a': 1, 'b': 1, 'c': 0}

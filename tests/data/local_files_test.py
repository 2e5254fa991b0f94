# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the kinds of files that rows are read from."""

import gzip
import json
import sys

import numpy as np
import pytest

from moe_peft.data import arrow_files
from moe_peft.data import local_files
from tests import refusals

_ROWS = [{'text': 'a, "b"\nc', 'n': '1'}, {'text': 'Größe', 'n': '2'}]


def _read(paths):
  return [
      row for file in local_files.find(paths)
      for _, row in local_files.examples(file)
  ]


def _json(path):
  path.write_text(json.dumps(_ROWS), encoding='utf-8')


def _json_of_lines(path):
  path.write_text('\n'.join(map(json.dumps, _ROWS)), encoding='utf-8')


def _json_lines_gz(path):
  path.write_bytes(gzip.compress('\n'.join(map(json.dumps, _ROWS)).encode()))


def _csv(path):
  path.write_text('text,n\n"a, ""b""\nc",1\nGröße,2\n', encoding='utf-8')


def _tsv(path):
  path.write_text('\ufefftext\tn\n"a, ""b""\nc"\t1\nGröße\t2\n', 'utf-8')


def _parquet(path):
  pytest.importorskip('pyarrow')
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.Table.from_pylist(_ROWS), path)


def _arrow(path, kind='new_stream'):
  pytest.importorskip('pyarrow')
  import pyarrow as pa

  table = pa.Table.from_pylist(_ROWS)
  with getattr(pa.ipc, kind)(str(path), table.schema) as writer:
    writer.write_table(table)


def _arrow_file(path):
  _arrow(path, 'new_file')


@pytest.mark.parametrize(
    'name, write',
    [
        ('a.json', _json),
        ('a.json', _json_of_lines),
        ('a.jsonl.gz', _json_lines_gz),
        ('a.csv', _csv),
        ('a.tsv', _tsv),
        ('a.parquet', _parquet),
        ('a.arrow', _arrow),
        ('a.arrow', _arrow_file),
        ('a.jsonl.json', _json),
        ('a.tsv.csv', _csv),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, write):
  write(tmp_path / name)
  assert _read(str(tmp_path / name)) == _ROWS


def test_the_name_of_a_folder_says_nothing_of_its_files(tmp_path):
  folder = tmp_path / 'rows.jsonl'
  folder.mkdir()
  _json(folder / 'a.json')
  assert _read(str(folder / 'a.json')) == _ROWS


@pytest.mark.parametrize(
    'content, cell',
    [
        (b'text\r\n"a\r\nb"\r\n', 'a\r\nb'),  # As JSON keeps it.
        (b'text\n"a\nb"\n', 'a\nb'),
        (b'\xef\xbb\xbf\n\r\n"text"\na\n', 'a'),
        ('text\na\x85b\u2028\f\n'.encode(), 'a\x85b\u2028\f'),
        (b'text\rNA\r', 'NA'),
    ],
)
def test_cells_are_kept_as_they_are(tmp_path, content, cell):
  (tmp_path / 'a.csv').write_bytes(content)
  assert _read(str(tmp_path / 'a.csv')) == [{'text': cell}]


def test_what_a_pattern_matches(tmp_path):
  for name in ('a.jsonl', '.a.jsonl', 'deep/b.jsonl', '.kept/c.jsonl'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    _json_of_lines(tmp_path / name)
  assert local_files.find(f'{tmp_path}/*') == [f'{tmp_path}/a.jsonl']
  assert local_files.find(f'{tmp_path}/.*l') == [f'{tmp_path}/.a.jsonl']
  assert local_files.find(f'{tmp_path}/*/*') == [f'{tmp_path}/deep/b.jsonl']
  assert local_files.find(f'{tmp_path}//.kept/*') == [
      f'{tmp_path}//.kept/c.jsonl'
  ]
  # TensorFlow matches one folder by **, and so a part of the rows.
  with refusals.refused(f'{tmp_path}/**/*.jsonl', '**', '*/*.jsonl'):
    local_files.find(f'{tmp_path}/**/*.jsonl')


def test_times_that_python_does_not_have(tmp_path):
  pa = pytest.importorskip('pyarrow')
  path = str(tmp_path / 'a.arrow')
  table = pa.table({'t': pa.array([2**55], pa.timestamp('s'))})
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)
  with refusals.refused(path):
    _read(path)


def test_folders_of_datasets(tmp_path):
  folder = tmp_path / 'train'
  folder.mkdir()
  names = ['data-00000-of-00002.arrow', 'data-00001-of-00002.arrow']
  for name in names:
    _arrow(folder / name)
  state = {'_data_files': [{'filename': name} for name in names]}
  (folder / 'state.json').write_text(json.dumps(state))
  assert _read(str(folder)) == _ROWS * 2
  (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train"]}')
  with refusals.refused(tmp_path, 'train', f'{folder}'):
    local_files.find(str(tmp_path))


def test_files_of_a_saved_folder_lie_in_it(tmp_path):
  state = {'_data_files': [{'filename': '../outside.arrow'}]}
  (tmp_path / 'state.json').write_text(json.dumps(state))
  assert arrow_files.in_folder(str(tmp_path)) == [
      str(tmp_path / 'outside.arrow')
  ]


def test_a_name_may_look_like_a_pattern(tmp_path):
  path = tmp_path / 'rows[1].jsonl'
  path.write_text('{"a": 1}\n')
  assert _read(str(path)) == [{'a': 1}]


def test_columns_of_one_name_are_refused(tmp_path):
  pa = pytest.importorskip('pyarrow')
  path = str(tmp_path / 'a.parquet')
  columns = [pa.array(['x']), pa.array(['y'])]
  pytest.importorskip('pyarrow.parquet').write_table(
      pa.Table.from_arrays(columns, names=['a', 'a']), path
  )
  with refusals.refused(path, 'one name'):
    _read(path)


@pytest.mark.parametrize(
    'name, content, place, names',
    [
        ('a.csv', 'a,b\n1,2\n3\n', ', row 2', ['2']),
        ('a.csv', 'a,b\n1,2,3\n', ', row 1', ['2']),
        ('a.csv', 'a,a\n1,2\n', ', line 1', ['one name']),
        ('a.csv', 'a,b\n"1"x,2\n', ', line 2', []),
        ('a.csv', '\n\na,b\n"1"x,2\n', ', line 4', []),
        ('a.json', '[{"a": 1}, 3]', ', row 2', ['3']),
        ('a.json', '[{"a": 1},', '', ['JSON']),
        ('a.json', '{"a": 1}\n{', ', line 2', ['JSON']),
        ('a.parquet', 'nothing', '', []),
        ('a.arrow', 'nothing', '', []),
        ('a.txt', 'x', '', ['.jsonl']),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, place, names):
  path = tmp_path / name
  path.write_text(content)
  with refusals.refused(f'{path}{place}', *names):
    _read(str(path))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  _parquet(tmp_path / 'a.parquet')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with refusals.refused('pyarrow', 'moe-peft-jax[parquet]'):
    _read(str(tmp_path / 'a.parquet'))


def test_offsets_of_arrow_that_point_elsewhere(tmp_path):
  pa = pytest.importorskip('pyarrow')
  offsets = np.array([0, 1 << 30, 3], np.int32)
  good = pa.array(['ab', 'c'])
  file = tmp_path / 'rows.arrow'
  with pa.ipc.new_stream(file, pa.schema([('text', pa.string())])) as stream:
    stream.write_batch(pa.record_batch([good], ['text']))
  content = file.read_bytes()
  good = np.array([0, 2, 3], np.int32).tobytes()
  assert content.count(good) == 1
  file.write_bytes(content.replace(good, offsets.tobytes()))
  with refusals.refused(str(file), 'Offset'):
    list(local_files.examples(str(file)))

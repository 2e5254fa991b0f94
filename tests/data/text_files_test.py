# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of lines, and of JSON Lines, in the bytes of a file."""

import gzip
import json

import pytest

from moe_peft.data import local_files
from moe_peft.data import text_files
from tests import refusals


def test_a_line_ends_at_a_line_feed_only():
  content = '\ufeffa\x85b\x0cc\u2028d\r\n\ne\rf'.encode()
  assert list(text_files.lines(content, 'x.txt')) == [
      ('x.txt, line 1', 'a\x85b\x0cc\u2028d'),
      ('x.txt, line 2', ''),
      ('x.txt, line 3', 'e\rf'),
  ]
  assert list(text_files.lines(content + b'\n', 'x.txt')) == list(
      text_files.lines(content, 'x.txt')
  )
  assert not list(text_files.lines(b'', 'x.txt'))


def test_bytes_that_are_no_text_are_named():
  with refusals.refused('x.txt, line 2', 'UTF-8'):
    list(text_files.lines(b'a\n\xff\n', 'x.txt'))


def test_rows_of_many_lists_are_not_deep():
  content = f'{{"a": {[[1]] * 500}}}'.encode()
  ((_, row),) = text_files.json_lines(content, 'x.jsonl')
  assert row == {'a': [[1]] * 500}


def test_json_lines_skip_empty_ones_and_keep_their_numbers():
  content = '\ufeff{"a": "x\x85y"}\r\n \n{"a": "\\ud83d\\ude00"}\n'.encode()
  assert list(text_files.json_lines(content, 'x.jsonl')) == [
      ('x.jsonl, line 1', {'a': 'x\x85y'}),
      ('x.jsonl, line 3', {'a': '😀'}),
  ]


@pytest.mark.parametrize(
    'line, name',
    [
        (r'{"a": "x\ud800"}', r'\ud800'),
        (r'{"x\udc00": 1}', r'\udc00'),
        ('{"a": ', 'column'),
        ('[' * 100_000, ''),
        (f'{{"a": {"[" * 200}{"]" * 200}}}', 'nested too deeply'),
        (f'{{"a": {"1" * 5000}}}', ''),
        ('[1]', '[1]'),
    ],
)
def test_lines_that_are_no_objects_are_named(line, name):
  content = f'{{"a": 1}}\n{line}\n'.encode()
  with refusals.refused('x.jsonl, line 2', name):
    list(text_files.json_lines(content, 'x.jsonl'))


def test_gzip_files_that_fill_the_memory_are_refused():
  content = gzip.compress(b'{"a": 1}\n' * 2**23, 1)  # 72 MiB.
  with refusals.refused('x.jsonl.gz', '100 times'):
    text_files.unzip(content, 'x.jsonl.gz')


@pytest.mark.slow
def test_gzip_files_that_are_cut_or_changed_are_named(tmp_path):
  path = tmp_path / 'a.jsonl.gz'
  content = gzip.compress(json.dumps({'a': 'some text'}).encode())
  path.write_bytes(content)
  assert list(local_files.json_lines(str(path))) == [
      (f'{path}, line 1', {'a': 'some text'})
  ]
  changed = bytearray(content)
  changed[12] ^= 0xFF
  for broken in (content[:20], bytes(changed), content[:10] + b'\xff' * 9):
    path.write_bytes(broken)
    with refusals.refused(path):
      list(local_files.json_lines(str(path)))

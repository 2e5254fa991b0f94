# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a card: what it measures, and that it can be stopped."""

import json
import sys

import pytest

from benchmarks import card
from benchmarks import card_case
from benchmarks import layer
from benchmarks import processes
from benchmarks import tables
from tests import refusals

OURS = [row for row in card.ROWS if row.peer is None]


class Fake:
  """A process that answers at once."""

  facts = {'platform': 'cpu', 'card': 'a card', 'parameters': 7}
  peak_mib = 3.0

  def __call__(self):
    return 0.5

  def close(self):
    pass


@pytest.fixture
def started(monkeypatch):
  """Names of what was started; `fails` holds those that end."""
  names = []

  def process(case, sizes, options, seconds=None):
    names.append(f'{case} {sizes.get("bindings") or ""}'.strip())
    if names[-1] in process.fails:
      error = processes.Ended('It ended: no room')
      error.said = 'no room'
      raise error
    return Fake()

  process.fails, process.names = set(), names
  monkeypatch.setattr(card, '_process', process)
  return process


def run(folder, **options):
  options = tables.Options(quick=True, folder=folder, **options)
  (table,) = card.run(options, lambda text: None)
  return {row['case']: row for row in table.rows}


def test_rows_are_known_apart():
  assert len({row.case for row in card.ROWS}) == len(card.ROWS)
  assert card.SHAPES.keys() == card.TINY_SHAPES.keys()
  assert {row.shape for row in card.ROWS} == set(card.SHAPES)


def test_a_second_call_goes_on_with_what_is_missing_or_failed(
    started, tmp_path
):
  failing = "MoLoRA soft {'ATTENTION': 'fused'}"
  started.fails.add(failing)
  rows = run(tmp_path)
  assert len(started.names) == 1 + len(OURS) == 1 + len(rows)
  assert rows['1B, MoLoRA soft, ATTENTION fused']['error'] == 'no room'
  assert rows['1B, MoLoRA soft']['over_frozen'] == 1.0
  # Eight rows of 64 tokens in half a second.
  assert rows['1B, MoLoRA soft']['tokens_per_second'] == 8 * 64 / 0.5
  started.fails.clear()
  started.names.clear()
  rows = run(tmp_path)
  assert started.names == ['card', failing]
  assert not any(row['error'] for row in rows.values())
  (table,) = json.loads((tmp_path / 'card.json').read_text())
  assert len(table['rows']) == len(OURS)
  assert not any('missing' in note for note in table['notes'])


def test_no_time_is_no_row(started, tmp_path):
  assert not run(tmp_path, minutes=0)
  assert started.names == ['card']


def test_a_row_without_time_is_one_that_failed(started, tmp_path):
  started.fails.add('MoLoRA soft')
  options = tables.Options(quick=True, folder=tmp_path)
  row = card.measure(card.ROWS[0], options, 0, 'cpu')
  assert row == {'case': '1B, MoLoRA soft', 'error': 'The time was up.'}


def test_rows_of_another_card_are_not_added_to(started, tmp_path):
  run(tmp_path)
  path = tmp_path / 'card.json'
  path.write_text(path.read_text().replace('a card', 'another'))
  with refusals.refused('--out', 'another', 'a card'):
    run(tmp_path)


@pytest.mark.parametrize('platform,devices,where,remedy', [
    ('cpu', 1, '--only card', '--quick'),
    ('gpu', 2, '--only card', 'CUDA_VISIBLE_DEVICES=0'),
    ('tpu', 1, '--peer_python', 'GPUs'),
])
def test_no_table_of_such_a_machine(
    started, monkeypatch, tmp_path, platform, devices, where, remedy
):
  monkeypatch.setattr(
      Fake, 'facts', {**Fake.facts, 'platform': platform, 'devices': devices}
  )
  options = tables.Options(folder=tmp_path, peer_python='python')
  with refusals.refused(where, remedy):
    next(card.run(options, lambda text: None))
  assert started.names == ['card']


def test_a_process_that_ends_says_its_exception():
  source = (
      'error = MemoryError("no room: of 9 GiB\\nin allocator_bfc")\n'
      'error.add_note("For simplicity, frames are left out.")\n'
      'raise error'
  )
  with pytest.raises(processes.Ended) as ended:
    processes.Process([sys.executable, '-c', source], {'case': 'large'})
  assert ended.value.said == 'MemoryError: no room: of 9 GiB'


def test_a_process_that_says_nothing_has_an_exit_status():
  with pytest.raises(processes.Ended) as ended:
    processes.Process([sys.executable, '-c', 'exit(3)'], {'case': 'silent'})
  assert ended.value.said == 'exit status 3'


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own(tmp_path):
  options = tables.Options(quick=True, folder=tmp_path)
  row = card.measure(card.ROWS[0], options, 600, 'cpu')
  assert row['case'] == '1B, MoLoRA soft'
  assert not row['error']
  assert row['parameters'] > 0 and row['process_mib'] > 0
  assert row['compile_seconds'] > 0
  assert row['tokens_per_second'] == pytest.approx(8 * 64 / row['seconds'])


def built(row):
  sizes = card.TINY_SHAPES[row.shape]
  bindings = sizes.get('bindings', {}) | row.bindings
  return card_case.build({'case': row.name, **sizes, 'bindings': bindings})


@pytest.mark.long
def test_rows_at_tiny_sizes():
  facts = {}
  # One of each kind; `--quick` runs them all.
  for case in (
      '1B, frozen network', '1B, MoLoRA soft',
      '1B, MoLoRA soft, BASE_DTYPE nf4', 'layer, MoLoRA soft',
      f'layer, {layer.MATMUL}',
  ):
    (row,) = (row for row in OURS if row.case == case)
    measured = built(row)
    assert measured() > 0
    facts[case] = measured.facts()
  bfloat16, nf4 = (
      facts[f'1B, MoLoRA soft{more}'] for more in ('', ', BASE_DTYPE nf4')
  )
  assert bfloat16['parameters'] == nf4['parameters'] > 0
  assert facts['layer, MoLoRA soft']['parameters'] == 64 * (2 * 8 * 4 + 8)


def test_fused_attention_needs_a_gpu():
  (row,) = (row for row in OURS if row.bindings.get('ATTENTION') == 'fused')
  with refusals.refused('ATTENTION', 'GPUs'):
    built(row)

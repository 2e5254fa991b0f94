# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what tables are made of, and of the command line."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import devices
from benchmarks import peers
from benchmarks import plots
from benchmarks import tables
from benchmarks import timing
from tests import refusals


def a_table(**row):
  rows = [{'case': 'one', 'fastest': 0.5, **row}, {'case': 'two'}]
  columns = (tables.FASTEST, tables.GFLOP, tables.PARAMETERS)
  return tables.Table('layer', 'A title', columns, rows, ('A note.',))


def test_a_column_without_values_is_not_printed():
  text = a_table(parameters=1234).markdown()
  assert text.splitlines() == [
      'A title', '', '| case | fastest | trained |', '|---|--:|--:|',
      '| one | 500.0 | 1,234 |', '| two |  |  |', '', 'A note.',
  ]


def test_json_has_what_was_measured(tmp_path):
  tables.save([a_table(gflop=2.0)], tmp_path / 'a.json')
  (content,) = json.loads((tmp_path / 'a.json').read_text())
  assert content['rows'][0] == {'case': 'one', 'fastest': 0.5, 'gflop': 2.0}


def test_ratios_are_over_the_named_case():
  rows = [{'case': 'a', 'x': 2.0}, {'case': 'b', 'x': 3.0}, {'case': 'c'}]
  tables.ratios(rows, 'over_a', 'a', 'x')
  assert [row.get('over_a') for row in rows] == [1.0, 1.5, None]


def test_rounds_take_turns():
  order = []

  def case(name, seconds):
    return lambda: order.append(name) or seconds.pop()

  cases = {'a': case('a', [3.0, 1.0, 2.0]), 'b': case('b', [9.0, 7.0, 8.0])}
  result = timing.interleave(cases, 3, lambda text: None)
  assert order == ['a', 'b'] * 3
  assert result['a'] == {'seconds': 2.0, 'fastest': 1.0}
  assert result['b'] == {'seconds': 8.0, 'fastest': 7.0}


def test_a_timed_call_does_not_wait_for_the_one_before():
  x = np.ones((512, 512), np.float32)
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: y @ x, x))
  jax.block_until_ready(slow(x))  # Compiled.
  results, ready = [], []

  def call():
    ready.extend(result.is_ready() for result in results)
    results.append(slow(x))
    return results[-1]

  assert timing.warm_seconds_of(call) > 0
  assert ready == [True]


def test_xla_counts_a_matrix_product():
  x = np.ones((64, 32), np.float32)
  facts = timing.Compiled(lambda x: x @ x.T, x).facts()
  assert facts['gflop'] == pytest.approx(2 * 64 * 64 * 32 / 1e9)
  # Argument and result.
  assert facts['peak_mib'] >= (x.nbytes + 64 * 64 * 4) / 2**20


def test_share_of_peak_only_where_the_peak_is_known(monkeypatch):
  rows = [{'fastest': 0.1, 'gflop': 50.0}, {'fastest': 0.1}]
  devices.add_rates(rows)
  assert rows == [
      {'fastest': 0.1, 'gflop': 50.0, 'gflop_per_second': 500.0},
      {'fastest': 0.1},
  ]
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(devices.PEAK_TFLOPS, kind, 1.0)
  devices.add_rates(rows, num_devices=2)
  assert rows[0]['share_of_peak'] == pytest.approx(0.25)


def test_plots_only_of_tables_that_have_one(tmp_path):
  assert plots.save(a_table(temp_mib=3.0), tmp_path / 'a.png')
  assert (tmp_path / 'a.png').stat().st_size > 1000
  other = tables.Table('startup', 'A title', (), [])
  assert not plots.save(other, tmp_path / 'b.png')


def test_help_imports_no_jax():
  code = (
      'import sys\n'
      'from benchmarks import __main__\n'
      'try:\n'
      '  __main__.main(["--help"])\n'
      'except SystemExit:\n'
      '  pass\n'
      'assert "jax" not in sys.modules\n'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '--peer_python' in done.stdout


def test_peers_that_cannot_run_are_one_message():
  with refusals.refused('--peer_python', 'nowhere'):
    peers.Peer('nowhere', 'layer/frozen', {'threads': 1, 'device': 'cpu'})
  # An interpreter without its packages: the message has the commands.
  with refusals.refused('no such case', 'pip install --no-deps moe-peft'):
    peers.Peer(sys.executable, 'no such case', {'threads': 1, 'device': 'cpu'})


@pytest.mark.parametrize('path', ['nowhere', '/bin/false', '/bin/echo', '.'])
def test_a_wrong_interpreter_is_named_before_anything_runs(path, tmp_path):
  out = tmp_path / 'out'
  with refusals.refused('--peer_python', path):
    main.main(['--only', 'card', '--out', str(out), '--peer_python', path])
  assert not out.exists()


@pytest.mark.hf
@pytest.mark.slow
def test_a_peer_answers_with_seconds_and_counts():
  pytest.importorskip('torch')
  sizes = {'features': 16, 'tokens': 32, 'num_experts': 3, 'rank': 2}
  options = {'threads': 1, 'device': 'cpu'}
  peer = peers.Peer(sys.executable, 'layer/frozen', {**options, **sizes})
  try:
    assert peer.facts['parameters'] == 0
    assert 0 < peer() < 10
  finally:
    peer.close()

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of a base in fewer bits."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import quantized


def test_what_is_compared():
  """Two targets of a vocabulary of two, by hand."""
  halves, quarter = np.log([0.5, 0.5]), np.log([0.25, 0.75])
  before = np.float32([[1.0, -1.0], halves])
  # A constant changes logits and no probability.
  after = np.float32([before[0] + 3.0, quarter])
  found = quantized.compare([before], [(after, np.array([0, 1]))])
  first = np.log1p(np.exp(-2.0))
  assert found['loss'] == pytest.approx((first - np.log(0.75)) / 2)
  assert found['divergence'] == pytest.approx(
      (np.log(0.5 / 0.25) + np.log(0.5 / 0.75)) / 2 / 2, abs=1e-6
  )
  assert found['agreement'] == 0.5
  of = 2.0  # Deviations of the first row; the second one has none.
  square = 2 * 3.0**2 + np.square(quarter - halves).sum()
  assert found['error'] == pytest.approx(np.sqrt(square / of), rel=1e-5)
  same = quantized.compare([before], [(before, np.array([0, 1]))])
  assert (same['error'], same['divergence'], same['agreement']) == (0, 0, 1)


@pytest.mark.slow
def test_fewer_bits_lose_more(tmp_path):
  # In a process of its own: where T5X was imported, paths of gin are absolute.
  subprocess.run(
      [sys.executable, '-m', 'benchmarks', '--only', 'quantized', '--quick',
       '--out', str(tmp_path)],
      check=True,
  )
  (table,) = json.loads((tmp_path / 'quantized.json').read_text())
  rows = {row['case']: row for row in table['rows']}
  assert [rows[x]['base_mib'] > rows[y]['base_mib'] for x, y in zip(
      quantized.DTYPES[:-1], quantized.DTYPES[1:], strict=True
  )] == [True] * 3
  # The base that ships lies on the disk in bfloat16.
  assert rows['bfloat16']['error'] == 0.0
  assert 0.001 < rows['int8']['error'] < 0.03 < rows['nf4']['error'] < 0.3
  assert rows['int8']['divergence'] < rows['nf4']['divergence'] < 0.3

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors of safetensors files, and what of them does not fit a model."""

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from moe_peft.training import tensor_files
from tests import refusals


def test_files_are_one_mapping(tmp_path):
  one = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}
  two = {'b': np.ones(4, ml_dtypes.bfloat16)}
  files = [tmp_path / 'one', tmp_path / 'two']
  for file, tensors in zip(files, (one, two), strict=True):
    safetensors_numpy.save_file(tensors, file)
  read = tensor_files.TensorFiles(files)
  assert read.shapes == {'a': (2, 3), 'b': (4,)}
  assert read.dtypes == {'a': 'F32', 'b': 'BF16'}
  assert len(read) == 2
  for name, array in dict(read).items():
    np.testing.assert_array_equal(array, (one | two)[name])


def test_damaged_files_are_named(tmp_path):
  file = tmp_path / 'file'
  safetensors_numpy.save_file({'a': np.ones(100, np.float32)}, file)
  file.write_bytes(file.read_bytes()[:-1])
  with refusals.refused(file, 'truncated'):
    tensor_files.TensorFiles([file])
  with refusals.refused(tmp_path / 'absent'):
    tensor_files.TensorFiles([tmp_path / 'absent'])


def test_misfits_are_named():
  given = {'a': (1, 2), 'b': (3,), 'x': (1,), 'own': (1,)}
  expected = {'a': (1, 2), 'b': (4,), 'c': (1,), 'own too': (2,)}
  assert not tensor_files.misfits(given, given)
  text = tensor_files.misfits(given, expected, lambda x: x.startswith('own'))
  for part in ('missing: c;', 'not in the model: x;', 'b is (3,)', '(4,)'):
    assert part in text
  assert 'own' not in text
  many = {f'p{i}': (1,) for i in range(10)}
  assert tensor_files.misfits({}, many) == 'missing: p0, p1, p2 and 7 more'

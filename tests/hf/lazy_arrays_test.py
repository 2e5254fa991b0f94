# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arrays that are read while they are written, and the tokenizer's files."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.data import vocabularies
from moe_peft.hf import folders
from moe_peft.hf import lazy_arrays
from moe_peft.hf import tokenizer
from moe_peft.hf import trained as trained_lib
from moe_peft.training import bases

ARRAYS = {
    'encoder/a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
    'encoder/b/scale': np.linspace(0, 1, 5).astype(jnp.bfloat16),
    'decoder/c/bias': np.zeros((), np.float32),
}


def lazy():
  return {
      name: lazy_arrays.LazyArray(x.shape, lambda x=x: x, x.dtype)
      for name, x in ARRAYS.items()
  }


@pytest.mark.parametrize('file_format', ['safetensors', 'orbax'])
def test_a_base_holds_what_was_written(tmp_path, file_format):
  if file_format == 'orbax':
    lazy_arrays.write_orbax(tmp_path, lazy())
  else:
    file = tmp_path / folders.WEIGHTS
    lazy_arrays.write_safetensors(file, lazy())
    assert safetensors_numpy.load_file(file).keys() == ARRAYS.keys()
  read = bases.read_arrays(tmp_path)
  assert read.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_an_array_of_another_shape_is_not_written(tmp_path):
  wrong = lazy_arrays.LazyArray((3,), lambda: np.zeros(4))
  with pytest.raises(ValueError, match='(4,)'):
    lazy_arrays.write_safetensors(tmp_path / 'file', {'name': wrong})


def write_tokenizer(folder, vocabulary=None, base=None):
  """Writes the files; returns the contents of tokenizer_config.json."""
  folder.mkdir()
  model = types.SimpleNamespace(input_vocabulary=vocabulary)
  tokenizer.write(folder, trained_lib.Trained(model, {}, base_folder=base))
  file = folder / 'tokenizer_config.json'
  return json.loads(file.read_text()) if file.is_file() else None


@pytest.mark.slow
def test_the_tokenizer_is_the_base_s_or_the_vocabulary_s(tmp_path):
  written = write_tokenizer(tmp_path / 'bytes', vocabularies.byte_vocabulary())
  assert written == {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 125}
  assert write_tokenizer(tmp_path / 'unknown') is None
  base = tmp_path / 'base'
  base.mkdir()
  for pieces, extra_ids in ((b'a', 100), (b'a <extra_id_0>', 0)):
    (base / 'spiece.model').write_bytes(pieces)
    folder = tmp_path / f'pieces_{extra_ids}'
    assert write_tokenizer(folder, base=base)['extra_ids'] == extra_ids
    assert (folder / 'spiece.model').read_bytes() == pieces
  (base / 'tokenizer_config.json').write_text('{"own": 1}')
  assert write_tokenizer(tmp_path / 'own', base=base) == {'own': 1}

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Headers of GGUF files: as `gguf` reads them, and never beyond the file."""

import numpy as np
import pytest

from moe_peft.hf import gguf_file
from moe_peft.hf import gguf_header
from tests.fuzz import formats
from tests.refusals import refused

gguf = pytest.importorskip('gguf')


def write(tmp_path, *args):
  file = tmp_path / 'model.gguf'
  file.write_bytes(formats.gguf(*args))
  return file


def test_fields_and_tensors_are_those_of_the_package(tmp_path):
  file = write(tmp_path)
  fields, tensors = gguf_header.read(file)
  reader = gguf.GGUFReader(file)
  for name, field in reader.fields.items():
    if not name.startswith('GGUF.'):
      assert fields[name] == field.contents(), name
  assert list(tensors) == [x.name for x in reader.tensors]
  for tensor in reader.tensors:
    ours = tensors[tensor.name]
    assert ours.shape == tuple(map(int, reversed(tensor.shape)))
    assert (ours.kind, ours.offset) == (tensor.tensor_type, tensor.data_offset)


@pytest.mark.parametrize('kind', ['F16', 'BF16', 'Q8_0', 'Q4_1'])
def test_tensors_of_other_types_are_read(kind, tmp_path):
  kind = gguf.GGMLQuantizationType[kind]
  writer = gguf.GGUFWriter(tmp_path / 'model.gguf', 'llama')
  fields = {k: v for k, v in formats.FIELDS.items() if k[:5] == 'llama'}
  for key, (of, value) in fields.items():
    writer.add_key_value(key, value, gguf.GGUFValueType(of))
  writer.add_vocab_size(3)
  want = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
  data = gguf.quants.quantize(want, kind)
  writer.add_tensor('x.weight', data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  file = gguf_file.GgufFile(tmp_path / 'model.gguf')
  want = gguf.quants.dequantize(data, kind).reshape(3, 64)
  np.testing.assert_array_equal(file['x.weight'], want)


@pytest.mark.parametrize(
    'counts', [(2**62, 3), (3, 2**64 - 1), (10_000, 18), (12, 200)]
)
def test_counts_beyond_the_file_are_refused(counts, tmp_path):
  file = write(tmp_path, None, None, counts)
  with refused(file):
    gguf_file.GgufFile(file)


@pytest.mark.parametrize(
    ('shape', 'kind', 'offset'),
    [((2**40, 2**40), 0, 0), ((24, 10), 99, 0), ((24, 10), 0, 2**63),
     ((25, 10), 2, 0), ((24, 10, 1, 1, 1), 0, 0)],
)
def test_tensors_beyond_the_file_are_refused(shape, kind, offset, tmp_path):
  name = 'token_embd.weight'
  file = write(
      tmp_path, None, lambda infos: infos | {name: (shape, kind, offset)}
  )
  with refused(file):
    gguf_file.GgufFile(file)['model.embed_tokens.weight']

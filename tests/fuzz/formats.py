# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small good files of formats whose writers are not ours, and mutations."""

import json
from pathlib import Path
import struct
from typing import Any

import numpy as np

from tests.fuzz import mutations
from tests.hf import import_decoder_test as llama_models

TOKENS = ['<unk>', '<s>', '</s>', 'a', 'b', 'c', 'd', 'Ġ', 'ab', 'cd']
LLAMA = {
    **llama_models.SMALL, 'vocab_size': len(TOKENS), 'num_hidden_layers': 1
}
FIELDS: dict[str, tuple[int, Any]] = {
    # By key the type's number of GGUF, and the value.
    'general.architecture': (8, 'llama'),
    'general.alignment': (4, 32),
    'llama.block_count': (4, 1),
    'llama.embedding_length': (4, 24),
    'llama.feed_forward_length': (4, 40),
    'llama.attention.head_count': (4, 4),
    'llama.attention.head_count_kv': (4, 2),
    'llama.attention.key_length': (4, 8),
    'llama.attention.layer_norm_rms_epsilon': (6, 1e-5),
    'llama.rope.freq_base': (6, 500.0),
    'llama.rope.scaling.type': (8, 'none'),
    'tokenizer.ggml.model': (8, 'gpt2'),
    'tokenizer.ggml.pre': (8, 'smollm'),
    'tokenizer.ggml.tokens': (9, (8, TOKENS)),
    'tokenizer.ggml.token_type': (9, (5, [3, 3, 3, 1, 1, 1, 1, 1, 1, 1])),
    'tokenizer.ggml.merges': (9, (8, ['a b', 'c d'])),
    'tokenizer.ggml.bos_token_id': (4, 1),
    'tokenizer.ggml.eos_token_id': (4, 2),
}
_SCALARS = dict(enumerate('BbHhIif?', 0)) | {10: 'Q', 11: 'q', 12: 'd'}
_NAMES = {
    theirs: name
    for name, theirs in (
        ('token_embd', 'model.embed_tokens'), ('output_norm', 'model.norm'),
        ('output', 'lm_head'),
        ('blk.0.attn_q', 'model.layers.0.self_attn.q_proj'),
        ('blk.0.attn_k', 'model.layers.0.self_attn.k_proj'),
        ('blk.0.attn_v', 'model.layers.0.self_attn.v_proj'),
        ('blk.0.attn_output', 'model.layers.0.self_attn.o_proj'),
        ('blk.0.ffn_gate', 'model.layers.0.mlp.gate_proj'),
        ('blk.0.ffn_up', 'model.layers.0.mlp.up_proj'),
        ('blk.0.ffn_down', 'model.layers.0.mlp.down_proj'),
        ('blk.0.attn_norm', 'model.layers.0.input_layernorm'),
        ('blk.0.ffn_norm', 'model.layers.0.post_attention_layernorm'),
    )
}  # fmt: skip


def _gguf_value(kind: int, value: Any) -> bytes:
  if kind == 8:
    text = str(value).encode('utf-8', 'surrogatepass')
    return struct.pack('<Q', len(text)) + text
  if kind == 9:
    of, values = value
    items = b''.join(_gguf_value(of, x) for x in values)
    return struct.pack('<IQ', of, len(values)) + items
  return struct.pack('<' + _SCALARS[kind], value)


def gguf(fields=None, tensors=None, counts=None) -> bytes:
  """A GGUF file of a LLaMA.

  Args:
    fields: By key its type and value; default: good ones.
    tensors: By name dimensions, type and offset; default: good ones.
    counts: Numbers of tensors and fields that the header claims.
  """
  fields = FIELDS if fields is None else fields
  arrays = llama_models.random_tensors(LLAMA)
  infos, data = {}, b''
  for name, array in arrays.items():
    name = _NAMES[name.removesuffix('.weight')] + '.weight'
    infos[name] = (array.shape[::-1], 0, len(data))
    data += array.tobytes() + bytes(-array.nbytes % 32)
  infos = infos if tensors is None else tensors(infos)
  claimed = counts or (len(infos), len(fields))
  head = b'GGUF' + struct.pack('<IQQ', 3, *claimed)
  for key, (kind, value) in fields.items():
    head += _gguf_value(8, key) + struct.pack('<I', kind)
    head += _gguf_value(kind, value)
  for name, (shape, kind, offset) in infos.items():
    head += _gguf_value(8, name) + struct.pack('<I', len(shape))
    head += struct.pack(f'<{len(shape)}QIQ', *shape, kind, offset)
  return head + bytes(-len(head) % 32) + data


def as_safetensors(random: mutations.Random, content: bytes) -> bytes:
  """Mutates the header of a safetensors file, or its length."""
  size = struct.unpack('<Q', content[:8])[0]
  header, data = content[8 : 8 + size], content[8 + size :]
  header = mutations.dumps(random, mutations.value(random, json.loads(header)))
  header += b' ' * (-len(header) % 8)
  size = len(header)
  if random.random() < 0.1:
    size = random.choice((0, size - 1, size + 8, 2**30, 2**63, 2**64 - 1))
  return struct.pack('<Q', size) + header + data


def as_array(random: mutations.Random, content: bytes) -> bytes:
  """Mutates the header of an array of NumPy's."""
  size = struct.unpack('<H', content[8:10])[0]
  header, data = content[10 : 10 + size].decode('latin-1'), content[10 + size :]
  kind = random.randrange(4)
  if kind == 0:
    header = header.replace('<f2', random.choice(
        ('|O', '<f8', '|V9', '<U9', '|S0', 'x', '<M8[s]', '<c16', '>f2')
    ))
  elif kind == 1:
    shape = random.choice((
        '(1000000000000,)', '(0,)', '()', '(-1,)', '(2, 2)', '(True, 1, 1)',
        '(99999, 99999, 99999)', '(3, 5, 1)', '[3, 5, 4]', '(3.0, 5, 4)',
        '(4294967296, 4294967296)', '(1,) * 9',
    ))
    header = header[: header.index('(')] + shape + ', }'
  elif kind == 2:
    header = mutations.as_text(random, header.encode()).decode('latin-1')
  else:
    header = header.replace('False', random.choice(('True', '1', 'x', '[]')))
  header = header.encode('latin-1', 'replace')[:60_000]
  return content[:8] + struct.pack('<H', len(header)) + header + data


def as_gguf(random: mutations.Random, content: bytes) -> bytes:
  """Mutates fields, tensors and counts of a GGUF file, which is made anew."""
  del content
  fields = dict(FIELDS)
  for _ in range(random.choice((0, 1, 1, 2, 3))):
    _mutate_field(random, fields)
  counts = None
  if random.random() < 0.1:
    odd = (0, 1, 2, 2**20, 2**31, 2**62, 2**64 - 1)
    counts = random.choice(odd), random.choice((*odd, len(fields)))
  return gguf(fields, lambda x: _mutate_infos(random, x), counts)


def _mutate_field(random: mutations.Random, fields: dict[str, Any]) -> None:
  key = random.choice(list(fields))
  kind, value = fields[key]
  choice = random.randrange(6)
  if choice == 0:
    del fields[key]
  elif choice == 1:
    fields[key] = fields[random.choice(list(fields))]
  elif choice == 2:
    fields[key] = (8, random.choice(mutations.TEXTS))
  elif choice == 3:
    kind = random.choice((4, 5, 6, 10, 11, 12))
    number = random.choice((0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1))
    fields[key] = (kind, random.choice((number, number, -1))
                   if kind in (5, 6, 11, 12) else number)
  elif choice == 4:
    fields[random.choice(mutations.TEXTS)[:99]] = (kind, value)
  else:
    deep = (9, (9, [(9, [(4, [1, 2])])]))
    texts = [random.choice(mutations.TEXTS) for _ in range(3)]
    fields[key] = random.choice((
        deep, (9, (8, texts)), (9, (8, [])), (9, (6, [float('nan')] * 9)),
        (9, (4, list(range(50)))), (7, True), (12, 1e308),
    ))


def _mutate_infos(random: mutations.Random, infos):
  if random.random() < 0.5:
    return infos
  infos = dict(infos)
  name = random.choice(list(infos))
  shape, kind, offset = infos[name]
  odd = (0, 1, 3, 2**20, 2**32, 2**62, 2**64 - 1)
  choice = random.randrange(6)
  if choice == 0:
    del infos[name]
  elif choice == 1:
    shape = tuple(random.choice(odd) for _ in range(random.randrange(1, 6)))
  elif choice == 2:
    kind = random.choice((*range(40), 2**31))
  elif choice == 3:
    offset = random.choice((*odd, 32, 33))
  elif choice == 4:
    shape = (*shape, 1)
  else:
    infos[random.choice(mutations.TEXTS)[:99]] = infos.pop(name)
  if name in infos:
    infos[name] = shape, kind, offset
  return infos


def tokenizer() -> dict[str, Any]:
  """A `tokenizer.json` with a stage of each common kind."""
  special = ['<pad>', '<s>', '</s>', '<unk>']
  words = [*special, *'abcdefgh', 'ab', 'abc', 'Ġ', '▁']
  added = lambda i, x: {
      'id': i, 'content': x, 'single_word': False, 'lstrip': False,
      'rstrip': False, 'normalized': False, 'special': True,
  }  # fmt: skip
  gpt2 = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
  return {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': [added(i, x) for i, x in enumerate(special[:3])],
      'normalizer': {'type': 'Sequence', 'normalizers': [
          {'type': 'NFC'},
          {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
          {'type': 'Prepend', 'prepend': '▁'},
      ]},
      'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [
          {'type': 'Split', 'pattern': {'Regex': gpt2},
           'behavior': 'Isolated', 'invert': False},
          {'type': 'ByteLevel', 'add_prefix_space': False,
           'trim_offsets': True, 'use_regex': False},
      ]},
      'post_processor': {
          'type': 'TemplateProcessing',
          'single': [{'SpecialToken': {'id': '<s>', 'type_id': 0}},
                     {'Sequence': {'id': 'A', 'type_id': 0}}],
          'pair': [{'Sequence': {'id': 'A', 'type_id': 0}},
                   {'Sequence': {'id': 'B', 'type_id': 1}}],
          'special_tokens': {
              '<s>': {'id': '<s>', 'ids': [1], 'tokens': ['<s>']}
          },
      },
      'decoder': {'type': 'ByteLevel', 'add_prefix_space': True,
                  'trim_offsets': True, 'use_regex': True},
      'model': {
          'type': 'BPE', 'dropout': None, 'unk_token': '<unk>',
          'continuing_subword_prefix': None, 'end_of_word_suffix': None,
          'fuse_unk': True, 'byte_fallback': True, 'ignore_merges': False,
          'vocab': {x: i for i, x in enumerate(words)},
          'merges': ['a b', 'ab c'],
      },
  }  # fmt: skip


def write_cache(folder: Path) -> None:
  """A cache of one row, as `data prepare` leaves it."""
  from moe_peft.data import packages

  folder.mkdir(parents=True)
  (folder / 'train.tfrecord-00000-of-00001').write_bytes(bytes(20))
  (folder / 'info.train.json').write_text('{"num_shards": 1}')
  files = sorted(folder.iterdir())
  (folder / 'prepared.json').write_text(json.dumps({
      'recipe': {'rows': 1, 'prompts': ['a', 'b'], 'version': '1'},
      'rows': {'train': 1},
      'constant_answer': {'train': 50.0},
      'sha256': {x.name: packages.sha256(x) for x in files},
  }))
  (folder / 'COMPLETED').touch()


def tfrecords() -> bytes:
  """Two records of texts and of other features."""
  import tensorflow as tf

  text = lambda *x: tf.train.Feature(
      bytes_list=tf.train.BytesList(value=[y.encode() for y in x])
  )
  example = tf.train.Example(features=tf.train.Features(feature={
      'inputs': text('a b'), 'targets': text('c'), 'choices': text('c', 'd'),
      'number': tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
      'numbers': tf.train.Feature(
          float_list=tf.train.FloatList(value=np.arange(3.0))
      ),
  })).SerializeToString()
  return b''.join(
      mutations.checked(struct.pack('<Q', len(x))) + mutations.checked(x)
      for x in (example, example)
  )

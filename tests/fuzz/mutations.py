# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ways to damage a file: its bytes, or what its format means by them.

Every function takes a source of randomness and the bytes of a good file.
"""

from collections.abc import Callable, Iterator
import gzip
import io
import json
import random
import struct
from typing import Any
import zipfile

Random = random.Random
Mutation = Callable[[Random, bytes], bytes]

# Texts that are put into JSON as they are, in the place of a marked string.
_RAW = {
    f'\ue000{i}\ue000': text
    for i, text in enumerate((
        '9' * 400, '9' * 5000, '1e400', '-0', 'NaN', 'Infinity', '-Infinity',
        '[' * 100_000 + ']' * 100_000, '[' * 900 + ']' * 900,
        '{"a":' * 400 + '1' + '}' * 400, '{"a": 1, "a": 2}', '01', "'x'", '',
        '"\\ud800"', '"\\u0000"',
    ))
}
NUMBERS = (
    0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64,
    10**30, 0.5, -0.0, 1e-320, 1e38, 1e308, 2.0,
)
TEXTS = (
    '', ' ', 'x', '0', '1e999', 'nan', '\x00', '\u2028', '\x85', '\ufeff', 'ı',
    '𝔘', 'a\u0301', '\u202e', 'x' * 100_000, 'é' * 3000, '../outside/file',
    '/etc/passwd', '~', '.', '..', 'a/b', "'\nimport os\n", '\n', '\\',
    '%gin.REQUIRED', '@os.system()', '(a+)+$', '(', '[', '(.*)*' * 50,
    '{{x}}', '<script>', '${HOME}', "__import__('os').system('touch x')",
)  # fmt: skip
ODD = (
    None, True, False, [], {}, [[]], [None], {'': None}, list(range(1000)),
    [1, 'x'], {'x': 1}, [[1, 2], [3]], *NUMBERS, *TEXTS, *_RAW,
)  # fmt: skip


def raw(random: Random, content: bytes) -> bytes:
  """Flips bits, and removes, repeats, moves and overwrites pieces."""
  content = bytearray(content)
  for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
    size = len(content)
    if not size:
      return bytes([random.randrange(256)])
    at = random.randrange(min(size, random.choice((64, 1024, size))))
    length = random.choice((1, 2, 4, 8, 16, 64, 256, size // 2))
    kind = random.randrange(8)
    if kind == 0:
      content[at] ^= 1 << random.randrange(8)
    elif kind == 1:
      content[at] = random.choice((0, 1, 10, 34, 92, 127, 128, 255))
    elif kind == 2:
      del content[random.randrange(size) :]
    elif kind == 3:
      del content[at : at + length]
    elif kind == 4:
      content[at:at] = content[at : at + length]
    elif kind == 5:
      piece = content[at : at + length]
      del content[at : at + length]
      to = random.randrange(len(content) + 1)
      content[to:to] = piece
    elif kind == 6:
      content[at : at + length] = random.randbytes(length)
    else:
      number = struct.pack(
          random.choice(('<I', '<Q')),
          random.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)),
      )
      content[at : at + len(number)] = number
  return bytes(content)


def value(random: Random, tree: Any) -> Any:
  """Changes nodes of a JSON value, which is changed in place."""
  tree = [tree]
  for _ in range(random.choice((1, 1, 1, 2, 3))):
    nodes = list(_nodes(tree))
    parent, key = random.choice(nodes)
    other_parent, other_key = random.choice(nodes)
    kind = random.randrange(8)
    if kind <= 2:
      parent[key] = _odd(random)
    elif kind == 3 and parent is not tree:
      del parent[key]
    elif kind == 4:
      parent[key] = _copy(other_parent[other_key])
    elif kind == 5:
      parent[key] = _other_type(random, parent[key])
    elif kind == 6:
      _add(random, parent, key)
    else:
      parent[key] = _near(random, parent[key])
  return tree[0]


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
  """All places of a value: a container, and a key of it."""
  waiting = [tree]
  while waiting:
    node = waiting.pop()
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
      yield node, key
      if isinstance(node[key], (dict, list)):
        waiting.append(node[key])


def _copy(node: Any) -> Any:
  return json.loads(json.dumps(node))


def _odd(random: Random) -> Any:
  found = random.choice(ODD)
  # What a later change finds within must not be that of all inputs.
  return _copy(found) if isinstance(found, (dict, list)) else found


def _other_type(random: Random, node: Any) -> Any:
  if isinstance(node, dict):
    return random.choice((list(node.values()), list(node), [node], str(node)))
  if isinstance(node, list):
    numbered = {str(i): x for i, x in enumerate(node)}
    return random.choice((numbered, node[:1], node + node, node[::-1], [node]))
  if isinstance(node, str):
    return random.choice(([node], list(node[:50]), {node: node}, len(node)))
  return random.choice((str(node), [node], {'x': node}, bool(node), None))


def _near(random: Random, node: Any) -> Any:
  if isinstance(node, bool) or node is None:
    return not node
  if isinstance(node, (int, float)):
    return random.choice(
        (-node, node + 1, node * 2, node * 10**9, node / 3, float(node), ~0)
    )
  if isinstance(node, str):
    at = random.randrange(len(node) + 1)
    piece = random.choice((*TEXTS[:14], 'a', '.', '*', '(', '|', '\\', '/'))
    return random.choice((node[:at] + piece + node[at:], node[at:], node * 2))
  return random.choice((_copy(node), type(node)()))


def _add(random: Random, parent: Any, key: Any) -> None:
  if isinstance(parent, dict):
    parent[random.choice((*TEXTS, f'{key}_'))[:2000]] = _odd(random)
    if random.random() < 0.5:
      parent[random.choice(TEXTS)[:2000]] = parent.pop(key)
  else:
    parent.insert(random.randrange(len(parent) + 1), _odd(random))


def dumps(random: Random, tree: Any) -> bytes:
  """JSON, and of marked strings the text that they stand for."""
  text = json.dumps(tree, ensure_ascii=False)
  for mark, meant in _RAW.items():
    text = text.replace(f'"{mark}"', meant)
  if random.random() < 0.5:
    text = text.replace('\ufeff', '\\ufeff')
  return text.encode('utf-8', 'surrogatepass')


def as_json(random: Random, content: bytes) -> bytes:
  """Mutates a file of JSON."""
  return dumps(random, value(random, json.loads(content)))


def as_json_lines(random: Random, content: bytes) -> bytes:
  """Mutates a row of JSON Lines, or the order of rows."""
  rows = content.splitlines()
  at = random.randrange(len(rows))
  kind = random.randrange(5)
  if kind == 0:
    del rows[at]
  elif kind == 1:
    rows.insert(at, random.choice((b'', b'null', b'[]', b'{}', b'\xff', b'{')))
  else:
    rows[at] = as_json(random, rows[at])
  return random.choice((b'\n', b'\n', b'\n', b'\r\n', b'\r')).join(rows)


def as_text(random: Random, content: bytes) -> bytes:
  """Mutates lines and words of a text such as gin."""
  lines = content.decode().split('\n')
  for _ in range(random.choice((1, 1, 2, 4))):
    at = random.randrange(len(lines))
    kind = random.randrange(6)
    if kind == 0 and len(lines) > 1:
      del lines[at]
    elif kind == 1:
      lines.insert(at, random.choice(lines))
    elif kind == 2:
      lines.insert(at, random.choice(_LINES))
    elif kind == 3 and lines[at]:
      words = lines[at].split(' ')
      words[random.randrange(len(words))] = random.choice(_WORDS)
      lines[at] = ' '.join(words)
    elif kind == 4:
      cut = random.randrange(len(lines[at]) + 1)
      lines[at] = lines[at][:cut] + random.choice(_WORDS) + lines[at][cut:]
    else:
      cut = random.randrange(len(lines[at]) + 1)
      lines[at] = lines[at][:cut]
  return '\n'.join(lines).encode('utf-8', 'surrogatepass')


_LINES = (
    'import os', 'from os import system', "include '/etc/passwd'", 'import',
    'X = @os.system()', "os.system.command = 'touch x'", 'X = %X', 'A = %B',
    'B = %A', 'X = ' + '[' * 3000, 'X = ' + '(' * 90 + ')' * 90, 'X = 1e999',
    'X = ' + '9' * 5000, 'x/y/z.w = 3', 'jax.nn.relu.x = 1', 'X = 9**9**9**9',
    'from jax import numpy', 'import moe_peft.train', '  x = 3', 'X = "a" * 9',
    'import jax.nn.relu', 'from moe_peft import nothing', '\ufeff', '\x0c',
    'from __gin__ import dynamic_registration', 'X = (1,', ')', "X = '''",
    'RANK = %gin.REQUIRED', 'X = @inject.AdaptedModule', 'X = \ud800',
    'include "gin/methods/molora.gin"', 'x.y = @x.y()', 'gin.macro.value = 3',
)  # fmt: skip
_WORDS = (
    *(str(x) for x in NUMBERS), '%', '@', '()', '=', "'", '"', '{', '}', '[',
    ']', '(', ')', ',', '.', '/', '#', '\\', '\t', 'None', 'True', 'import',
    '\x00', '\u2028', '\u202e', '@x', '%RANK', '@optax.adam()', '-', '*',
    '9' * 5000, "'" + 'x' * 5000 + "'", '1j', '...', 'lambda: 1', 'b"x"',
)  # fmt: skip


def zipped(inner: Mutation) -> Mutation:
  """Mutates the members of a zip file, whose checksums are right again."""

  def mutate(random: Random, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    kind = random.randrange(6)
    if kind == 0:
      members[random.choice(('../x.npy', '/x', 'x', 'é'))] = members.pop(name)
    elif kind == 1:
      members[name] += bytes(50_000_000)
    else:
      members[name] = inner(random, members[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, data in members.items():
        archive.writestr(name, data)
    return stream.getvalue()

  return mutate


def gzipped(inner: Mutation) -> Mutation:
  """Mutates what a gzip file holds; some hold very much of it."""

  def mutate(random: Random, content: bytes) -> bytes:
    plain = inner(random, gzip.decompress(content))
    if random.random() < 0.02:
      piece = random.choice((plain, b'\n', bytes(64))) or b'x'
      plain = piece * (2**28 // len(piece))
    return gzip.compress(plain, 1)

  return mutate


def records(inner: Mutation) -> Mutation:
  """Mutates records of a TFRecord file, whose checksums are right again."""

  def mutate(random: Random, content: bytes) -> bytes:
    found, at = [], 0
    while at < len(content):
      size = struct.unpack('<Q', content[at : at + 8])[0]
      found.append(content[at + 12 : at + 12 + size])
      at += size + 16
    which = random.randrange(len(found))
    found[which] = inner(random, found[which])
    sizes = [len(x) for x in found]
    if random.random() < 0.2:
      sizes[which] = random.choice((0, 2**20, 2**31, 2**40, 2**62, 2**64 - 1))
    return b''.join(
        checked(struct.pack('<Q', size)) + checked(x)
        for size, x in zip(sizes, found, strict=True)
    )

  return mutate


def checked(data: bytes) -> bytes:
  """The data and their masked CRC-32C, as TFRecord files have it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
  crc ^= 0xFFFFFFFF
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  return data + struct.pack('<I', masked)


def seldom_raw(mutation: Mutation, share: float = 0.25) -> Mutation:
  """In some cases mutates bytes instead, and in some of the others too."""

  def mutate(random: Random, content: bytes) -> bytes:
    if random.random() < share:
      return raw(random, content)
    changed = mutation(random, content)
    return raw(random, changed) if random.random() < 0.1 else changed

  return mutate

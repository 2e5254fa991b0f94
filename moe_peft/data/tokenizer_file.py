# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the `tokenizer.json` of a model that somebody else has made.

The package `tokenizers` does what the file says: it lets texts grow as often as
it is told, and panics where a token is not there or an expression takes too
long. So the file is bounded before it is read, and tried on a text after.
"""

from collections.abc import Iterator
import contextlib
import json
import os
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.data import packages
from moe_peft.data import text_files

WHERE = 'VOCABULARY_FILE'
_MAX_BYTES = 2**28  # The largest ones have a tenth of it.
# How much longer a text may become: spaces become marks, and little more.
_MAX_GROWTH = 1000
_MAX_STAGES = 100
# A text to try a tokenizer with. It has letters that no vocabulary has, so that
# the unknown token is needed, and a run of one letter, for which some regular
# expressions need exponential time.
_TEXT = f'Is it so? 12 a\u0301 ab\n\ue000 \U000f0000 {"a" * 60}!'


def read(file: str) -> Any:
  """Returns the `tokenizers.Tokenizer`.

  Args:
    file: Path of a `tokenizer.json`.

  Raises:
    errors.UserError: If the package is missing, or the file cannot be read or
      used, or makes texts much longer.
  """
  tokenizers = packages.import_optional('tokenizers', 'tokenizers')
  path = os.path.expanduser(file)
  with refused(f'{file} is no tokenizer.json that can be read'):
    if os.path.getsize(path) > _MAX_BYTES:
      raise ValueError(f'it has more than {_MAX_BYTES} bytes')
    if text_files.is_lfs_pointer(path):
      raise ValueError('it is a pointer of Git LFS; git lfs pull fetches it')
    with open(path, encoding='utf-8') as stream:
      _check(json.load(stream))
  with tried(f'{file} is no tokenizer.json that can be read'):
    tokenizer = tokenizers.Tokenizer.from_file(path)
    if getattr(tokenizer.model, 'dropout', None):
      tokenizer.model.dropout = None  # A text has the same ids each time.
    tokenizer.decode(tokenizer.encode(_TEXT, add_special_tokens=False).ids)
  return tokenizer


def within_texts(tokenizer: Any) -> Any:
  """The same for what stands within a text: some begin texts with a space.

  It is another tokenizer only for those that do.
  """
  content = json.loads(tokenizer.to_str())
  first = [
      stage for stage in _stages(content.get('pre_tokenizer'))
      if stage.get('prepend_scheme') == 'first'
  ]
  if not first:
    return tokenizer
  for stage in first:
    stage['prepend_scheme'] = 'never'
  within = type(tokenizer).from_str(json.dumps(content))
  within.encode_special_tokens = tokenizer.encode_special_tokens
  return within


@contextlib.contextmanager
def tried(what: str) -> Iterator[None]:
  """As `refused`, in silence: a panic shows where in Rust it is."""
  with refused(what), gin_files.silent_stderr():
    yield


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
  """Turns what the package raises into a UserError; panics are no Exception."""
  try:
    yield
  except (errors.UserError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:
    raise errors.UserError(f'{what}: {error}.', WHERE) from error


def _check(content: Any) -> None:
  """Raises ValueError for stages that make texts many times longer."""
  if not isinstance(content, dict):
    raise ValueError('it holds no object')
  growth = 1
  for name in ('normalizer', 'pre_tokenizer', 'decoder'):
    for number, stage in enumerate(_stages(content.get(name))):
      for key in ('content', 'prepend', 'replacement'):
        if isinstance(stage.get(key), str):
          growth *= max(1, len(stage[key]))
      if growth > _MAX_GROWTH or number > _MAX_STAGES:
        raise ValueError('it makes texts many times longer')


def _stages(stage: Any) -> Iterator[dict[str, Any]]:
  """The steps of a part, those of a sequence one by one."""
  waiting = [stage]
  while waiting:
    stage = waiting.pop()
    if isinstance(stage, dict):
      yield stage
      for value in stage.values():
        waiting += value if isinstance(value, list) else [value]

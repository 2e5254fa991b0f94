# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The special ids of a model: what rows begin and end with.

Several files of a folder name them. What a row begins with is what transformers
5 makes of a text: what the post-processor of `tokenizer.json` adds; without one
what `add_bos_token` of `tokenizer_config.json` says. `bos_token_id` of
`config.json` may be a token that nothing begins with (Qwen2, SmolLM2), so it
counts where no other file can say. Ends are those of `tokenizer_config.json`,
`generation_config.json` and `config.json`: the first of them is trained, and an
answer ends at any.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from moe_peft import errors
from moe_peft.data import tokenizer_file
from moe_peft.data import vocabularies
from moe_peft.hf import base_config
from moe_peft.hf import folders

_TOKENIZER = 'tokenizer.json'
_TOKENIZER_CONFIG = 'tokenizer_config.json'
# A text that no tokenizer takes for a special token.
_PROBE = 'a b'


@dataclasses.dataclass(frozen=True)
class TokenIds:
  """Special ids, as in the files.

  Attributes:
    begin: What every row begins with; None for nothing.
    ends: Ids at which an answer ends. The first ends sequences that are
      trained; empty if no file names one.
    num_ids: Rows of the model's embedding.
  """

  begin: int | None
  ends: tuple[int, ...]
  num_ids: int


def read(
    folder: Path, hf_config: base_config.HfConfig, num_ids: int
) -> TokenIds:
  """Reads the special ids of a model.

  Args:
    folder: The folder with the files of its tokenizer.
    hf_config: Contents of `config.json`.
    num_ids: Rows of the model's embedding.

  Raises:
    errors.UserError: If a file is damaged, or names an id that is none.
  """
  files = {
      name: folders.read_json(folder / name)
      if (folder / name).is_file() else {}
      for name in (_TOKENIZER_CONFIG, folders.GENERATION_CONFIG)
  }
  tokenizer = None
  if (folder / _TOKENIZER).is_file():
    tokenizer = vocabularies.read_tokenizer(str(folder / _TOKENIZER))
  named = _named(tokenizer, files[_TOKENIZER_CONFIG])
  file = folders.GENERATION_CONFIG
  generation = _ids(files[file], 'eos_token_id', num_ids, file)
  ends = generation or _ids(hf_config, 'eos_token_id', num_ids)
  end = named('eos_token')
  if end is not None and end < num_ids:
    ends = (end, *ends)
  begins = _ids(hf_config, 'bos_token_id', num_ids)
  if len(begins) > 1:
    raise base_config.unsupported('bos_token_id', list(begins), 'one id there')
  begin = next(iter(begins), None)
  if tokenizer is not None and tokenizer.post_processor is not None:
    begin = _added_before(tokenizer)
  elif 'add_bos_token' in files[_TOKENIZER_CONFIG] or (
      tokenizer is not None and files[_TOKENIZER_CONFIG]
  ):
    adds = files[_TOKENIZER_CONFIG].get('add_bos_token')
    if adds not in (True, False, None):
      raise _no_such('add_bos_token', adds)
    begin = named('bos_token', begin) if adds else None
  if begin is not None and begin >= num_ids:
    raise base_config.unsupported(
        'bos_token_id', begin, f'an integer from 0 to {num_ids - 1} there'
    )
  return TokenIds(begin, tuple(dict.fromkeys(ends)), num_ids)


def _ids(
    config: Mapping[str, Any],
    name: str,
    num_ids: int,
    file: str = base_config.FILE,
) -> tuple[int, ...]:
  """The id, or the ids, of a field; none where it is absent or null."""
  value = config.get(name)
  if value is None:
    return ()
  if value == []:
    raise base_config.unsupported(name, value, 'an id there', file)
  values = value if isinstance(value, list) else [value]
  return tuple(
      base_config.integer(name, x, 0, num_ids - 1, file) for x in values
  )


def _named(tokenizer: Any, config: Mapping[str, Any]) -> Any:
  """A function from `eos_token` or so to the id of the token named there."""

  def token_id(field: str, default: int | None = None) -> int | None:
    token = config.get(field)
    token = token.get('content', 0) if isinstance(token, dict) else token
    if not isinstance(token, str | None):
      raise _no_such(field, config[field])
    if tokenizer is None or token is None:
      return default
    found = tokenizer.token_to_id(token)
    return default if found is None else found

  return token_id


def _no_such(field: str, value: Any) -> errors.UserError:
  return errors.UserError(
      f'{_TOKENIZER_CONFIG} has {field} {value!r:.60}, which says nothing.',
      where=field, remedy='Fetch the folder again.',
  )


def _added_before(tokenizer: Any) -> int | None:
  """What the post-processor puts before a text; None for nothing.

  Raises:
    errors.UserError: If it puts several tokens there, or fails.
  """
  with tokenizer_file.tried(f'The post-processor of {_TOKENIZER} fails'):
    text = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    row = tokenizer.encode(_PROBE, add_special_tokens=True).ids
  before = next(
      (row[:i] for i in range(len(row)) if row[i : i + len(text)] == text), []
  )
  if len(before) > 1:
    raise errors.UserError(
        f'The post-processor begins rows with {len(before)} tokens, '
        f'{before}; they can begin with one.', where=_TOKENIZER,
    )
  return before[0] if before else None

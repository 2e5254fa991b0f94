# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's files of an exported folder."""

from collections.abc import Mapping
from pathlib import Path
import shutil
from typing import Any

from moe_peft.hf import folders
from moe_peft.hf import trained as trained_lib

_PIECES = 'spiece.model'
_CONFIG = 'tokenizer_config.json'
_IDS = (
    'bos_token_id', 'decoder_start_token_id', 'eos_token_id', 'pad_token_id'
)


def write(folder: Path, trained: trained_lib.Trained) -> None:
  """Copies the base's files, or makes them from the vocabulary.

  Transformers 5 would write no `spiece.model`, which SeqIO needs; so the files
  are ours. Of an unknown vocabulary nothing is written.
  """
  if trained.base_folder is not None:
    names = folders.TOKENIZER_FILES
    if folders.copy_files(trained.base_folder, folder, names):
      if (folder / _PIECES).is_file() and not (folder / _CONFIG).is_file():
        folders.write_json(folder / _CONFIG, _sentencepiece_config(folder))
      return
  vocabulary = trained.vocabulary
  kind = type(vocabulary).__name__
  if kind == 'ByteVocabulary':
    folders.write_json(
        folder / _CONFIG,
        {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': vocabulary.extra_ids},
    )
  elif kind == 'TokenizerVocabulary':
    file = Path(vocabulary.tokenizer_file).expanduser()
    if file.is_file():
      shutil.copyfile(file, folder / 'tokenizer.json')
      folders.write_json(
          folder / _CONFIG, {'tokenizer_class': 'PreTrainedTokenizerFast'}
      )
  elif kind == 'SentencePieceVocabulary':
    pieces = Path(vocabulary.sentencepiece_model_file)
    if pieces.is_file():
      shutil.copyfile(pieces, folder / _PIECES)
      folders.write_json(folder / _CONFIG, _sentencepiece_config(folder))


def write_generation_config(
    folder: Path, trained: trained_lib.Trained, config: Mapping[str, Any]
) -> None:
  """Copies the base's file, or writes the ids of its `config.json`."""
  name, base = folders.GENERATION_CONFIG, trained.base_folder
  if base is None or not folders.copy_files(base, folder, (name,)):
    found = {k: v for k, v in config.items() if k in _IDS and v is not None}
    folders.write_json(folder / name, found)


def _sentencepiece_config(folder: Path) -> dict[str, Any]:
  # Google's files with 100 extra ids already hold the sentinels.
  own = b'<extra_id_0>' in (folder / _PIECES).read_bytes()
  return {
      'tokenizer_class': 'T5Tokenizer',
      'extra_ids': 0 if own else 100,
      'model_max_length': 512,
  }

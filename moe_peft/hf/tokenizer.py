# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's files of an exported folder."""

from pathlib import Path

from moe_peft.hf import folders
from moe_peft.hf import trained as trained_lib

_PIECES = 'spiece.model'


def write(folder: Path, trained: trained_lib.Trained) -> list[str]:
  """Copies the base's files, or makes them from the vocabulary.

  Transformers 5 would write no `spiece.model`, which SeqIO needs; so the files
  are ours.

  Args:
    folder: Where to.
    trained: The model.

  Returns:
    The files' names; empty if nothing is known of the tokenizer.
  """
  if trained.base_folder is not None:
    found = folders.copy_files(
        trained.base_folder, folder, folders.TOKENIZER_FILES
    )
    if found:
      if 'tokenizer_config.json' not in found and _PIECES in found:
        _write_sentencepiece_config(folder)
      return found
  kind = type(trained.vocabulary).__name__
  if kind == 'ByteVocabulary':
    folders.write_json(
        folder / 'tokenizer_config.json',
        {
            'tokenizer_class': 'ByT5Tokenizer',
            'extra_ids': trained.vocabulary.extra_ids,
        },
    )
    return ['tokenizer_config.json']
  if kind == 'SentencePieceVocabulary':
    pieces = Path(trained.vocabulary.sentencepiece_model_file)
    if pieces.is_file():
      (folder / _PIECES).write_bytes(pieces.read_bytes())
      _write_sentencepiece_config(folder)
      return [_PIECES, 'tokenizer_config.json']
  return []


def _write_sentencepiece_config(folder: Path) -> None:
  # Google's files with 100 extra ids already hold the sentinels.
  own = b'<extra_id_0>' in (folder / _PIECES).read_bytes()
  folders.write_json(
      folder / 'tokenizer_config.json',
      {
          'tokenizer_class': 'T5Tokenizer',
          'extra_ids': 0 if own else 100,
          'model_max_length': 512,
      },
  )

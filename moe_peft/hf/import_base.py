# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folder to a base that both engines restore."""

import json
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Tuple

import numpy as np

from moe_peft import errors
from moe_peft import trainable
from moe_peft.hf import architecture
from moe_peft.hf import folders
from moe_peft.hf import import_experts
from moe_peft.hf import names
from moe_peft.hf import orbax_format
from moe_peft.models import t5

FORMATS = ('orbax', 'safetensors')
# What an import keeps of its source, for the exports to come.
SOURCE_FILE = 'source.json'
HF_CONFIG_FILE = 'hf_config.json'

# Reads one parameter.
Read = Callable[[], np.ndarray]


def import_base(
    source: Path,
    out: Path,
    layout: str = 't5',
    file_format: str = 'orbax',
    hub_id: str = '',
    experts: Sequence[Path] = (),
) -> t5.T5Config:
  """Imports a T5, T5 1.1, flan-T5, mT5 or ByT5.

  Writes the parameters, `model.gin` (the model for gin), the tokenizer's
  files and the original `config.json` as `hf_config.json`.

  Args:
    source: Folder with `config.json` and the weights.
    out: Folder to write.
    layout: One of `names.LAYOUTS`.
    file_format: 'orbax' or 'safetensors'.
    hub_id: Name of the model on the Hub, for the cards of later exports.
    experts: PEFT LoRA folders that become the experts of a MoLoRA; adds
      `experts.gin`, the method for gin.

  Returns:
    The configuration of the model.

  Raises:
    errors.UserError: If the folder is not such a model, is damaged, or has
      missing, unused or mis-shaped tensors.
  """
  if not (source / 'config.json').is_file():
    raise errors.UserError(
        f'{source} is no model folder: it has no config.json.'
    )
  hf_config = folders.read_json(source / 'config.json')
  config = architecture.from_hf(hf_config, layout)
  t5.check_config(config)
  tensors = folders.Tensors(source)
  readers, config = _plan(tensors, config, layout)
  mixture = import_experts.read(experts, config) if experts else None
  for path, array in (mixture.params if mixture else {}).items():
    readers[path] = (array.shape, lambda array=array: array)
  with folders.written_whole(out) as folder:
    _write_params(folder, readers, tensors.dtype, file_format)
    _write_rest(source, folder, out, config, hf_config, hub_id, layout)
    if mixture:
      (folder / 'experts.gin').write_text(mixture.to_gin(), 'utf-8')
  return config


def _plan(
    tensors: folders.Tensors,
    config: t5.T5Config,
    layout: str,
) -> Tuple[dict[str, Tuple[Tuple[int, ...], Read]], t5.T5Config]:
  """Returns shape and reader by T5X path, and the final configuration."""
  entries = names.entries(config, layout)
  expected = {
      source: entry.hf_shape for entry in entries for source in entry.sources
  }
  width = (config.vocab_size, config.emb_dim)
  aliases = [name for name in names.HF_EMBEDDINGS if name in tensors.shapes]
  expected.update({name: width for name in aliases or names.HF_EMBEDDINGS[:1]})
  if names.HF_LOGITS in tensors.shapes:
    expected[names.HF_LOGITS] = width
  _check(tensors.shapes, expected)

  embedding = tensors[aliases[0]]
  for name in aliases[1:]:
    if not np.array_equal(tensors[name], embedding):
      raise errors.UserError(
          f'{name} differs from {aliases[0]}; T5 shares one embedding.'
      )
  readers = {names.EMBEDDING: (width, lambda: tensors[aliases[0]])}
  logits, config = _plan_logits(tensors, config, embedding, aliases[0])
  if logits is not None:
    readers[names.LOGITS] = (width[::-1], logits)
  for entry in entries:
    readers[entry.path] = (
        entry.full_shape(),
        lambda entry=entry: entry.convert(
            [tensors[source] for source in entry.sources]
        ),
    )
  return readers, config


def _plan_logits(tensors, config, embedding, alias):
  """Returns the reader of `logits_dense`, if there is one, and the config.

  Four cases: tied and scaled (T5 1.0) has none; a head of its own is taken
  over; without a head of its own but unscaled it is the embedding's; scaled
  with a head of its own, which transformers allows, gets the scale.
  """
  own = names.HF_LOGITS in tensors.shapes
  if not config.logits_via_embedding:
    name = names.HF_LOGITS if own else alias
    return lambda: tensors[name].T, config
  if not own or np.array_equal(tensors[names.HF_LOGITS], embedding):
    return None, config

  def scaled():
    kernel = tensors[names.HF_LOGITS].T.astype(np.float32)
    return kernel * np.float32(config.emb_dim**-0.5)

  return scaled, config.replace(logits_via_embedding=False)


def _check(
    given: Mapping[str, Tuple[int, ...]],
    expected: Mapping[str, Tuple[int, ...]],
) -> None:
  """Raises errors.UserError that lists what does not fit."""
  problems = {
      'missing': sorted(set(expected) - set(given)),
      'unused': sorted(set(given) - set(expected) - set(names.HF_IGNORED)),
      'of another shape': [
          f'{name} is {given[name]}, not {expected[name]}'
          for name in sorted(set(expected) & set(given))
          if given[name] != tuple(expected[name])
      ],
  }
  lines = []
  for title, found in problems.items():
    if found:
      more = f' and {len(found) - 20} more' if len(found) > 20 else ''
      lines.append(f'{title}: {", ".join(found[:20])}{more}')
  if lines:
    raise errors.UserError(
        'The tensors do not fit config.json:\n  ' + '\n  '.join(lines)
    )


def _write_params(folder: Path, readers, dtype, file_format: str) -> None:
  """Writes tensor by tensor: no more than one is in memory."""
  # Adapters stay float32, as everywhere.
  params = {
      path: orbax_format.Parameter(
          shape, np.dtype(np.float32) if trainable.is_adapter(path) else dtype,
          read,
      )
      for path, (shape, read) in readers.items()
  }
  if file_format == 'orbax':
    orbax_format.write(folder, params)
    return
  folders.write_tensors(
      folder / folders.WEIGHTS,
      {path: (x.shape, x.dtype) for path, x in params.items()},
      lambda path: params[path].read(),
  )


def _write_rest(source, folder, out, config, hf_config, hub_id, layout):
  folders.copy_files(source, folder, folders.TOKENIZER_FILES)
  folders.write_json(folder / HF_CONFIG_FILE, hf_config)
  folders.write_json(
      folder / SOURCE_FILE,
      {'base_model': hub_id or hf_config.get('_name_or_path', ''),
       'layout': layout},
  )
  pieces = folder / 'spiece.model'
  vocabulary = str(out.expanduser().absolute() / pieces.name)
  (folder / 'model.gin').write_text(
      architecture.to_gin(config, vocabulary if pieces.is_file() else ''),
      encoding='utf-8',
  )


def read_source(folder: Path) -> dict[str, Any]:
  """Returns what `import_base` recorded of a base; empty for other bases."""
  file = folder / SOURCE_FILE
  return json.loads(file.read_text('utf-8')) if file.is_file() else {}

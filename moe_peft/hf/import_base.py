# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folder to a base that both engines restore."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.hf import architecture
from moe_peft.hf import folders
from moe_peft.hf import gguf_file
from moe_peft.hf import import_experts
from moe_peft.hf import llama_base
from moe_peft.hf import orbax_format
from moe_peft.hf import t5_base
from moe_peft.models import llama
from moe_peft.models import t5

FORMATS = ('orbax', 'safetensors')
# What an import keeps of its source, for the exports to come.
SOURCE_FILE = 'source.json'
HF_CONFIG_FILE = 'hf_config.json'
# `model_type` of what can be imported.
KINDS = ('t5', 'mt5', 'llama')

Config = t5.T5Config | llama.LlamaConfig


def import_base(
    source: Path,
    out: Path,
    layout: str = 't5',
    file_format: str = 'orbax',
    hub_id: str = '',
    experts: Sequence[Path] = (),
) -> Config:
  """Imports a T5, T5 1.1, flan-T5, mT5, ByT5 or LLaMA.

  Writes the parameters, `model.gin` (the model for gin), the tokenizer's
  files and the original `config.json` as `hf_config.json`.

  Args:
    source: Folder with `config.json` and the weights, or a GGUF file of a
      LLaMA.
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
  tensors, hf_config = _open(source)
  if hf_config.get('model_type') == 'llama':
    if experts:
      raise errors.UserError(
          '--experts makes the experts of a T5; a LLaMA cannot take them yet.'
      )
    config = llama_base.from_hf(hf_config, layout)
    readers, config = llama_base.plan(tensors, config, layout)
  else:
    config = architecture.from_hf(hf_config, layout)
    readers, config = t5_base.plan(tensors, config, layout)
  mixture = import_experts.read(experts, config) if experts else None
  for path, array in (mixture.params if mixture else {}).items():
    readers[path] = (array.shape, lambda array=array: array)
  with folders.written_whole(out) as folder:
    _write_params(folder, readers, tensors.dtype, file_format)
    _write_rest(source, folder, config, hf_config, hub_id, layout)
    text = _model_gin(tensors, folder, out, config, hf_config)
    (folder / 'model.gin').write_text(text, encoding='utf-8')
    if mixture:
      (folder / 'experts.gin').write_text(mixture.to_gin(), 'utf-8')
  return config


def _open(source: Path) -> tuple[Any, dict[str, Any]]:
  """Returns the tensors and the contents of `config.json`."""
  if source.suffix == '.gguf' and source.is_file():
    file = gguf_file.GgufFile(source)
    return file, file.hf_config
  if not (source / 'config.json').is_file():
    raise errors.UserError(
        f'{source} is no model folder: it has no config.json. (A GGUF file of '
        'a LLaMA is named itself.)'
    )
  hf_config = folders.read_json(source / 'config.json')
  kind = hf_config.get('model_type')
  if kind not in KINDS:
    raise errors.UserError(
        f'config.json has model_type {kind!r}; supported are t5 (T5 1.0 and '
        '1.1, flan-T5, ByT5), mt5 and llama.'
    )
  return folders.Tensors(source), hf_config


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


def _write_rest(source, folder, config, hf_config, hub_id, layout):
  if source.is_dir():
    folders.copy_files(source, folder, folders.TOKENIZER_FILES)
  folders.write_json(folder / HF_CONFIG_FILE, hf_config)
  folders.write_json(
      folder / SOURCE_FILE,
      {'base_model': hub_id or hf_config.get('_name_or_path', ''),
       'layout': layout},
  )


def _model_gin(tensors, folder, out, config, hf_config) -> str:
  """Returns model.gin, with the tokenizer's file by its final path."""
  of_llama = isinstance(config, llama.LlamaConfig)
  file = folder / ('tokenizer.json' if of_llama else 'spiece.model')
  if isinstance(tensors, gguf_file.GgufFile):
    tensors.write_tokenizer(folder)
  path = str(out.expanduser().absolute() / file.name) if file.is_file() else ''
  if of_llama:
    return llama_base.to_gin(config, path, hf_config)
  return architecture.to_gin(config, path)


def read_source(folder: Path) -> dict[str, Any]:
  """Returns what `import_base` recorded of a base; empty for other bases."""
  file = folder / SOURCE_FILE
  return json.loads(file.read_text('utf-8')) if file.is_file() else {}

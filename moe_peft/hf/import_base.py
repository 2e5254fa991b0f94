# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folder to a base that both engines restore."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft.hf import base_config
from moe_peft.hf import decoder_base
from moe_peft.hf import families
from moe_peft.hf import folders
from moe_peft.hf import gguf_file
from moe_peft.hf import image_models
from moe_peft.hf import import_experts
from moe_peft.hf import lazy_arrays
from moe_peft.hf import t5_base
from moe_peft.hf import token_ids
from moe_peft.models import decoder_config
from moe_peft.models import t5

_logger = logging.getLogger(__name__)

FORMATS = ('orbax', 'safetensors')
# Files in which an import keeps what exports need to know of its source.
SOURCE_FILE = 'source.json'
HF_CONFIG_FILE = 'hf_config.json'
# The module that reads a model, by the model's `model_type`.
_NETWORKS = {
    **dict.fromkeys(('t5', 'mt5', 'umt5'), t5_base),
    **dict.fromkeys(families.FAMILIES, decoder_base),
}


def import_base(
    source: Path,
    out: Path,
    layout: str = 't5',
    file_format: str = 'orbax',
    hub_id: str = '',
    experts: Sequence[Path] = (),
) -> t5.T5Config | decoder_config.DecoderConfig:
  """Imports a T5, T5 1.1, flan-T5, mT5, ByT5, or a decoder of `families`.

  Writes the parameters, `model.gin` (the model for gin), the tokenizer's
  files and the original `config.json` as `hf_config.json`.

  Args:
    source: Folder with `config.json` and the weights, or a GGUF file of a
      decoder.
    out: Folder to write.
    layout: One of `entries.LAYOUTS`.
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
  network = _NETWORKS[hf_config['model_type']]
  config = network.from_hf(hf_config, layout)
  params, config = network.plan(tensors, config, layout, hf_config)
  kind = hf_config['model_type']
  mixture = import_experts.read(experts, config, kind) if experts else None
  params = {k: _finite(source, k, x) for k, x in params.items()}
  if mixture:  # Adapters stay float32, whatever the type of the base.
    params |= {k: lazy_arrays.of(v) for k, v in mixture.params.items()}
  with atomic.new_folder(out, '--out') as folder:
    # Whatever may be refused is read first, and the weights, which take
    # longest, last.
    read = source  # What is wrong is named where the user has it.
    if isinstance(tensors, gguf_file.GgufFile):
      tensors.write_tokenizer(folder)
      read = folder
    else:
      names = (*folders.TOKENIZER_FILES, folders.GENERATION_CONFIG)
      folders.copy_files(source, folder, names)
    found = [x for x in network.TOKENIZER_FILES if (folder / x).is_file()]
    # The gin file names the tokenizer's file by the path that it will have.
    path = str(out.expanduser().absolute() / found[0]) if found else ''
    ids = token_ids.read(read, hf_config, config.vocab_size)
    text = network.to_gin(config, path, ids)
    (folder / 'model.gin').write_text(text, 'utf-8')
    if mixture:
      (folder / 'experts.gin').write_text(mixture.to_gin(), 'utf-8')
    folders.write_json(folder / HF_CONFIG_FILE, hf_config)
    name = hub_id or hf_config.get('_name_or_path')
    name = name if isinstance(name, str) else ''
    # In a model that reads images the decoder's modules have other names: under
    # its name, adapters would be put on none of them.
    part = isinstance(tensors, folders.Renamed)
    source_json = {'base_model': '' if part else name, 'layout': layout}
    if part:
      source_json['part_of'] = name
    folders.write_json(folder / SOURCE_FILE, source_json)
    if file_format == 'orbax':
      lazy_arrays.write_orbax(folder, params)
    else:
      lazy_arrays.write_safetensors(folder / folders.WEIGHTS, params)
  return config


def _finite(
    source: Path, name: str, array: lazy_arrays.LazyArray
) -> lazy_arrays.LazyArray:
  """The array, which refuses to be read if it has what no training mends."""

  def read():
    value = array.read()
    if not np.isfinite(value).all():
      raise errors.UserError(
          f'{source} holds NaN or infinity: {name} of the base would have it.',
          where=source, remedy='Fetch the folder again, or take another model.',
      )
    return value

  return dataclasses.replace(array, read=read)


def read_params(folder: Path, layout: str) -> dict[str, np.ndarray]:
  """Flat float32 parameters of a model folder, as a base would have them.

  Args:
    folder: As the source of `import_base`.
    layout: One of `entries.LAYOUTS`.

  Raises:
    errors.UserError: As of `import_base`.
  """
  tensors, hf_config = _open(folder)
  network = _NETWORKS[hf_config['model_type']]
  config = network.from_hf(hf_config, layout)
  params, _ = network.plan(tensors, config, layout, hf_config)
  return {k: x.load().astype(np.float32) for k, x in params.items()}


def config_of(hf_config: Mapping[str, Any], layout: str) -> Any:
  """The configuration of an imported model.

  Args:
    hf_config: Its `config.json`, as `read_hf_config` returns it.
    layout: Layout of its parameters, as `read_source` has it.

  Raises:
    errors.UserError: For a `config.json` of another kind of model.
  """
  kind = hf_config.get('model_type')
  if not isinstance(kind, str) or kind not in _NETWORKS:
    raise base_config.unsupported(
        'model_type', kind, f'one of {", ".join(_NETWORKS)}'
    )
  return _NETWORKS[kind].from_hf(hf_config, layout)


def _open(source: Path) -> tuple[Any, dict[str, Any]]:
  """Returns the tensors and the contents of `config.json`."""
  if source.suffix == '.gguf' and source.is_file():
    file = gguf_file.GgufFile(source)
    return file, file.hf_config
  file = source / base_config.FILE
  if not file.is_file():
    raise errors.UserError(
        f'{source} is no model folder: it has no config.json.', where=source,
        remedy='Give a folder with config.json, or a GGUF file of a decoder.',
    )
  read = folders.read_json(file)
  hf_config = image_models.text_config(_unquantized(file, read))
  kind = hf_config.get('model_type')
  if not isinstance(kind, str) or kind not in _NETWORKS:
    raise base_config.unsupported(
        'model_type', kind,
        f'one of {", ".join(_NETWORKS)} there (T5 1.1, flan-T5 and ByT5 are '
        't5). Mixtures of experts and other blocks are not among them',
    )
  return _text_tensors(folders.Tensors(source)), hf_config


def _unquantized(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """The configuration of the tensors as they are.

  Bitsandbytes quantizes what it loads, so a folder of such a model may hold the
  floats. What other methods say of floats is that something else is computed.
  """
  name = 'quantization_config'
  rest = {k: v for k, v in config.items() if k != name}
  quantization = config.get(name)
  if quantization is None:
    return rest
  kind = quantization
  if isinstance(quantization, dict):
    kind = quantization.get('quant_method')
    if True in map(quantization.get, ('load_in_4bit', 'load_in_8bit')):
      kind = 'bitsandbytes'  # As transformers has it: old files say no more.
  if kind != 'bitsandbytes':
    raise base_config.unsupported(
        name, kind, 'none, such as the float32 or bfloat16 files of the model'
    )
  _logger.warning(
      '%s has %s (%s): the tensors of the folder are read as they are.',
      file, name, kind,
  )
  return rest


def _text_tensors(tensors: folders.Tensors) -> folders.Tensors:
  """Those of the decoder, of a model that reads images too."""
  names = {image_models.text_name(name): name for name in tensors.shapes}
  if None not in names and all(k == v for k, v in names.items()):
    return tensors
  names.pop(None, None)
  return folders.Renamed(tensors, names)


def read_source(folder: Path) -> dict[str, Any]:
  """Returns what `import_base` recorded of a base; empty for other bases.

  Raises:
    errors.UserError: If the record is damaged.
  """
  file = folder / SOURCE_FILE
  source = folders.read_json(file) if file.is_file() else {}
  if not isinstance(source.get('base_model', ''), str):
    raise errors.UserError(
        f'base_model of {file} is no text.', where=file,
        remedy='Import the base again.',
    )
  return source


def read_hf_config(folder: Path) -> dict[str, Any]:
  """Returns the `config.json` of an imported base; empty for other bases."""
  file = folder / HF_CONFIG_FILE
  return folders.read_json(file) if file.is_file() else {}

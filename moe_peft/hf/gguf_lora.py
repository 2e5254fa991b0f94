# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One LoRA as a GGUF file, for llama.cpp's `--lora`."""

from pathlib import Path

import numpy as np

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import gguf_names
from moe_peft.hf import peft_format
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

FILE = 'adapter.gguf'
# llama.cpp's names of families, by `model_type`, where they are others.
_ARCHITECTURES = {
    'mistral': 'llama', 'gemma3_text': 'gemma3', 'olmo3': 'olmo2', 'mt5': 't5',
}


def write(
    folder: Path, trained: trained_lib.Trained, sites: peft_format.Sites
) -> None:
  """Writes `adapter.gguf`.

  Args:
    folder: Existing folder.
    trained: The model.
    sites: Its adapters.

  Raises:
    errors.UserError: If they are no LoRA, more than adapters was trained, or
      llama.cpp has no such family.
  """
  gguf = folders.import_extra('gguf', '--format gguf writes with it')
  if sites_lib.native(sites) != 'LORA' or trained.changed:
    raise errors.UserError(
        f'{sites_lib.methods(sites)} is not one LoRA, and llama.cpp adds '
        'nothing else to a model.', where='--format gguf',
        remedy='Add --collapse FILE.jsonl for an ordinary LoRA with a measured '
        'loss, or convert what --format merged writes.',
    )
  kind = trained.kind
  architecture = _ARCHITECTURES.get(kind, kind)
  numbers = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
  if architecture not in numbers:
    raise errors.UserError(
        f'The package gguf does not know {kind}.', where='--format gguf',
        remedy='Use --format merged.',
    )
  depth = max(_depth(layer.module) for layer in trained.layers.values()) + 1
  names = gguf.get_tensor_name_map(numbers[architecture], depth)
  pairs = peft_format.lora_pairs(sites)
  rank = max(len(down) for down, _, _ in pairs.values())
  writer = gguf.GGUFWriter(folder / FILE, architecture)
  writer.add_string('general.type', 'adapter')
  writer.add_string('adapter.type', 'lora')
  writer.add_float32('adapter.lora.alpha', float(rank))
  for module, (down, up, scale) in pairs.items():
    name = names.get_name(f'{module}.weight', ('.weight',))
    if architecture in gguf_names.NEIGHBORS:
      up = _interleaved(module, up, trained.config)
    # llama.cpp divides alpha by the rank of each tensor.
    up = up * np.float32(scale * len(down) / rank)
    for letter, array in (('a', down), ('b', up)):
      array = np.ascontiguousarray(array, np.float32)
      writer.add_tensor(f'{name}.lora_{letter}', array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _depth(module: str) -> int:
  return max((int(x) for x in module.split('.') if x.isdigit()), default=0)


def _interleaved(module: str, up: np.ndarray, config) -> np.ndarray:
  """Rows of a head in llama.cpp's order: 0, half, 1, half + 1, ..."""
  leaf = module.rpartition('.')[2]
  heads = {'q_proj': config.num_heads, 'k_proj': config.num_kv_heads}.get(leaf)
  if heads is None:
    return up
  halves = up.reshape(heads, 2, -1, up.shape[1])
  return halves.swapaxes(1, 2).reshape(up.shape)

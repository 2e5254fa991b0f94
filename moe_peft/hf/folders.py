# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders: files, tensors that are read one at a time."""

from collections.abc import Collection, Iterable, Mapping
import json
import os
from pathlib import Path
import shutil
from typing import Any

import ml_dtypes
import numpy as np

from moe_peft import errors
from moe_peft.runs import json_file
from moe_peft.training import tensor_files

WEIGHTS = 'model.safetensors'
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER_WEIGHTS = 'adapter_model.safetensors'
GENERATION_CONFIG = 'generation_config.json'
TOKENIZER_FILES = (
    'spiece.model',
    'tokenizer.model',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'chat_template.jinja',
)
# Indexes of the largest models have a tenth of this size.
_MAX_JSON_BYTES = 2**26
_EXTRAS = {'torch': 'hf', 'transformers': 'hf', 'peft': 'hf', 'gguf': 'gguf'}


def read_json(file: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    errors.UserError: If there is none, or a very large one.
  """
  try:
    if file.stat().st_size > _MAX_JSON_BYTES:
      raise ValueError(f'it is larger than {_MAX_JSON_BYTES} bytes.')
    content = json_file.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    said = getattr(error, 'strerror', None) or error
    raise errors.UserError(
        f'{file} cannot be read: {str(said).rstrip(".")}.', where=file,
        remedy='Fetch or write the folder again.',
    ) from error
  if not isinstance(content, dict):
    raise errors.UserError(f'{file} does not hold a JSON object.', where=file)
  return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON object."""
  text = json.dumps(content, indent=2, ensure_ascii=False)
  file.write_text(text + '\n', encoding='utf-8')


def copy_files(source: Path, target: Path, names: Iterable[str]) -> list[str]:
  """Copies those of the files that exist; returns their names."""
  found = [name for name in names if (source / name).is_file()]
  for name in found:
    shutil.copyfile(source / name, target / name)
  return found


class Tensors:
  """The tensors of a folder, read when asked for.

  Attributes:
    shapes: Shape of every tensor by name.
    dtype: bfloat16 if all tensors are, else float32.
    whole_norms: False: families whose norms add 1 to their weights store the
      weights.
  """

  whole_norms = False

  def __init__(self, folder: Path, stem: str = 'model'):
    """Opens `{stem}.safetensors` or its shards.

    Raises:
      errors.UserError: If there are none, or they are damaged.
    """
    single = folder / f'{stem}.safetensors'
    index = folder / f'{stem}.safetensors.index.json'
    if single.is_file():
      self._found = tensor_files.TensorFiles([single])
    elif index.is_file():
      self._found = _sharded(index)
    else:
      raise _no_tensors(folder, stem)
    self.shapes = self._found.shapes
    dtypes = set(self._found.dtypes.values())
    unknown = dtypes - {'F32', 'F16', 'BF16'}
    if unknown:
      raise errors.UserError(
          f'{folder} holds tensors of type {", ".join(sorted(unknown))} '
          f'({next(k for k, x in self._found.dtypes.items() if x in unknown)}'
          '); weights in F32, F16 or BF16 are imported, and none that are '
          'quantized.', where=folder,
          remedy='Use the float32 or bfloat16 files of the model.',
      )
    narrow = dtypes == {'BF16'}
    self.dtype = np.dtype(ml_dtypes.bfloat16 if narrow else np.float32)

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads a tensor, as `dtype`: T5 overflows in float16."""
    return self._found[name].astype(self.dtype, copy=False)


class Renamed:
  """Some tensors of a folder under other names, like `Tensors`."""

  whole_norms = False

  def __init__(self, tensors: Tensors, names: Mapping[str, str]):
    """`names` has the name of each tensor in the folder, by its own."""
    self._tensors, self._names = tensors, names
    self.dtype = tensors.dtype
    self.shapes = {k: tensors.shapes[v] for k, v in names.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    return self._tensors[self._names[name]]


def _sharded(index: Path) -> tensor_files.TensorFiles:
  """Opens the shards of an index, all of which lie beside it.

  Names that no shard holds are passed over: converters leave a tensor out that
  shares its memory with another, but not of the index (flan-T5 XL, issue 9028
  of llama.cpp). What a model lacks then, `check_shapes` says.

  Raises:
    errors.UserError: A shard is damaged, lies elsewhere, or holds what another
      one should by the index.
  """
  weights = read_json(index).get('weight_map')
  named = weights if isinstance(weights, dict) else {'': None}
  if not all(
      isinstance(x, str) and Path(x).name == x and x not in ('', '..')
      and len(x) < 256 for x in named.values()
  ):
    raise errors.UserError(
        f'weight_map of {index} must give each tensor the name of a file '
        'beside it.', where=index, remedy='Fetch the folder again.',
    )
  shards = [index.parent / name for name in sorted(set(named.values()))]
  if missing := [x.name for x in shards if not os.path.isfile(x)]:
    raise errors.UserError(
        f'{missing[0]} of {index} is not there.', where=index,
        remedy='Fetch the folder again.',
    )
  found = tensor_files.TensorFiles(shards)
  for name, file in named.items():
    holds = found.files.get(name)
    if holds not in (None, index.parent / file):
      raise errors.UserError(
          f'{holds.name} holds {name}, and not {file}, as {index} says.',
          where=index, remedy='Fetch the folder again.',
      )
  return found


def _no_tensors(folder: Path, stem: str) -> errors.UserError:
  """The error of a folder without safetensors."""
  base = {'model': 'pytorch_model'}.get(stem, stem)
  pickled = sorted(folder.glob(f'{base}*.bin'))
  if not pickled:
    return errors.UserError(
        f'{folder} holds no {stem}.safetensors and no shards of one.',
        where=folder, remedy='Give the folder of a model as it is on the Hub.',
    )
  convert = (
      'with transformers: AutoModelForCausalLM (of a T5 AutoModelForSeq2SeqLM)'
      f'.from_pretrained({str(folder)!r}).save_pretrained(...)'
  )
  if stem != 'model':
    convert = (
        'with safetensors.torch: save_file(torch.load('
        f'{str(pickled[0])!r}, weights_only=True), {stem + ".safetensors"!r})'
    )
  return errors.UserError(
      f'{folder} holds its tensors in {pickled[0].name}, a pickle, which can '
      'run code when it is read.', where=folder,
      remedy=f'Convert it where you trust it, {convert}',
  )


def check_shapes(
    tensors: Tensors,
    expected: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> None:
  """Raises errors.UserError if tensors do not fit what config.json describes.

  Args:
    tensors: The tensors of a folder.
    expected: Shapes by name.
    ignored: Names that may be there.
  """
  problems = tensor_files.misfits(
      tensors.shapes, expected, lambda name: name in ignored
  )
  if problems:
    raise errors.UserError(
        f'The tensors do not fit config.json ({problems}).',
        where='config.json', remedy='Fetch the folder again.',
    )


def import_extra(module: str, why: str) -> Any:
  """Imports torch, transformers, peft or gguf.

  Args:
    module: Its name.
    why: What needs it, the beginning of a sentence.

  Raises:
    errors.UserError: If it is not installed.
  """
  try:
    return __import__(module)
  except ImportError as error:
    raise errors.UserError(
        f'{why}, so the package {module} is needed, which is not installed.',
        where=module,
        remedy=f"Install it: pip install 'moe-peft-jax[{_EXTRAS[module]}]'",
    ) from error

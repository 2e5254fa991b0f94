# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes model folders, one tensor at a time.

What is written goes to a folder beside and is renamed at the end: a folder
that can be seen is whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import functools
import json
import os
from pathlib import Path
import shutil
import struct
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from moe_peft import errors

WEIGHTS = 'model.safetensors'
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER_WEIGHTS = 'adapter_model.safetensors'
TOKENIZER_FILES = (
    'spiece.model',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
)
INSTALL = "pip install 'moe-peft-jax[hf]'"
# Shape and reader of parameters by path.
Readers = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]
_NAMES = {
    np.dtype(np.float32): 'F32',
    np.dtype(np.float16): 'F16',
    np.dtype(ml_dtypes.bfloat16): 'BF16',
}


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
  """Yields a new folder that becomes `folder` if nothing goes wrong.

  Raises:
    errors.UserError: If `folder` exists and is not empty, or the disk refuses.
  """
  folder = folder.expanduser().absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise errors.UserError(
        f'--out {folder} exists and is not an empty folder; remove it or '
        'choose another one.'
    )
  aside = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
  try:
    aside.mkdir(parents=True)
    yield aside
    if folder.exists():
      folder.rmdir()
    aside.rename(folder)
  except OSError as error:
    raise errors.UserError(
        f'{folder} could not be written ({error.strerror or error}).'
    ) from error
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def read_json(file: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    errors.UserError: If there is none.
  """
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{file} cannot be read: {error}') from error
  if not isinstance(content, dict):
    raise errors.UserError(f'{file} does not hold a JSON object.')
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
  """

  def __init__(self, folder: Path, stem: str = 'model'):
    """Opens `{stem}.safetensors` or its shards, else PyTorch's `.bin`.

    Raises:
      errors.UserError: If there are none, or they are damaged.
    """
    # Shape, dtype and reader of each tensor by name.
    self._found: dict[str, tuple[tuple[int, ...], str, Any]] = {}
    single = folder / f'{stem}.safetensors'
    index = folder / f'{stem}.safetensors.index.json'
    if single.is_file():
      self._scan([single])
    elif index.is_file():
      names = set(read_json(index).get('weight_map', {}).values())
      self._scan([folder / name for name in sorted(names)])
    else:
      self._read_bin(folder, stem)
    self.shapes = {name: shape for name, (shape, _, _) in self._found.items()}
    dtypes = {dtype for _, dtype, _ in self._found.values()}
    unknown = dtypes - {'F32', 'F16', 'BF16'}
    if unknown:
      raise errors.UserError(
          f'{folder} holds tensors of type {", ".join(sorted(unknown))}; '
          'quantized models cannot be imported, use the float32 or bfloat16 '
          'files.'
      )
    narrow = dtypes == {'BF16'}
    self.dtype = np.dtype(ml_dtypes.bfloat16 if narrow else np.float32)

  def _scan(self, files: Iterable[Path]) -> None:
    for file in files:
      try:
        with safetensors.safe_open(file, framework='numpy') as opened:
          for name in opened.keys():
            part = opened.get_slice(name)
            self._found[name] = (
                tuple(part.get_shape()),
                part.get_dtype(),
                functools.partial(_read_tensor, file, name),
            )
      except (safetensors.SafetensorError, OSError) as error:
        raise errors.UserError(
            f'{file} is not a readable safetensors file ({error}); it may be '
            'truncated. Fetch it again.'
        ) from error

  def _read_bin(self, folder: Path, stem: str) -> None:
    base = {'model': 'pytorch_model', 'adapter_model': 'adapter_model'}[stem]
    files = sorted(folder.glob(f'{base}*.bin'))
    if not files:
      raise errors.UserError(
          f'{folder} holds no {stem}.safetensors, no shards of one and no '
          f'{base}.bin. Give the folder of a model as it is on the Hub.'
      )
    torch = import_extra('torch', f'{files[0].name} is a PyTorch file')
    for file in files:
      try:
        # Never unpickle anything but tensors.
        state = torch.load(file, 'cpu', weights_only=True, mmap=True)
      except Exception as error:  # torch raises many kinds.
        raise errors.UserError(f'{file} cannot be read: {error}') from error
      known = {
          torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16'
      }
      for name, tensor in state.items():
        self._found[name] = (
            tuple(tensor.shape),
            known.get(tensor.dtype, str(tensor.dtype)),
            functools.partial(_to_numpy, torch, tensor),
        )

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads a tensor, as `dtype`: T5 overflows in float16."""
    return self._found[name][2]().astype(self.dtype, copy=False)


def _read_tensor(file: Path, name: str) -> np.ndarray:
  # Opened for one tensor: pages of an open file stay in memory.
  with safetensors.safe_open(file, framework='numpy') as opened:
    return opened.get_tensor(name)


def _to_numpy(torch, tensor) -> np.ndarray:
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def check_shapes(
    given: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
  """Raises errors.UserError that lists what does not fit.

  Args:
    given: Shapes by name, of a folder.
    expected: Shapes by name, of the model that config.json describes.
    ignored: Names that may be there.
  """
  problems = {
      'missing': sorted(set(expected) - set(given)),
      'unused': sorted(set(given) - set(expected) - set(ignored)),
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


def import_extra(module: str, why: str) -> Any:
  """Imports torch, transformers or peft.

  Raises:
    errors.UserError: If it is not installed.
  """
  try:
    return __import__(module)
  except ImportError as error:
    raise errors.UserError(
        f'{why}; {module} is needed, which is not installed: {INSTALL}'
    ) from error


def write_tensors(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], Any]],
    read: Callable[[str], np.ndarray],
) -> None:
  """Writes a safetensors file, holding one tensor at a time in memory.

  The library's own writer wants all of them at once.

  Args:
    file: File to write.
    tensors: Shape and dtype by name.
    read: Returns a tensor by name.
  """
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, (shape, dtype) in tensors.items():
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    header[name] = {
        'dtype': _NAMES[dtype],
        'shape': list(shape),
        'data_offsets': [offset, offset + size],
    }
    offset += size
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # The data must be aligned.
  with file.open('wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text)
    for name, (shape, dtype) in tensors.items():
      array = np.ascontiguousarray(read(name), dtype=dtype)
      if array.shape != tuple(shape):
        raise ValueError(f'{name} is {array.shape}, not {shape}')
      stream.write(array.reshape(-1).view(np.uint8).data)


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes small tensors in float32."""
  safetensors_numpy.save_file(
      {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()},
      file,
      metadata={'format': 'pt'},
  )

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`routing/`: what the routers did with a few held-out rows, over time.

`rows.json` holds the tokens of the rows, and `step_N.npz` the combine weights
of every site as <float16>[rows, length, num_experts].
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
from pathlib import Path
import re
import struct
import tokenize
import zipfile
import zlib

import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft.runs import json_file

FOLDER = 'routing'
_ROWS = 'rows.json'
# Most bytes of a snapshot's arrays: a small zipped file can hold gigabytes.
_MAX_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class HeldOutRow:
  """A held-out row.

  Attributes:
    task: Its name.
    pieces: By stack, `encoder` or `decoder`, the text of each token.
  """

  task: str
  pieces: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class SnapshotFiles:
  """The rows, and a file for each snapshot by step, ascending."""

  rows: tuple[HeldOutRow, ...]
  files: Mapping[int, Path]

  @property
  def steps(self) -> tuple[int, ...]:
    return tuple(self.files)

  def weights(self, step: int) -> dict[str, np.ndarray]:
    """Combine weights by site, <float16>[rows, length, num_experts].

    Raises:
      errors.UserError: The file is damaged.
    """
    path = self.files[step]
    try:
      with zipfile.ZipFile(path) as members:
        if sum(x.file_size for x in members.infolist()) > _MAX_BYTES:
          raise ValueError(f'they have over {_MAX_BYTES} bytes')
        weights = {
            name.removesuffix('.npy'): _array(members.read(name))
            for name in members.namelist()
        }
    except (
        OSError, EOFError, ValueError, TypeError, RuntimeError, SyntaxError,
        MemoryError, struct.error, tokenize.TokenError, zlib.error,
        zipfile.BadZipFile,
    ) as e:
      raise json_file.damaged(path, f'No arrays can be read ({e}).') from e
    for site, array in weights.items():
      if array.ndim != 3 or len(array) != len(self.rows):
        raise json_file.damaged(
            path, f'"{site}" must be of the {len(self.rows)} rows of {_ROWS}.'
        )
    return weights


def _array(content: bytes) -> np.ndarray:
  """An array of an .npz file.

  NumPy's own reader makes an array of whatever shape a file names, before it
  looks how much there is.
  """
  stream = io.BytesIO(content)
  if np.lib.format.read_magic(stream) != (1, 0):
    raise ValueError('an array is of another version')
  shape, transposed, dtype = np.lib.format.read_array_header_1_0(stream)
  if transposed or dtype.kind != 'f':
    raise ValueError(f'an array has the type {dtype}')
  return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)


def read(run_dir: Path) -> SnapshotFiles | None:
  """The snapshots of a run; None where there are none.

  Raises:
    errors.UserError: `rows.json` is damaged.
  """
  folder = run_dir / FOLDER
  steps = {
      int(match[1]): file
      for file in folder.glob('step_*.npz')
      if (match := re.fullmatch(r'step_(\d+)\.npz', file.name))
  }
  fields = json_file.read(folder / _ROWS)
  if not steps or fields is None:
    return None
  return SnapshotFiles(
      tuple(
          HeldOutRow(row.get('task', str), {
              stack: row.texts(stack)
              for stack in ('encoder', 'decoder') if stack in row.value
          })
          for row in fields.objects('rows')
      ),
      dict(sorted(steps.items())),
  )


def write(
    run_dir: Path,
    step: int,
    weights: Mapping[str, np.ndarray],
    rows: Sequence[HeldOutRow],
) -> None:
  """Writes a snapshot, and the rows with the first one.

  Snapshots of other rows, as of another split, are removed: they are no part of
  the same story. So are those whose rows cannot be read.

  Args:
    run_dir: Folder of the run.
    step: Step of the parameters.
    weights: Combine weights by site, <float>[rows, length, num_experts].
    rows: The rows.
  """
  folder = run_dir / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  held_out = [
      {'task': row.task, **{k: list(x) for k, x in row.pieces.items()}}
      for row in rows
  ]
  try:
    known = json_file.read(folder / _ROWS)
  except errors.UserError:  # A run does not end for rows that it can write.
    known = None
  if known is None or known.value.get('rows') != held_out:
    for snapshot in folder.glob('step_*.npz'):
      snapshot.unlink()
    json_file.write(folder / _ROWS, {'rows': held_out})
  buffer = io.BytesIO()
  np.savez_compressed(
      buffer, **{site: x.astype(np.float16) for site, x in weights.items()}
  )
  atomic.write(folder / f'step_{step}.npz', buffer.getvalue())

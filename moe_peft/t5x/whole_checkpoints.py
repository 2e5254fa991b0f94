# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint of a T5X run is whole, and of which base it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath  # Paths on a disk or in a bucket.
import jax
from jax.experimental import multihost_utils

from moe_peft import errors
from moe_peft.training import base_identity
from moe_peft.training import checksums


def newest(
    path: str, resumes: bool, steps: Callable[[str], Sequence[int]]
) -> str:
  """The checkpoint, or, for a run that goes on, the newest whole one.

  What is damaged is moved aside and never deleted.

  Args:
    path: Folder `checkpoint_<step>`.
    resumes: Whether a run goes on from it.
    steps: Steps of the checkpoints in a folder.

  Raises:
    errors.UserError: If it is damaged and there is no whole one to go on from.
  """
  if (damaged := checksums.damaged_file(epath.Path(path))) is None:
    return path
  folder, _, step = path.rpartition('checkpoint_')
  older = [x for x in steps(folder) if x < int(step)]
  names = [f'{folder}checkpoint_{x}' for x in sorted(older, reverse=True)]
  is_whole = lambda x: checksums.damaged_file(epath.Path(x)) is None
  whole = next(filter(is_whole, names), None)
  if whole is None or not resumes:
    raise errors.UserError(
        'The checkpoint is damaged: the file has changed or cannot be read.',
        where=damaged,
        remedy=f'Put it back from a copy, or take {whole}.' if whole else
        'Put it back from a copy; to train anew, choose another MODEL_DIR.',
    )
  logging.warning('%s is damaged; %s is used.', damaged, whole)
  multihost_utils.sync_global_devices('every host has read the checkpoints')
  if jax.process_index() == 0:
    for name in [path, *names[: names.index(whole)]]:
      checksums.move_aside(epath.Path(name))
  multihost_utils.sync_global_devices('what is damaged has been moved')
  return whole


def is_of(saved: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
  """Whether a base is the one that a checkpoint names."""
  if saved.get('version') != base_identity.VERSION:
    logging.warning(base_identity.OLDER)
  return base_identity.is_noted(saved, found)

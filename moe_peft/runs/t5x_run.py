# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a run of T5X is told from one of the embedded engine."""

from pathlib import Path
import re


def checkpoints(folder: Path) -> dict[int, Path]:
  """The checkpoints of a run of T5X by step; none for a run of ours."""
  if not folder.is_dir() or (folder / 'checkpoints').is_dir():
    return {}
  return {
      int(path.name.removeprefix('checkpoint_')): path
      for path in folder.iterdir()
      if re.fullmatch('checkpoint_[0-9]+', path.name)
      and (path / 'state').is_dir()
  }

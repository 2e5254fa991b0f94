# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is noted of the data and the method of the run of a checkpoint."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
from etils import epath  # Paths on a disk or in a bucket.

from moe_peft import errors
from moe_peft.data import provenance
from moe_peft.t5x import settings
from moe_peft.training import method_settings

NAMES = ('data', 'method')
_OTHER_METHOD = 'It is not the method that %s was trained with: %s.'


@dataclasses.dataclass(frozen=True)
class Notes:
  """The notes of the run that gin describes.

  Attributes:
    task: Task or mixture whose data are noted; None for none.
    allow_changed_data: Whether a run goes on with others.
    allow_changed_method: The same of settings of the method that change no
      shape.
  """

  task: str | None
  allow_changed_data: bool
  allow_changed_method: bool

  def now(self) -> dict[str, dict[str, str]]:
    """The notes by their `NAMES`."""
    data = provenance.identities(self.task) if self.task else {}
    return {'data': data, 'method': method_settings.settings()}

  def check(self, path: str, then: Mapping[str, Any], resumes: bool) -> None:
    """Refuses to go on with other data or another method.

    Of a method that is evaluated there is a warning.

    Args:
      path: Folder `checkpoint_<step>`.
      then: Its notes by name, as far as its version has them.
      resumes: Whether a run goes on from it.

    Raises:
      errors.UserError: If they have changed.
    """
    step = int(path.rpartition('checkpoint_')[2])
    if not resumes:
      change = method_settings.change_of_adapters(then.get('method') or {})
      if change is not None:
        logging.warning(_OTHER_METHOD, path, change)
      return
    if not self.allow_changed_method:
      method_settings.check(
          step, then.get('method'), method_settings.settings()
      )
    data = then.get('data') if self.task else None
    if data is not None and not self.allow_changed_data:
      provenance.check_identities(step, data, provenance.identities(self.task))


def check_whole(path: Any, resumes: bool) -> None:
  """The same of the method of a whole checkpoint, as config.gin has it.

  Of the data there is a warning where a run begins with their first rows again.

  Args:
    path: Folder `checkpoint_<step>`.
    resumes: Whether a run goes on from it.

  Raises:
    errors.UserError: If the method has changed.
  """
  if resumes and not (epath.Path(path) / 'dataset').exists():
    logging.warning(
        '%s has no position in the data: the run reads the first rows again. '
        'Checkpoints of adapters (gin/runs/t5x_adapter_checkpoints.gin) have '
        'one.', path,
    )
  then = method_settings.of_t5x_run(epath.Path(path).parent)
  change = method_settings.change_of_adapters(then)
  if change is None or settings.macro('ALLOW_CHANGED_METHOD'):
    return
  if not resumes:
    logging.warning(_OTHER_METHOD, path, change)
    return
  raise errors.UserError(
      f'The method has changed since {path}: {change}.',
      where='MODEL_DIR',
      remedy='Put back what it was, or choose another folder; '
      '--gin.ALLOW_CHANGED_METHOD=True goes on with the method of now.',
  )

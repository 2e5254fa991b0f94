# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the tasks of a run of T5X are those that its model can read."""

import importlib
from typing import Any

import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import registration
from moe_peft.t5x import settings

_DATA = 't5x.utils.DatasetConfig'
_WITH_IDS = 'moe_peft.data.example_ids.with_ids'


def check() -> None:
  """Makes the model of what was parsed, and looks at its tasks.

  Raises:
    errors.UserError: If it cannot be made, if the module of the tasks cannot be
      imported, or for features or a split that are not there.
  """
  with errors.refused(
      'The model that the gin files describe cannot be made.', 'MODEL'
  ):
    model = settings.macro('MODEL')
  if module := settings.macro('MIXTURE_OR_TASK_MODULE'):
    # T5X imports it too, after our gin files have looked for the task.
    with errors.refused('It cannot be imported.', 'MIXTURE_OR_TASK_MODULE'):
      importlib.import_module(module)
  if model is not None:
    _check_lengths(model)
  _check_split()


def _check_lengths(model: Any) -> None:
  given = settings.argument(_DATA, 'task_feature_lengths', scope='train')
  # `t5x.eval` looks for the longest example where there are none.
  trains, infers = map(settings.of_script, ('total_steps', 'mode'))
  if given is None and (trains is not None or infers is not None):
    raise errors.UserError(
        'To train and to infer T5X has to know how long examples are.',
        'TASK_FEATURE_LENGTHS', "Give {'inputs': 64, 'targets': 64}, for "
        'example.',
    )
  lengths = settings.macro('TASK_FEATURE_LENGTHS')
  if lengths is None:
    return
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  features = getattr(converter, 'TASK_FEATURES', {})
  # SeqIO has no public name for them.
  others = getattr(converter, '_passthrough_features', {})
  if features and set(lengths) - set(others) != set(features) - set(others):
    raise errors.UserError(
        f'The lengths are those of {", ".join(lengths)}, and the model takes '
        f'{", ".join(features)}.', 'TASK_FEATURE_LENGTHS',
        f'Give {dict.fromkeys(features, 64)}, for example.',
    )


def _check_split() -> None:
  """Refuses a split that `t5x.eval` or `t5x.infer` surely does not find."""
  if settings.of_script('total_steps') is not None:
    return  # Training names its data in scopes.
  # Not built: what gives a task may register it, which T5X does once more.
  name = settings.bound(_DATA).get('mixture_or_task_name')
  if getattr(name, 'config_key', ('', ''))[1] == _WITH_IDS:
    name = settings.macro('MIXTURE_OR_TASK_NAME')
  if not isinstance(name, str) or settings.argument(_DATA, 'use_cached'):
    return
  task = catalog.get_task_or_mixture(name)
  # Sources of others may have more than they name, such as slices of TFDS.
  if (
      isinstance(task, seqio.Mixture)
      or name in registration.RECORDS
      or settings.of_script('inference_evaluator_cls')
  ):
    split = settings.argument(_DATA, 'split')
    catalog.check_split(name, split, 'utils.DatasetConfig.split')

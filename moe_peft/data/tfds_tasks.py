# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A prepared TFDS data set as a task, read as it is needed.

In a gin file:

    from __gin__ import dynamic_registration
    from moe_peft.data import tfds_tasks

    MIXTURE_OR_TASK_NAME = @tfds_tasks.register_task()
    tfds_tasks.register_task:
      name = 'my_task'
      tfds_name = 'my_set/my_config:1.0.0'
      data_dir = '/data/tfds'
"""

from collections.abc import Mapping, Sequence
import difflib

import seqio
import tensorflow_datasets as tfds

from moe_peft import errors
from moe_peft.data import local
from moe_peft.data import registration
from moe_peft.data import vocabularies


def register_task(
    name: str,
    tfds_name: str,
    data_dir: str | None = None,
    splits: Mapping[str, str] | None = None,
    inputs_key: str = 'inputs',
    targets_key: str = 'targets',
    vocabulary: seqio.Vocabulary | None = None,
    metrics: Sequence[str] = (),
) -> str:
  """Registers a TFDS data set as a SeqIO task; returns its name.

  Calling it again with the same arguments changes nothing. The data set must
  have been prepared: nothing is downloaded, and the code that made it is not
  needed.

  Args:
    name: Name of the task; letters, digits, `_`, `.` and `:`.
    tfds_name: Name of the data set, `set:version` or `set/config:version`.
    data_dir: Folder of prepared data sets; TFDS's own if not given.
    splits: Split of the task -> split of the data set, or slices of them as
      'train[:90%]+test'; all of the data set by its own names if not given.
    inputs_key: Text feature of the inputs.
    targets_key: Text feature of the targets.
    vocabulary: Vocabulary of inputs and targets, by default ours of bytes. Gin
      files of models give that of the base.
    metrics: As in `local.generation_metrics`.

  Raises:
    errors.UserError: Bad arguments; a data set that was not prepared, or has no
      such split or text feature.
  """
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  if not registration.is_new([name], dict(locals())):
    return name
  metric_fns = local.generation_metrics(metrics)
  info = _find(tfds_name, data_dir)
  _check_splits(info, splits or {}, tfds_name)
  _check_texts(info, {'inputs_key': inputs_key, 'targets_key': targets_key})
  source = seqio.TfdsDataSource(
      tfds_name=tfds_name,
      tfds_data_dir=data_dir,
      splits=splits and dict(splits),
      read_only=True,
  )
  texts = seqio.map_over_dataset(
      lambda row: {'inputs': row[inputs_key], 'targets': row[targets_key]}
  )
  registration.add_task(
      name, source, vocabulary=vocabulary, metric_fns=metric_fns, before=[texts]
  )
  return name


def _argument(name: str) -> str:
  return f'tfds_tasks.register_task.{name}'


def _find(tfds_name: str, data_dir: str | None) -> tfds.core.DatasetInfo:
  """Raises errors.UserError for what TFDS would only say while reading."""
  try:
    info = tfds.builder(tfds_name, data_dir=data_dir, try_gcs=False).info
  except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
    first_line = str(error).split('\n', 1)[0]
    raise errors.UserError(
        f'The TFDS data set {tfds_name!r} is not in '
        f'{data_dir or tfds.core.constants.DATA_DIR}: {first_line}',
        _argument('tfds_name'),
        'Prepare it there, with `tfds build` or download_and_prepare(), or '
        'name another folder with data_dir.',
    ) from error
  if not info.splits:
    raise errors.UserError(
        f'The TFDS data set {tfds_name!r} has no splits in {info.data_dir}.',
        _argument('tfds_name'), 'Prepare it with download_and_prepare().',
    )
  return info


def _check_splits(info, splits: Mapping[str, str], tfds_name: str) -> None:
  where = _argument('splits')
  for split in splits.values():
    try:
      empty = not info.splits[split].num_examples
    except (AssertionError, KeyError, ValueError) as error:
      raise errors.UserError(
          f'{tfds_name!r} has no split {split!r}; it has '
          f'{sorted(info.splits)}.', where,
          'Slices and sums of them are written as train[:90%]+test.',
      ) from error
    if empty:
      raise errors.UserError(
          f'{tfds_name!r} has no rows in its split {split!r}.', where
      )


def _check_texts(info, keys: Mapping[str, str]) -> None:
  texts = [
      key for key, feature in info.features.items()
      if isinstance(feature, tfds.features.Text)
  ]
  for argument, key in keys.items():
    if key not in texts:
      near = difflib.get_close_matches(key, texts, n=1)
      raise errors.UserError(
          f'{info.full_name!r} has no text {key!r}; its texts are {texts}.',
          _argument(argument), f'Did you mean {near[0]!r}?' if near else '',
      )

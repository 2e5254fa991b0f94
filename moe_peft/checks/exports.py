# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Check of an export: torch computes what JAX does."""

from collections.abc import Mapping
import dataclasses
import importlib.util
from pathlib import Path
import tempfile

import jax
import numpy as np

from moe_peft import errors
from moe_peft.checks import outcome
from moe_peft.checks import subject as subject_lib
from moe_peft.hf import entries
from moe_peft.hf import export
from moe_peft.hf import trained
from moe_peft.hf import verify

_FORMATS = ('peft', 'full')


def parity(subject: subject_lib.Subject) -> None:
  """An exported folder gives the logits that JAX gives."""
  for package in ('torch', 'transformers', 'peft'):
    if importlib.util.find_spec(package) is None:
      raise outcome.Skipped(f'{package} is not installed')
  if subject.experiment is None:
    raise outcome.Skipped('the gin files configure no Experiment')
  model = trained.Trained(
      model=subject.experiment.model, params=jax.device_get(subject.moved)
  )
  refused = ''
  for file_format in _FORMATS:
    with tempfile.TemporaryDirectory() as folder:
      out = Path(folder) / 'export'
      try:
        imported = dataclasses.replace(model, params=_as_imported(model))
        export.export(imported, out, file_format)
      except errors.UserError as error:
        refused = error.what
        continue
      verdict = verify.verify(out, offline=True)
    if not verdict.equal:
      raise outcome.Failure(
          f'Logits of torch differ by up to {verdict.model:.3g} '
          f'(--format {file_format}).'
      )
    return
  raise outcome.Skipped(refused)


def _as_imported(model: trained.Trained) -> Mapping[str, np.ndarray]:
  """Its arrays, as a base would give them.

  A fresh scan has of each layer what files have once for all: T5's table of
  position biases.
  """
  params = dict(model.params)
  for entry in model.network.entries(model.config, model.layout):
    if entry.stacked and len(set(entry.sources)) == 1:
      array = params[entry.path]
      first = np.take(array, [0], entries.SCAN_AXIS)
      params[entry.path] = np.broadcast_to(first, array.shape)
  return params

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of a short run by the engine: what changes, what is kept, resuming."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import io
import tempfile

import jax
import numpy as np

from moe_peft.checks import outcome
from moe_peft.checks import small
from moe_peft.checks import subject as subject_lib
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop

_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run began and ended with.

  Attributes:
    before: All flat parameters before the first step.
    after: All flat parameters after the last one.
    opt_state: State of the optimizer after it, arrays by path.
  """

  before: Mapping[str, np.ndarray]
  after: Mapping[str, np.ndarray]
  opt_state: Mapping[str, np.ndarray]


def frozen(subject: subject_lib.Subject) -> None:
  """What TRAINABLE_REGEX does not name has the same bits after training."""
  run, trains = _run(subject), _trains(subject)
  fixed = [x for x in run.before if not trains(x) or trainable.is_constant(x)]
  if not fixed:
    raise outcome.Skipped('everything trains')
  for path in fixed:
    outcome.equal(run.after[path], run.before[path], f'Values of {path}')
  still = [
      path for path in run.before
      if path not in fixed
      and np.array_equal(run.after[path], run.before[path])
  ]
  if still:
    raise outcome.Failure(
        f'{len(still)} arrays that should train have not changed, '
        f'{min(still)} for one.'
    )


def optimizer_state(subject: subject_lib.Subject) -> None:
  """The optimizer keeps nothing for what does not train."""
  run, trains = _run(subject), _trains(subject)
  fixed = [path for path in run.before if not trains(path)]
  if not fixed:
    raise outcome.Skipped('everything trains')
  kept = [
      path
      for path in fixed
      for key in run.opt_state
      if f"'{path}'" in key
  ]
  if kept:
    raise outcome.Failure(
        f'The optimizer keeps state for {len(set(kept))} frozen arrays, '
        f'{min(kept)} for one.'
    )


def resume(subject: subject_lib.Subject) -> None:
  """A run that was stopped and continued ends with the same bits."""
  want = _run(subject)
  with tempfile.TemporaryDirectory() as folder:
    _train(subject, folder, _STEPS // 2)
    got = _train(subject, folder, _STEPS)
  for path, value in want.after.items():
    outcome.equal(got.after[path], value, f'Values of {path} after resuming')
  for path, value in want.opt_state.items():
    outcome.equal(
        got.opt_state[path], value, f'State of the optimizer ({path})'
    )


def _experiment(subject) -> experiment_lib.Experiment:
  if subject.experiment is None:
    raise outcome.Skipped('the gin files configure no Experiment')
  if not subject.trains:
    raise outcome.Skipped('nothing trains')
  return subject.experiment


def _trains(subject):
  return trainable.matcher(subject.trainable_regex)


@functools.lru_cache(maxsize=1)
def _run(subject: subject_lib.Subject) -> Run:
  with tempfile.TemporaryDirectory() as folder:
    return _train(subject, folder, _STEPS)


def _train(subject: subject_lib.Subject, folder: str, steps: int) -> Run:
  """Trains to a step, or continues, with a folder as MODEL_DIR."""
  experiment = dataclasses.replace(
      _experiment(subject), model_dir=folder, train_steps=steps
  )
  setup = experiment_lib.prepare(experiment, small.devices(experiment))
  # Frozen experts come with the base: fresh ones would compute nothing, and
  # leave their router without a gradient.
  given = {k: x for k, x in setup.frozen.items() if trainable.is_adapter(k)}
  given = jax.device_put(
      subject_lib.moved(given, subject.noise),
      {k: setup.shardings[k] for k in given},
  )
  setup = dataclasses.replace(setup, frozen={**setup.frozen, **given})
  everything = lambda params: jax.device_get({**setup.frozen, **params})
  before = everything(setup.trainable)
  # Its progress would stand between the lines of the checks.
  with contextlib.redirect_stderr(io.StringIO()), contextlib.closing(
      loop.open_checkpoints(setup)
  ) as checkpointer:
    state = loop.train(setup, checkpointer, lambda step, params: None)
  if state is None:  # The loop has noted a signal and saved.
    raise KeyboardInterrupt
  leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
  return Run(
      before, everything(state.params),
      {jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves},
  )

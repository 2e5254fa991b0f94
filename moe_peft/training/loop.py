# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop: data, steps, evaluations, checkpoints, clean stops."""

from collections.abc import Callable, Mapping
import contextlib
import logging
import sys
import time
from typing import Any

from clu.data import dataset_iterator
import jax
import seqio

from moe_peft import errors
from moe_peft import signals
from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.data import converters
from moe_peft.data import example_ids
from moe_peft.data import provenance
from moe_peft.models import dataset_ids
from moe_peft.runs import t5x_run
from moe_peft.training import checkpoints
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import method_settings
from moe_peft.training import metrics as metrics_lib
from moe_peft.training import progress as progress_lib
from moe_peft.training import remat
from moe_peft.training import t5x_checkpoints
from moe_peft.training import train_step

_logger = logging.getLogger(__name__)
EvalFn = Callable[[int, Mapping[str, Any]], None]


def train_data(
    experiment: experiment_lib.Experiment,
) -> dataset_iterator.TfDatasetIterator:
  """Endless shuffled batches whose position can be saved."""
  dataset = seqio.get_dataset(
      example_ids.with_ids(
          experiment.mixture_or_task_name, experiment.example_ids
      ),
      experiment.objective.task_lengths(experiment.task_feature_lengths),
      experiment.objective.feature_converter(
          experiment.model, experiment.packing
      ),
      dataset_split='train',
      shuffle=True,
      num_epochs=None,
      seed=experiment.seed,
      batch_size=experiment.batch_size,
      use_cached=catalog.reads_cache(experiment.mixture_or_task_name),
  )
  return dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)


def identity(setup: experiment_lib.Setup) -> dict[str, Any]:
  """What must stay the same for a run to be continued."""
  experiment, ids = setup.experiment, setup.experiment.example_ids
  if ids is not None:
    ids = {'EXAMPLE_IDS': ids if isinstance(ids, int) else list(ids)}
  return {
      'trainable parameters': {
          name: list(x.shape) for name, x in sorted(setup.trainable.items())
      },
      'base': setup.base,
      'MIXTURE_OR_TASK_NAME': experiment.mixture_or_task_name,
      'TASK_FEATURE_LENGTHS': dict(experiment.task_feature_lengths),
      'BATCH_SIZE': experiment.batch_size,
      'SEED': experiment.seed,
      **(ids or {}),
  }


def open_checkpoints(
    setup: experiment_lib.Setup, alone: bool = False
) -> checkpoints.Checkpointer | t5x_checkpoints.T5XCheckpoints:
  """The checkpoints of a run; arguments and errors of `Checkpointer`.

  Those of a run of T5X can be read.
  """
  experiment = setup.experiment
  if not t5x_run.checkpoints(experiment.run_dir):
    checkpointer = checkpoints.Checkpointer(
        experiment.run_dir, experiment.checkpoints_to_keep, identity(setup),
        alone,
    )
  elif alone:
    raise errors.UserError(
        f'{experiment.run_dir} holds checkpoints of T5X.', 'MODEL_DIR',
        'Choose another folder.',
    )
  else:
    checkpointer = t5x_checkpoints.T5XCheckpoints(setup)
  for file in checkpointer.damaged.values():
    print(
        f'warning: {file} is damaged; the checkpoint of step '
        f'{checkpointer.latest_step()} is used.', file=sys.stderr,
    )
  return checkpointer


def notes_to_continue(
    experiment: experiment_lib.Experiment,
    checkpointer: checkpoints.Checkpointer,
) -> dict[str, Any]:
  """What checkpoints note of the data and the method of a run.

  Raises:
    errors.UserError: If they are not those of its newest checkpoint, or that
      has more steps than are asked for: its scores would be taken for theirs.
  """
  step = checkpointer.latest_step() or 0
  # Asked before all data are read. With no steps at all a run is only scored.
  if 0 < experiment.train_steps < step:
    raise errors.UserError(
        f'{experiment.run_dir} has {step} steps, more than '
        f'{experiment.train_steps}.',
        where='TRAIN_STEPS',
        remedy=f'Set it to {step} or more, or choose another MODEL_DIR.',
    )
  notes = {
      'data': provenance.identities(experiment.mixture_or_task_name),
      'method': method_settings.settings(),
  }
  if step:
    saved = checkpointer.restore_notes(step)
    if not experiment.allow_changed_data:
      provenance.check_identities(step, saved.get('data'), notes['data'])
    if not experiment.allow_changed_method:
      method_settings.check(step, saved.get('method'), notes['method'])
  return notes


def train(
    setup: experiment_lib.Setup,
    checkpointer: checkpoints.Checkpointer,
    evaluate: EvalFn,
    notes: Mapping[str, Any] | None = None,
) -> train_step.TrainState | None:
  """Trains to the last step, from the newest checkpoint if there is one.

  Args:
    setup: The experiment on its devices.
    checkpointer: Where checkpoints are read and written.
    evaluate: Called as `evaluate(step, flat_parameters)` every `eval_period`
      steps, the last step excepted, and again where it resumes at such a step.
    notes: What `notes_to_continue` returns, where that has been called: it
      reads all data of the user.

  Returns:
    The last state, or None if a signal (`signals.noted_status`) ended the run
    early; then everything is saved.

  Raises:
    errors.UserError: If data or method are not those of the checkpoint, or if
      MAX_SKIPPED_STEPS steps in a row, or the last ones, were not finite; no
      checkpoint of them is saved.
  """
  experiment = setup.experiment
  data = train_data(experiment)
  if notes is None:
    notes = notes_to_continue(experiment, checkpointer)
  begun = {}
  first_step = checkpointer.latest_step() or 0
  if first_step:
    state = checkpointer.restore(
        first_step, train_step.abstract_state(setup), data
    )
    if first_step >= experiment.train_steps:
      return state
    begun = checkpointer.restore_notes(first_step).get('log')
  else:
    state = train_step.init_state(setup)
    if not experiment.train_steps:
      if checkpointer.latest_step() is None:  # Commands on runs need one.
        checkpointer.save(0, state, data, notes)
        checkpointer.wait()
      return state
  progress = progress_lib.Progress(
      'train', experiment.train_steps, first_step
  )
  log = metrics_lib.TrainLog(
      experiment.run_dir, first_step, progress, experiment.learning_rate,
      begun,
  )
  with signals.noted() as stopped, setup.context(), contextlib.closing(log):
    state = _run_steps(
        setup, state, first_step, data, notes, checkpointer, evaluate, log,
        progress, stopped,
    )
    checkpointer.wait()
  return None if stopped else state


def _run_steps(setup, state, first_step, data, notes, checkpointer, evaluate,
               log, progress, stopped):
  """Runs the steps that are left."""
  experiment = setup.experiment
  sharding = partitioning.batch_sharding(setup.mesh)
  batches = {}  # Those of the last steps that have a row in the log.

  def evaluate_if_due(step):
    if experiment.eval_period and step % experiment.eval_period == 0:
      with log.stopped_clock(), stopped.interrupting():
        evaluate(step, {**setup.frozen, **state.params})

  def save(step, metrics):
    log.flush()
    # A skipped step may be the first of those that end the run.
    if not metrics['skipped'].total:
      checkpointer.save(step, state, data, {**notes, 'log': log.begun()})

  if first_step:  # It may have been stopped while it evaluated.
    evaluate_if_due(first_step)
  if stopped:
    return state
  for step in range(first_step + 1, experiment.train_steps + 1):
    if step == first_step + 1:
      with stopped.interrupting(lost=False):  # Both may take minutes.
        rows = next(data)
        batch = jax.device_put(rows, sharding)
        step_fn = _compile(setup, state, batch, progress)
      if stopped:
        break
      if experiment.packing:
        _logger.info(
            'The first packed rows are %.0f %% full, with %.1f examples each.',
            *converters.fill(rows),
        )
      log.start_clock()
    else:
      batch = jax.device_put(next(data), sharding)
    state, metrics = step_fn(state, setup.frozen, batch)
    log.add(metrics)
    last = step == experiment.train_steps
    if (whole := step % experiment.log_period == 0) or last:
      log.write(step, whole)
      batches = {**dict(list(batches.items())[-1:]), step: batch}
    if saved := last or step % experiment.checkpoint_period == 0:
      save(step, metrics)
    _check_skipped(
        experiment, log, checkpointer, batches, 1 if last else None
    )
    if not last and not stopped:
      evaluate_if_due(step)
    if stopped:
      if not saved:
        save(step, metrics)
      break
  return state


def _compile(setup, state, batch, progress):
  """Compiles the step, which takes its own time and no step's."""
  start = time.monotonic()
  step_fn = train_step.make_train_step(remat.for_training(setup))
  compiled = step_fn.lower(state, setup.frozen, batch).compile()
  progress.note(f'The step is compiled: {time.monotonic() - start:.0f} s.')
  progress.start_clock()
  return compiled


def _check_skipped(experiment, log, checkpointer, batches, limit=None):
  """Ends a run that does not come back to finite numbers."""
  number = log.skipped_in_a_row
  if number < (limit or experiment.max_skipped_steps):
    return
  checkpointer.wait()
  saved = checkpointer.latest_step()
  rows = _places(experiment, batches[log.step])
  raise errors.UserError(
      'The loss, its gradient or the parameters are not finite: the last '
      f'{number} steps up to step {log.step} were skipped.'
      + (f' Rows of its batch: {"; ".join(rows[:8])}.' if rows else ''),
      where='LEARNING_RATE',
      remedy='Make it smaller, or WARMUP_STEPS larger; the same command then '
      + ('begins anew.' if saved is None else
         f'continues from the checkpoint of step {saved}, which is finite.'),
  )


def _places(experiment, batch) -> list[str]:
  """Where the rows of a batch stand, as far as that is known."""
  vocabularies = {
      'encoder_input_tokens': experiment.model.input_vocabulary,
      'decoder_target_tokens': experiment.model.output_vocabulary,
  }
  texts = [''] * experiment.batch_size
  batch = jax.device_get(batch)
  for name, vocabulary in vocabularies.items():
    if name in batch:
      real = batch.get(f'{name.partition("_")[0]}_segment_ids', 1) != 0
      rows = (batch[name] + dataset_ids.offset(vocabulary)) * real
      # Of two answers to a prompt the first one.
      rows = rows.reshape(len(texts), -1, rows.shape[-1])[:, 0]
      texts = [
          text + vocabulary.decode(ids.tolist())
          for text, ids in zip(texts, rows, strict=True)
      ]
  return provenance.places(experiment.mixture_or_task_name, texts)


def restore_params(
    setup: experiment_lib.Setup, checkpointer: checkpoints.Checkpointer
) -> Mapping[str, Any]:
  """Flat parameters of the newest checkpoint, base included.

  Raises:
    errors.UserError: If there is no checkpoint.
  """
  state = checkpointer.restore(
      checkpointer.require_step(), train_step.abstract_state(setup)
  )
  return {**setup.frozen, **state.params}


def count_params(setup: experiment_lib.Setup) -> tuple[int, int]:
  """Numbers of trainable and of all parameters."""
  everything = {**setup.trainable, **setup.frozen}
  return (
      trainable.num_trained(setup.trainable), trainable.num_params(everything)
  )

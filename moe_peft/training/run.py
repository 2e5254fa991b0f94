# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One experiment from beginning to end, and what it leaves behind."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
from pathlib import Path
import time
from typing import Any

import gin
import jax
import rich.console

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.data import example_ids
from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.routers import similarity
from moe_peft.routers import snapshots
from moe_peft.routers import usage
from moe_peft.runs import config_file
from moe_peft.runs import metrics_files
from moe_peft.runs import run_file
from moe_peft.runs import run_lock
from moe_peft.runs import similarity_file
from moe_peft.runs import snapshot_files
from moe_peft.runs import usage_file
from moe_peft.training import base_results
from moe_peft.training import budget
from moe_peft.training import compilation
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import hosts
from moe_peft.training import loop
from moe_peft.training import metrics
from moe_peft.training import progress as progress_lib
from moe_peft.training import schedules
from moe_peft.training import scoring
from moe_peft.training import train_step

# Names of folders may have brackets, which are no markup.
console = rich.console.Console(stderr=True, highlight=False, markup=False)

# Rows of each task whose routing is observed. The share of an expert is then a
# mean over thousands of tokens; all scored rows would take as long again.
_ROUTED_ROWS = 256


def run_experiment() -> Path | None:
  """Runs what gin describes; continues it if MODEL_DIR holds its beginning.

  Returns:
    The folder of the finished run, or None after a signal: then it is saved.

  Raises:
    errors.UserError: For anything in the configuration that cannot work.
  """
  hosts.check_one_process()
  experiment = build()
  compilation.use_cache(experiment.compilation_cache_dir)
  with contextlib.closing(_Session(experiment)) as session:
    return experiment.run_dir if session.run() else None


def build(split: str | None = None) -> experiment_lib.Experiment:
  """The experiment that gin describes, its task checked.

  If it has a budget of parameters, the configuration is parsed anew with the
  size that keeps to it.

  Args:
    split: The split to evaluate, as the flag --split names it; by default
      EVAL_SPLIT.

  Raises:
    errors.UserError: For an unknown task or split, lengths that are too short,
      an id that EXAMPLE_IDS lacks, if no run file configures an Experiment, or
      if no size keeps to the budget.
  """
  experiment = configured()
  _check_folder('MODEL_DIR', experiment.run_dir)
  _check_folder('BASE_RESULTS_DIR', experiment.base_results_dir or '')
  catalog.check_features(
      experiment.mixture_or_task_name, experiment.objective.features,
      'MIXTURE_OR_TASK_NAME',
  )
  catalog.check_features(
      experiment.eval_name, ('targets',), 'EVAL_MIXTURE_OR_TASK_NAME'
  )
  for name in {experiment.mixture_or_task_name, experiment.eval_name}:
    catalog.check_feature_lengths(name, experiment.task_feature_lengths)
    example_ids.with_ids(name, experiment.example_ids)
  catalog.check_split(
      experiment.mixture_or_task_name, 'train', 'MIXTURE_OR_TASK_NAME'
  )
  where = 'EVAL_SPLIT' if split is None else '--split'
  split = experiment.eval_split if split is None else split
  catalog.check_split(experiment.eval_name, split, where)
  return dataclasses.replace(_within_budget(experiment), eval_split=split)


def _check_folder(macro: str, path: str | Path) -> None:
  path = Path(path).expanduser()
  there = next(p for p in (path, *path.absolute().parents) if p.exists())
  if not there.is_dir():
    raise errors.UserError(f'{path}: {there} is no folder.', macro)


def _within_budget(
    experiment: experiment_lib.Experiment,
) -> experiment_lib.Experiment:
  """The experiment, or the one that keeps to its budget and its scale."""
  choice = None
  if experiment.param_budget is not None:
    choice = budget.choose(
        experiment.param_budget,
        _shapes,
        experiment.trainable_regex,
        experiment.budget_macro,
    )
    console.print(str(choice))
  if not (bindings := budget.bindings(experiment.scale, choice)):
    return experiment
  gin_files.load_again(*(f'{k}={value}' for k, value in bindings.items()))
  return configured()


def configured() -> experiment_lib.Experiment:
  """The experiment that gin describes; neither its task nor its budget is read.

  Raises:
    errors.UserError: If no run file configures an Experiment.
  """
  with errors.refused(
      'The gin files describe no experiment that can be built.',
      where='--gin_file',
      remedy='Give a model, a method and a run file, in this order, as '
      'configs/quickstart.gin does.',
  ):
    return gin.get_configurable(experiment_lib.Experiment)()


def _shapes(macro: str, size: int) -> Mapping[str, Any]:
  """Shapes of the parameters if a macro of the configuration is `size`."""
  gin_files.load_again(f'{macro}={size}')
  experiment = configured()
  variables = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
  return trainable.flatten(variables['params'])


class _Session:
  """What one process does for an experiment: evaluate, train, write."""

  def __init__(self, experiment: experiment_lib.Experiment):
    self._experiment, self._dir = experiment, experiment.run_dir
    self._start = time.monotonic()
    self._setup = experiment_lib.prepare(
        experiment, checks=(train_step.check, scoring.check)
    )
    self._lock = run_lock.take(self._dir)
    atomic.remove_partial(
        self._dir, self._dir / 'metrics', self._dir / snapshot_files.FOLDER
    )
    self._checkpointer = loop.open_checkpoints(self._setup, alone=True)
    # Before any row or file of the run is removed or written over.
    self._notes = loop.notes_to_continue(experiment, self._checkpointer)
    self._evaluator = scoring.make_evaluator(self._setup)
    step = self._checkpointer.latest_step() or 0
    # Asked for none, a run that was trained is scored as it is.
    self._last_step = experiment.train_steps or step
    # The last evaluation is made again whenever the run is.
    self._evals = metrics_files.JsonLines(
        self._dir / metrics_files.EVALUATION,
        min(step, self._last_step - 1),
        together=len(self._evaluator.num_examples),
    )
    # This file says what each process of this run has cost.
    self._processes = metrics_files.JsonLines(
        self._dir / metrics_files.PROCESSES, step
    )
    self._snapshots = snapshots.Snapshots(
        experiment.model,
        self._evaluator.first_rows(snapshots.ROWS_PER_TASK),
        self._setup.mesh,
    )
    atomic.write(self._dir / config_file.FILE, gin.config_str())

  def close(self) -> None:
    self._evals.close()
    self._processes.close()
    self._checkpointer.close()
    self._lock.close()

  def run(self) -> bool:
    """Evaluates the base, trains, evaluates; False if a signal ended it."""
    self._describe()
    base = base_results.of(self._setup, self._evaluator)
    if self._evals.is_empty() and self._experiment.train_steps:
      # The rows come last: without them both are made again.
      self._snapshot(0, {**self._setup.frozen, **self._setup.trainable})
      self._log_results(0, base)
    state = loop.train(
        self._setup, self._checkpointer, self._evaluate_once, self._notes
    )
    if state is None:
      self._log_process()
      step = self._checkpointer.latest_step()
      saved = f'saved at step {step}' if step else 'nothing is saved yet'
      console.print(f'Stopped; {saved}. Run the same command to continue.')
      return False
    params = {**self._setup.frozen, **state.params}
    adapted = self._evaluate(self._last_step, params)
    self._finish(base, adapted, params)
    return True

  def _describe(self) -> None:
    trained, total = loop.count_params(self._setup)
    devices = jax.devices()
    console.print(
        f'{trained:,} of {total:,} parameters train '
        f'({100 * trained / total:.2f} %) on {len(devices)} '
        f'{devices[0].device_kind} device(s); writing to {self._dir}'
    )
    console.print(schedules.describe(
        self._experiment.learning_rate, self._experiment.train_steps
    ))
    if step := self._checkpointer.latest_step():
      console.print(f'Continuing from step {step}.')

  def _evaluate(
      self, step: int, params: Mapping[str, Any]
  ) -> evaluator_lib.Results:
    results = scoring.evaluate(
        self._evaluator, f'step {step}', self._experiment.model, params, step
    )
    self._snapshot(step, params)
    self._log_results(step, results)
    return results

  def _evaluate_once(self, step: int, params: Mapping[str, Any]) -> None:
    if step not in self._evals.steps:
      self._evaluate(step, params)

  def _snapshot(self, step: int, params: Mapping[str, Any]) -> None:
    if weights := self._snapshots.weights(params):
      rows = [snapshot_files.HeldOutRow(*row) for row in self._snapshots.rows()]
      snapshot_files.write(self._dir, step, weights, rows)

  def _log_results(self, step: int, results: evaluator_lib.Results) -> None:
    self._evals.write(*(
        {'step': step, 'task': task, **values}
        for task, values in results.items()
    ))

  def _log_process(self) -> None:
    self._processes.write({
        'step': self._checkpointer.latest_step() or 0,
        'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
        'seconds': round(time.monotonic() - self._start, 1),
        'peak_memory_bytes': metrics.peak_memory_bytes(),
    })

  def _observe_routers(self, params) -> None:
    """Writes which expert each task uses, if any adapter has a router."""
    model, mesh = self._experiment.model, self._setup.mesh
    sample = self._evaluator.sample(_ROUTED_ROWS)
    if not sample or not usage.has_routers(model, params, sample[0][1], mesh):
      return
    progress = progress_lib.Progress('observe routers', len(sample))
    with contextlib.closing(progress):
      measured = usage.measure(model, params, sample, mesh, progress.advance)
    usage_file.Usage.of(*measured).write(self._dir)

  def _finish(self, base, adapted, params) -> None:
    """Writes results, router statistics and the summary."""
    experiment = self._experiment
    results = scoring.results(
        self._evaluator, experiment.eval_split, base, adapted
    )
    results.write(self._dir)
    self._observe_routers(params)
    if cosine := similarity.by_site(params):
      similarity_file.Similarity(cosine).write(self._dir)
    self._log_process()
    self._run_info(adapted).write(self._dir)
    rich.console.Console().print(scoring.table(results))

  def _run_info(self, adapted: evaluator_lib.Results) -> run_file.RunInfo:
    """The summary of the run; its costs are those of all its processes."""
    experiment = self._experiment
    trained, total = loop.count_params(self._setup)
    processes = metrics_files.processes(self._dir)
    return run_file.RunInfo(
        method=_method_names(experiment.model.module.rules),
        mixture_or_task_name=experiment.mixture_or_task_name,
        held_out_tasks=tuple(sorted(
            set(adapted)
            - set(catalog.task_names(experiment.mixture_or_task_name))
        )),
        num_params_total=total,
        num_params_trainable=trained,
        base=self._setup.base,
        steps=self._last_step,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        device=', '.join(
            dict.fromkeys(x.device for x in processes if x.device)
        ),
        seconds=round(sum(x.seconds for x in processes), 1),
        peak_memory_bytes=max(x.peak_memory_bytes for x in processes),
        versions={
            name: importlib.metadata.version(name)
            for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
        },
    )


def _method_names(rules: Sequence[Any]) -> tuple[str, ...]:
  """Names of the adapters' classes; none for full fine-tuning."""
  names = [rule.adapter_factory.__name__ for rule in rules]
  return tuple(dict.fromkeys(names)) or ('full fine-tuning',)

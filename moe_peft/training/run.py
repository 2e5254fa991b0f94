# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One experiment from beginning to end, and what it leaves behind."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import time
from typing import Any, Iterator, Mapping, Optional, Sequence

import gin
import jax
import numpy as np
import rich.console
import rich.table

from moe_peft import checkpoints
from moe_peft import errors
from moe_peft import inject
from moe_peft import trainable
from moe_peft.analysis import report
from moe_peft.analysis import usage
from moe_peft.data import catalog
from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import metrics

_console = rich.console.Console(stderr=True, highlight=False)

STOPPED = 143  # Exit status of a run that saved and stopped at a signal.


def run_experiment() -> Optional[int]:
  """Runs what gin describes; continues it if MODEL_DIR holds its beginning.

  Returns:
    Exit status: None at the end, `STOPPED` after a signal.

  Raises:
    errors.UserError: For anything in the configuration that cannot work.
  """
  use_compilation_cache()
  experiment = build()
  with contextlib.closing(_Run(experiment)) as run:
    return run.run()


def build() -> experiment_lib.Experiment:
  """The experiment that gin describes, its task checked.

  Raises:
    errors.UserError: For an unknown task or lengths that are too short, or
      if no run file configures an Experiment.
  """
  try:
    experiment = gin.get_configurable(experiment_lib.Experiment)()
  except errors.UserError:
    raise
  except (TypeError, RuntimeError, ValueError) as error:
    raise errors.UserError(
        f'The gin files describe no experiment that can be built: {error}\n'
        'Give a model, a method and a run file, in this order, as '
        'configs/quickstart.gin does.'
    ) from error
  catalog.check_feature_lengths(
      experiment.mixture_or_task_name, experiment.task_feature_lengths
  )
  return experiment


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, unless JAX is told where."""
  if jax.config.jax_compilation_cache_dir is not None:
    return
  cache = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
  jax.config.update(
      'jax_compilation_cache_dir', str(Path(cache) / 'moe_peft' / 'jax')
  )


class _Run:
  """An experiment with its folder, its devices and its evaluator."""

  def __init__(self, experiment: experiment_lib.Experiment):
    self._experiment, self._dir = experiment, experiment.run_dir
    self._start = time.monotonic()
    self._setup = experiment_lib.prepare(experiment)
    self._checkpointer = loop.open_checkpoints(self._setup)
    self._evaluator = make_evaluator(self._setup)
    self._evals = metrics.JsonLines(
        self._dir / 'metrics' / 'eval.jsonl',
        self._checkpointer.latest_step() or 0,
    )
    (self._dir / 'config.gin').write_text(gin.config_str(), encoding='utf-8')

  def close(self) -> None:
    self._evals.close()
    self._checkpointer.close()

  def run(self) -> Optional[int]:
    """Evaluates the base, trains, evaluates, reports."""
    self._describe()
    base = self._base_results()
    state = loop.train(self._setup, self._checkpointer, self._evaluate)
    if state is None:
      step = self._checkpointer.latest_step()
      _console.print(
          f'Stopped; saved at step {step}. Run the same command to continue.'
      )
      return STOPPED
    params = {**self._setup.frozen, **state.params}
    adapted = self._evaluate(self._experiment.train_steps, params)
    self._finish(base, adapted, params)
    return None

  def _describe(self) -> None:
    trained, total = loop.count_params(self._setup)
    devices = jax.devices()
    _console.print(
        f'{trained:,} of {total:,} parameters train '
        f'({100 * trained / total:.2f} %) on {len(devices)} '
        f'{devices[0].device_kind} device(s); writing to {self._dir}'
    )
    step = self._checkpointer.latest_step()
    if step:
      _console.print(f'Continuing from step {step}.')

  def _base_results(self) -> evaluator_lib.Results:
    """Results of the bare base, kept for the runs that continue this one."""
    path = self._dir / 'base_results.json'
    if path.exists():
      return json.loads(path.read_text(encoding='utf-8'))
    results = _evaluate_with_progress(
        self._evaluator,
        'base',
        self._experiment.model.without_adapters(),
        _base_params({**self._setup.trainable, **self._setup.frozen}),
    )
    path.write_text(json.dumps(results), encoding='utf-8')
    self._log_results(0, results)
    return results

  def _evaluate(
      self, step: int, params: Mapping[str, Any]
  ) -> evaluator_lib.Results:
    results = _evaluate_with_progress(
        self._evaluator, f'step {step}', self._experiment.model, params, step
    )
    self._log_results(step, results)
    return results

  def _log_results(self, step: int, results: evaluator_lib.Results) -> None:
    for task, values in results.items():
      self._evals.write({'step': step, 'task': task, **values})

  def _finish(self, base, adapted, params) -> None:
    """Writes results, router statistics, the summary and the report."""
    experiment = self._experiment
    primary = {task: catalog.primary_metric(task) for task in adapted}
    evaluator_lib.write_results(
        self._dir / 'results.json',
        experiment.eval_split,
        self._evaluator.num_examples,
        base,
        adapted,
        primary,
    )
    usage.write_routing(
        self._dir / 'routing.json',
        experiment.model,
        params,
        self._evaluator.batches(),
        self._setup.mesh,
    )
    trained, total = loop.count_params(self._setup)
    summary = {
        'method': _method_names(experiment.model.module.rules),
        'mixture_or_task_name': experiment.mixture_or_task_name,
        'num_params_total': total,
        'num_params_trainable': trained,
        'base': self._setup.base,
        'steps': experiment.train_steps,
        'batch_size': experiment.batch_size,
        'seed': experiment.seed,
        'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
        'seconds': round(time.monotonic() - self._start, 1),
        'versions': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'seqio')
        },
    }
    # Last: who finds it knows that the run is finished.
    (self._dir / 'run.json').write_text(
        json.dumps(summary, indent=2) + '\n', encoding='utf-8'
    )
    page = report.write_report([self._dir], self._dir / 'report.html')
    rich.console.Console().print(results_table(base, adapted, primary))
    _console.print(f'Report: {page}')


def _method_names(rules: Sequence[inject.AdapterRule]) -> list[str]:
  """Names of the adapters' classes; none for full fine-tuning."""
  names = [rule.adapter_factory.__name__ for rule in rules]
  return list(dict.fromkeys(names)) or ['full fine-tuning']


def make_evaluator(setup: experiment_lib.Setup) -> evaluator_lib.Evaluator:
  """The evaluator of an experiment."""
  experiment = setup.experiment
  return evaluator_lib.Evaluator(
      experiment.mixture_or_task_name,
      experiment.task_feature_lengths,
      experiment.eval_split,
      experiment.eval_batch_size,
      experiment.eval_examples,
      setup.mesh,
  )


def _evaluate_with_progress(evaluator, title, model, params, step=0):
  progress = metrics.Progress(f'evaluate {title}', evaluator.num_batches())
  with contextlib.closing(progress):
    return evaluator.evaluate(model, params, step, progress.advance)


def _base_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """The flat parameters that are not of adapters."""
  return {k: v for k, v in params.items() if not trainable.is_adapter(k)}


def results_table(
    base: evaluator_lib.Results,
    adapted: evaluator_lib.Results,
    primary: Mapping[str, str],
) -> rich.table.Table:
  """The table that a run ends with: task, metric, base, adapted."""
  table = rich.table.Table()
  table.add_column('task')
  table.add_column('metric')
  table.add_column('base', justify='right')
  table.add_column('adapted', justify='right')
  for task, metric in primary.items():
    table.add_row(
        task, metric, f'{base[task][metric]:.1f}', f'{adapted[task][metric]:.1f}'
    )
  return table


def evaluate_run(split: str) -> None:
  """Scores the newest checkpoint of the configured run, and its base.

  Args:
    split: Split of the tasks.

  Raises:
    errors.UserError: If there is no checkpoint or no such split.
  """
  use_compilation_cache()
  experiment = dataclasses.replace(build(), eval_split=split)
  setup, params = _restore(experiment)
  evaluator = make_evaluator(setup)
  results = {}
  for title, model, values in (
      ('base', experiment.model.without_adapters(), _base_params(params)),
      ('adapted', experiment.model, params),
  ):
    results[title] = _evaluate_with_progress(evaluator, title, model, values)
  primary = {task: catalog.primary_metric(task) for task in results['base']}
  evaluator_lib.write_results(
      experiment.run_dir / f'results_{split}.json',
      split,
      evaluator.num_examples,
      results['base'],
      results['adapted'],
      primary,
  )
  rich.console.Console().print(results_table(**results, primary=primary))


def infer(lines: Sequence[str], **decoding_options: Any) -> Iterator[str]:
  """Answers lines with the newest checkpoint of the configured run.

  Args:
    lines: Inputs, as the tasks write them.
    **decoding_options: Of `EncoderDecoderModel.generate`.

  Yields:
    One answer for each line.

  Raises:
    errors.UserError: For a line that is longer than TASK_FEATURE_LENGTHS.
  """
  use_compilation_cache()
  experiment = build()
  length = experiment.task_feature_lengths['inputs']
  vocabulary = experiment.model.input_vocabulary
  encoded = [[*vocabulary.encode(line), vocabulary.eos_id] for line in lines]
  for number, ids in enumerate(encoded, start=1):
    if len(ids) > length:
      raise errors.UserError(
          f'Line {number} has {len(ids)} tokens; the run reads at most '
          f'{length} (TASK_FEATURE_LENGTHS). Shorten it.'
      )
  setup, params = _restore(experiment)
  generate = jax.jit(
      lambda params, tokens: experiment.model.generate(
          trainable.unflatten(params),
          tokens,
          experiment.task_feature_lengths['targets'],
          **decoding_options,
      )
  )
  size = experiment.eval_batch_size
  for start in range(0, len(encoded), size):
    part = encoded[start : start + size]
    tokens = np.zeros((size, length), np.int32)
    for row, ids in enumerate(part):
      tokens[row, : len(ids)] = ids
    with setup.context():
      answers = jax.device_get(generate(params, tokens))
    for ids in answers[: len(part)]:
      yield experiment.model.output_vocabulary.decode(ids.tolist())


def save_base(folder: Path) -> None:
  """Writes the configured run's parameters, adapters excepted, as a base."""
  _, params = _restore(build())
  file = checkpoints.save_base(jax.device_get(_base_params(params)), folder)
  _console.print(f'{file}: {file.stat().st_size / 1e6:.1f} MB')


def _restore(experiment: experiment_lib.Experiment):
  """The experiment on its devices and its newest flat parameters."""
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    return setup, loop.restore_params(setup, checkpointer)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of an experiment and of its base: measured, compared and shown."""

from collections.abc import Mapping
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import rich.table

from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.data import example_ids
from moe_peft.data import vocabulary_checks
from moe_peft.evaluation import batches
from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.evaluation import shown_values
from moe_peft.models import language_model
from moe_peft.runs import results_file
from moe_peft.runs import row_scores
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import memory
from moe_peft.training import progress as progress_lib

# The table of token embeddings, in our networks and in those of T5X.
_EMBEDDING = 'token_embedder/embedding'


def make_evaluator(setup: experiment_lib.Setup) -> evaluator_lib.Evaluator:
  """The evaluator of an experiment.

  Raises:
    errors.UserError: If a task has another vocabulary than the model, or the
      vocabulary more ids than the model's embedding has rows.
  """
  experiment = setup.experiment
  model, params = experiment.model, {**setup.trainable, **setup.frozen}
  vocabularies = {
      'inputs': model.input_vocabulary, 'targets': model.output_vocabulary
  }
  if _EMBEDDING in params:
    num_rows = params[_EMBEDDING].shape[0]
    for name in {experiment.mixture_or_task_name, experiment.eval_name}:
      vocabulary_checks.check(name, vocabularies, num_rows)
  return evaluator_lib.Evaluator(
      example_ids.with_ids(experiment.eval_name, experiment.example_ids),
      converters.of_model(experiment.model),
      experiment.task_feature_lengths,
      experiment.eval_split,
      experiment.eval_batch_size,
      experiment.eval_examples,
      setup.mesh,
  )


def check(setup: experiment_lib.Setup) -> None:
  """Checks that the scores of a batch fit into memory; computes nothing.

  The batch is as short as `batches.short` makes any: how long rows are is not
  known before they are read.

  Raises:
    errors.UserError: If they cannot.
  """
  experiment = setup.experiment
  rows, model = experiment.eval_batch_size, experiment.model
  lengths = converters.of_model(model).get_model_feature_lengths(
      experiment.task_feature_lengths
  )
  if experiment.example_ids is not None:
    lengths = converters.with_ids(lengths, pack=False)
  batch = {
      name: jax.ShapeDtypeStruct(
          (rows, min(length, batches.LENGTH_STEP)), jnp.int32
      )
      for name, length in lengths.items()
  }
  with setup.context():
    program = jax.make_jaxpr(
        lambda params, batch: model.score(trainable.unflatten(params), batch)
    )({**setup.trainable, **setup.frozen}, batch)
  memory.check_products(
      program.jaxpr, rows, 'EVAL_BATCH_SIZE', setup.mesh.devices.flat
  )


def base_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """The flat parameters that are not of adapters."""
  return {k: v for k, v in params.items() if not trainable.is_adapter(k)}


def evaluate(
    evaluator: evaluator_lib.Evaluator,
    title: str,
    model: language_model.LanguageModel,
    params: Mapping[str, Any],
    step: int = 0,
) -> evaluator_lib.Results:
  """As `Evaluator.evaluate`, with a progress line."""
  progress = progress_lib.Progress(
      f'evaluate {title}', evaluator.num_batches()
  )
  with contextlib.closing(progress):
    return evaluator.evaluate(model, params, step, progress.advance)


def results(
    evaluator: evaluator_lib.Evaluator,
    split: str,
    base: evaluator_lib.Results,
    adapted: evaluator_lib.Results,
) -> results_file.Results:
  """What `results.json` holds of an evaluation of a run and of its base."""
  primary = shown_values.primary_metrics(adapted)
  rows = {
      task: row_scores.pack(getattr(adapted[task][metric], 'rows', ()))
      for task, metric in primary.items()
  }
  return results_file.Results(
      split=split,
      num_examples=evaluator.num_examples,
      base=base,
      adapted=adapted,
      primary_metric=primary,
      constant_answer=evaluator.constant_answer,
      questions_cut=evaluator.questions_cut,
      lower_is_better=shown_values.lower_is_better(adapted),
      rows={task: packed for task, packed in rows.items() if packed},
  )


def table(of: results_file.Results) -> rich.table.Table:
  """The primary metric of each task, and its loss: constant answer, base, run.

  The loss, in nats a token, tells models apart whose answers are never exactly
  those of the data.
  """
  columns = {
      'constant': of.constant_answer, 'base': of.base, 'adapted': of.adapted
  }
  shown = rich.table.Table('task', 'metric')
  for name in columns:
    shown.add_column(name, justify='right')
  for task, primary in of.primary_metric.items():
    measured = of.adapted.get(task, {})
    for metric in dict.fromkeys((primary, *({'loss'} & measured.keys()))):
      values = [x.get(task, {}).get(metric) for x in columns.values()]
      digits = 3 if metric == 'loss' else 1
      cells = ('–' if x is None else f'{x:.{digits}f}' for x in values)
      shown.add_row(task if metric == primary else '', metric, *cells)
  return shown

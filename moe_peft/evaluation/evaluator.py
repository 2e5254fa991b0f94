# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on the tasks of a mixture, by SeqIO's evaluator.

The tasks say what is measured: metrics of generated text, or of scored answer
choices (rank classification). The same tasks give the same numbers under T5X.
"""

from collections.abc import Callable, Mapping
import functools
import hashlib
from typing import Any

import jax
import numpy as np
import rich.console
import seqio

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.core import tokens
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.data import metrics as metrics_lib
from moe_peft.evaluation import batches
from moe_peft.evaluation import constant_answer
from moe_peft.evaluation import coverage
from moe_peft.evaluation import task_checks
from moe_peft.models import language_model

Params = Mapping[str, Any]
Results = dict[str, dict[str, float]]


class Evaluator:
  """Evaluates parameters on all tasks of a mixture."""

  def __init__(
      self,
      mixture_or_task_name: str,
      feature_converter: seqio.FeatureConverter,
      task_feature_lengths: Mapping[str, int],
      split: str,
      batch_size: int,
      num_examples: int | None,
      mesh: jax.sharding.Mesh,
  ):
    """Reads the examples.

    Args:
      mixture_or_task_name: What is evaluated.
      feature_converter: Converter of the model, without packing.
      task_feature_lengths: Padded lengths.
      split: `validation` or `test`.
      batch_size: Rows of a batch; the last one is filled up.
      num_examples: Examples of each task at most.
      mesh: Where the model runs.

    Raises:
      errors.UserError: A task has nothing to evaluate, or a metric that takes
        more than a text or a score.
    """
    self._seqio = seqio.Evaluator(
        mixture_or_task_name,
        feature_converter,
        eval_split=split,
        sequence_length=task_feature_lengths,
        num_examples=num_examples,
        use_cached=catalog.reads_cache(mixture_or_task_name),
    )
    self._batch_size, self._mesh = batch_size, mesh
    self._lengths = task_feature_lengths
    self._compiled: dict[int, Any] = {}
    for task in self._seqio.eval_tasks:
      task_checks.check(
          task, split, self.num_examples[task.name],
          self._seqio.cached_task_datasets[task.name], task_feature_lengths,
      )
    self.questions_cut = {
        task.name: cut
        for task in self._seqio.eval_tasks
        if (cut := coverage.questions_cut(task, split, task_feature_lengths))
    }
    if warning := coverage.warning(
        self.questions_cut, split, task_feature_lengths
    ):
      console = rich.console.Console(stderr=True, highlight=False)
      console.print(warning, soft_wrap=True)

  @property
  def num_examples(self) -> dict[str, int]:
    """Number of rows of every task (answer choices count one each)."""
    return {
        task.name: self._seqio.cached_model_datasets[task.name]
        .cardinality().numpy().item()
        for task in self._seqio.eval_tasks
    }

  @functools.cached_property
  def fingerprint(self) -> str:
    """Identity of what is scored: the tasks, their metrics, their examples."""
    digest = hashlib.sha256()
    for task in self._seqio.eval_tasks:
      metrics = [getattr(fn, '__name__', fn) for fn in task.metric_fns]
      digest.update(f'{task.name} {metrics}'.encode())
      dataset = self._seqio.cached_task_datasets[task.name]
      for example in dataset.as_numpy_iterator():
        example.pop(tokens.EXAMPLE_IDS, None)  # The base does not read them.
        features = {k: np.asarray(x).tolist() for k, x in example.items()}
        digest.update(repr(sorted(features.items())).encode())
    return digest.hexdigest()

  @functools.cached_property
  def constant_answer(self) -> Results:
    """Results of always giving the same answer to these examples.

    Tasks of which no metric has such a value are left out.
    """
    datasets = self._seqio.cached_task_datasets
    results = {
        task.name: constant_answer.measure(
            task, datasets[task.name].as_numpy_iterator()
        )
        for task in self._seqio.eval_tasks
    }
    return {task: values for task, values in results.items() if values}

  def num_batches(self) -> int:
    """Number of batches that `evaluate` runs."""
    rows = self.num_examples
    return sum(
        -(-rows[task.name] // self._batch_size)
        * len(task_checks.output_types(task))
        for task in self._seqio.eval_tasks
    )

  def evaluate(
      self,
      model: language_model.LanguageModel,
      params: Params,
      step: int = 0,
      on_batch: Callable[[], None] = lambda: None,
  ) -> Results:
    """Returns `{task: {metric: value}}`.

    Besides what the tasks measure, tasks that generate get `loss`, in nats per
    target token.

    Args:
      model: The model.
      params: Its flat parameters.
      step: Step that the logs of SeqIO name.
      on_batch: Called after each batch.
    """
    score, generate = self._functions(model)

    def outputs(function, split, dataset, *unused_args):
      found = []
      for indices, batch in split(dataset, self._batch_size):
        rows = jax.device_get(function(params, batch))
        found.extend(zip(indices, rows[: len(indices)], strict=True))
        on_batch()
      return found

    with partitioning.use_mesh(self._mesh):
      metrics, _ = self._seqio.evaluate(
          compute_metrics=True,
          step=step,
          score_fn=functools.partial(outputs, score, batches.short),
          predict_fn=functools.partial(outputs, generate, batches.whole),
      )
      losses = {
          task.name: self._loss(task.name, functools.partial(score, params))
          for task in self._seqio.eval_tasks
          if seqio.metrics.ModelOutputType.SCORE
          not in task_checks.output_types(task)
      }
    return {
        task: values | ({'loss': losses[task]} if task in losses else {})
        for task, values in _computed(metrics).items()
    }

  def _loss(self, task: str, score: Callable[[Any], jax.Array]) -> float:
    """Mean negative log-likelihood of the targets, nats per token."""
    total = tokens = 0.0
    dataset = self._seqio.cached_model_datasets[task]
    for _, batch in batches.short(dataset, self._batch_size):
      total -= float(score(batch).sum())
      tokens += float(batch['decoder_loss_weights'].sum())
    return total / tokens

  def sample(self, num_rows: int) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Some rows of every task as (task, features), batched as for scores.

    Args:
      num_rows: About as many of each task, in whole batches: evenly from its
        shortest rows to its longest.
    """
    sampled = []
    for task in self._seqio.eval_tasks:
      dataset = self._seqio.cached_model_datasets[task.name]
      found = [x for _, x in batches.short(dataset, self._batch_size)]
      count = min(len(found), -(-num_rows // self._batch_size))
      sampled += [
          (task.name, found[(2 * i + 1) * len(found) // (2 * count)])
          for i in range(count)
      ]
    return sampled

  def first_rows(self, count: int) -> dict[str, dict[str, np.ndarray]]:
    """The first rows of every task as one batch each; of choices the answers.

    Args:
      count: Rows of a batch, filled up with padding.

    Returns:
      Model features by task, <int32>[count, length].
    """
    first = {}
    for task in self._seqio.eval_tasks:
      rows = []
      for example, (_, row) in zip(
          self._seqio.cached_task_datasets[task.name].as_numpy_iterator(),
          self._seqio.cached_model_datasets[task.name].as_numpy_iterator(),
          strict=True,
      ):
        if example.get('is_correct', True):
          rows.append({k: x for k, x in row.items() if np.ndim(x)})
        if len(rows) == count:
          break
      rows += [jax.tree.map(np.zeros_like, rows[0])] * (count - len(rows))
      first[task.name] = jax.tree.map(lambda *x: np.stack(x), *rows)
    return first

  def _functions(self, model: language_model.LanguageModel):
    """Compiled score and generate, made once for each model."""
    if id(model) not in self._compiled:
      sharded = partitioning.batch_sharding(self._mesh)

      def score(params, batch):
        return model.score(trainable.unflatten(params), batch)

      def generate(params, batch):
        return model.generate(
            trainable.unflatten(params),
            model.prompts(batch)[:, : self._lengths['inputs']],
            self._lengths['targets'],
            example_ids=batch.get(tokens.EXAMPLE_IDS),
        )

      self._compiled[id(model)] = tuple(
          jax.jit(function, in_shardings=(None, sharded))
          for function in (score, generate)
      )
    return self._compiled[id(model)]


def _computed(metrics: Any) -> Results:
  """Waits for the future of SeqIO's metrics.

  Raises:
    errors.UserError: What a metric raises; SeqIO wraps it.
  """
  try:
    computed = metrics.result()
  except ValueError as error:
    cause = error.__cause__
    if isinstance(cause, errors.UserError):
      raise errors.UserError(str(error), cause.where, cause.remedy) from error
    raise
  return {
      task: {name: _value(value) for name, value in values.items()}
      for task, values in computed.items()
  }


def _value(metric: Any) -> float:
  value = getattr(metric, 'value', metric)
  return value if isinstance(value, metrics_lib.RowMean) else float(value)

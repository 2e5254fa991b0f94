# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is done with a run that was trained: score, answer, become a base."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console

from moe_peft import atomic
from moe_peft import errors
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.data import example_ids as example_ids_lib
from moe_peft.data import prompts as prompts_lib
from moe_peft.training import bases
from moe_peft.training import compilation
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from moe_peft.training import scoring


def evaluate_run(split: str | None = None) -> None:
  """Scores the newest checkpoint of the configured run, and its base.

  Args:
    split: Split of the tasks; by default `test`, or EVAL_SPLIT if they have
      none.

  Raises:
    errors.UserError: If there is no checkpoint or no such split.
  """
  experiment = run.build(split)
  compilation.use_cache(experiment.compilation_cache_dir)
  if split is None and 'test' in catalog.splits_of(experiment.eval_name):
    experiment = dataclasses.replace(experiment, eval_split='test')
  split = experiment.eval_split
  setup, params = restore(experiment, checks=(scoring.check,))
  evaluator = scoring.make_evaluator(setup)
  # `params` would not do: full fine-tuning has changed their base.
  base = scoring.base_params({**setup.trainable, **setup.frozen})
  results = scoring.results(
      evaluator,
      split,
      scoring.evaluate(
          evaluator, 'base', experiment.model.without_adapters(), base
      ),
      scoring.evaluate(evaluator, 'adapted', experiment.model, params),
  )
  file = f'results_{split}.json'
  results.write(experiment.run_dir, file)
  rich.console.Console().print(scoring.table(results))
  print(f'{experiment.run_dir / file}: written')


def infer(
    lines: Sequence[str],
    talks: bool = False,
    example_ids: Sequence[Any] | None = None,
    **decoding_options: Any,
) -> Iterator[str]:
  """Answers lines with the newest checkpoint of the configured run.

  Args:
    lines: Inputs, as the tasks write them.
    talks: Whether lines are what users say, or conversations as JSON.
    example_ids: A name or number for each line, or None, for runs with
      EXAMPLE_IDS.
    **decoding_options: Options of `LanguageModel.generate`.

  Yields:
    One answer for each line.

  Raises:
    errors.UserError: For a line that is longer than TASK_FEATURE_LENGTHS, for
      an empty one if the model needs a token to begin with, and for a line
      whose id is missing or unknown.
  """
  experiment = run.build()
  compilation.use_cache(experiment.compilation_cache_dir)
  told = example_ids_lib.of_prompts(
      example_ids or [None] * len(lines), experiment.example_ids
  )
  encoded, length = _encode(lines, talks, experiment)
  setup, params = restore(experiment)
  rng = decoding_options.pop('rng', None)
  generate = jax.jit(
      lambda params, tokens, ids, start: experiment.model.generate(
          trainable.unflatten(params),
          tokens,
          experiment.task_feature_lengths['targets'],
          example_ids=ids,
          # A key for each batch: equal lines get samples of their own.
          rng=None if rng is None else jax.random.fold_in(rng, start),
          **decoding_options,
      )
  )
  size = experiment.eval_batch_size
  for start in range(0, len(encoded), size):
    part = encoded[start : start + size]
    tokens = np.zeros((size, length), np.int32)
    for row, prompt in enumerate(part):
      tokens[row, : len(prompt)] = prompt
    ids = None
    if told is not None:
      ids = np.zeros((size, 1), np.int32)
      ids[: len(part), 0] = told[start : start + size]
    with setup.context():
      answers = jax.device_get(generate(params, tokens, ids, start))
    for answer in answers[: len(part)]:
      yield experiment.model.output_vocabulary.decode(answer.tolist())


def _encode(
    lines: Sequence[str], talks: bool, experiment: experiment_lib.Experiment
) -> tuple[list[Sequence[int]], int]:
  """The tokens of lines, and how many a line may have; raises as `infer`."""
  prompts = prompts_lib.of_task(
      experiment.mixture_or_task_name, experiment.model.input_vocabulary, talks
  )
  encoded = [
      prompts.of_line(line, f'line {number}') if talks
      else prompts.of_text(line)
      for number, line in enumerate(lines, start=1)
  ]
  lengths = experiment.task_feature_lengths
  # All turns of a conversation may be targets.
  length = sum(lengths.values()) if talks else lengths['inputs']
  for number, prompt in enumerate(encoded, start=1):
    if not prompt and experiment.model.start_id is None:
      raise errors.UserError(
          'The line is empty, and rows of this model begin with a token of the '
          'text.', where=f'line {number}',
      )
    if len(prompt) > length:
      raise errors.UserError(
          f'The line has {len(prompt)} tokens, and the run reads at most '
          f'{length} (TASK_FEATURE_LENGTHS).',
          where=f'line {number}',
          remedy='Shorten it.',
      )
  return encoded, length


def save_base(out: Path, force: bool = False, t5x: bool = False) -> None:
  """Writes the configured run's parameters, adapters excepted, as a base.

  Args:
    out: Folder to write; appears when it is whole.
    force: As in `atomic.new_folder`.
    t5x: As in `bases.save_base`.

  Raises:
    errors.UserError: If the folder is taken, or there is no checkpoint.
  """
  with atomic.new_folder(out, 'OUT', force) as folder:
    experiment = run.build()
    # A base that was quantized is read again as floats.
    dtype = quantized.float_dtype(experiment.base_dtype)
    _, params = restore(dataclasses.replace(experiment, base_dtype=dtype))
    values = jax.device_get(scoring.base_params(params))
    path = bases.save_base(values, folder, t5x).relative_to(folder.absolute())
  size = sum(x.stat().st_size for x in out.rglob('*') if x.is_file())
  run.console.print(f'{out / path}: {size / 1e6:.1f} MB')


def restore(
    experiment: experiment_lib.Experiment, **options: Any
) -> tuple[experiment_lib.Setup, Mapping[str, Any]]:
  """The experiment on its devices and its newest flat parameters.

  Args:
    experiment: The experiment.
    **options: Options of `experiment.prepare`.

  Raises:
    errors.UserError: If there is no checkpoint.
  """
  setup = experiment_lib.prepare(experiment, **options)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    return setup, loop.restore_params(setup, checkpointer)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generated tokens per second, with and without adapters."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import seqio

from benchmarks import devices
from benchmarks import experiments
from benchmarks import tables
from benchmarks import timing
from moe_peft.core import trainable
from moe_peft.models import language_model
from moe_peft.training import experiment as experiment_lib

BARE = 'no adapters'
SEARCHES = {'greedy': 1, '4 beams': 4}  # Numbers of beams.
METHODS = {'LoRA': 'lora', 'MoLoRA': 'molora', 'MoV': 'mov', 'SiRA': 'sira'}
COLUMNS = (
    tables.MILLISECONDS,
    tables.FASTEST,
    tables.Column('tokens_per_second', 'tokens/s', ',.0f'),
    tables.Column(
        'adapter_seconds_per_token', 'adapters, us per token', ',.0f', 1e6
    ),
    tables.Column('over_bare', '/ no adapters'),
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """T5 Small, or with `quick` one layer, one method, greedy."""
  if options.quick:
    return [
        measure(
            't5_1_1_small', (64, 16), 8, ('MoLoRA',), 3, options, progress,
            experiments.ONE_LAYER, ('greedy',),
        )
    ]
  return [
      measure(
          't5_1_1_small', (256, 64), 8, tuple(METHODS), 5, options, progress
      )
  ]


def measure(
    model: str,
    lengths: tuple[int, int],
    batch_size: int,
    methods: tuple[str, ...],
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    bindings: Mapping[str, Any] | None = None,
    searches: Sequence[str] = tuple(SEARCHES),
) -> tables.Table:
  """One table.

  Args:
    model: File of gin/models/.
    lengths: Tokens of inputs and of what is generated.
    batch_size: Rows.
    methods: Methods of `METHODS`.
    rounds: Timed calls of each case.
    options: Options of the command line.
    progress: Told what is being done.
    bindings: Further gin bindings.
    searches: Searches of `SEARCHES`.
  """
  rows = []
  cases: dict[str, timing.Compiled] = {}
  for method in methods:
    progress(f'compile {method}')
    experiment = experiments.build(
        model, METHODS[method], lengths, batch_size, bindings
    )
    for search in searches:
      num_beams = SEARCHES[search]
      if f'{search}, {BARE}' not in cases:
        cases[f'{search}, {BARE}'] = generation(
            experiment, experiment.model.without_adapters(), num_beams
        )
      cases[f'{search}, {method}'] = generation(
          experiment, experiment.model, num_beams
      )
  seconds = timing.interleave(cases, rounds, progress)
  num_tokens = batch_size * lengths[1]
  for case, of_case in seconds.items():
    bare = seconds[f'{case.split(",")[0]}, {BARE}']['fastest']
    rows.append({
        'case': case,
        **of_case,
        'tokens_per_second': num_tokens / of_case['seconds'],
        'over_bare': of_case['fastest'] / bare,
        'adapter_seconds_per_token': (of_case['fastest'] - bare) / num_tokens,
    })
  rows.sort(key=lambda row: row['case'].split(',')[0])
  return tables.Table(
      'decode',
      f'Decoding: {model}, batch {batch_size}, prompts of {lengths[0]} tokens, '
      f'{lengths[1]} generated, float32{experiments.describe(bindings)}, '
      f'{devices.describe(options.threads)}',
      COLUMNS, rows,
      ('The encoder is part of the time. No row ends early.',),
  )


def generation(
    experiment: experiment_lib.Experiment,
    model: language_model.LanguageModel,
    num_beams: int,
) -> timing.Compiled:
  """Compiles the generation of a batch.

  Args:
    experiment: The one that gin has just built.
    model: Its model, or that without adapters.
    num_beams: 1 is greedy.
  """
  # No token ends a sequence, so all cases do the same number of steps.
  size = experiment.model.module.module.config.vocab_size
  endless = seqio.PassThroughVocabulary(size, eos_id=-1)
  model = dataclasses.replace(model, output_vocabulary=endless)
  prompts = experiments.random_batch(experiment)['encoder_input_tokens']
  generate = functools.partial(
      model.generate,
      max_decode_length=experiment.task_feature_lengths['targets'],
      num_beams=num_beams,
  )
  setup = experiments.prepare(dataclasses.replace(
      experiment, model=model, trainable_regex='.*'
  ))
  return timing.Compiled(
      lambda params, prompts: generate(trainable.unflatten(params), prompts),
      setup.trainable,
      prompts,
  )

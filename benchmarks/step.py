# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole training step of the embedded engine: T5, and a decoder alone.

The floor of a step's work is what no method can do without: the forward pass
of the frozen network, the gradients of its activations, and three times the
adapters' own forward pass. A step above it computes what it need not.
"""

import contextlib
import dataclasses
import functools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp

from benchmarks import devices
from benchmarks import experiments
from benchmarks import peers
from benchmarks import published
from benchmarks import tables
from benchmarks import timing
from moe_peft import inject
from moe_peft import trainable
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import train_step

FULL, LORA, MOLORA = 'full fine-tuning', 'LoRA', 'MoLoRA'
PUBLISHED = 'published MoLoRA formula'
EMBEDDING = 'token_embedder/embedding'
COLUMNS = (
    tables.Column('seconds', 's, median'),
    tables.Column('fastest', 'fastest'),
    tables.Column('over_lora', '/ LoRA'),
    tables.Column('over_full', '/ full'),
    tables.Column('tokens_per_second', 'tokens/s', ',.0f'),
    tables.PEAK,
    tables.Column('peak_over_full', 'peak / full'),
    tables.TEMP,
    tables.Column('process_mib', 'process MiB', ',.0f'),
    tables.Column('optimizer_mib', 'optimizer MiB', ',.2f'),
    tables.Column('compile_seconds', 'compile s', '.1f'),
    tables.GFLOP,
    tables.Column('over_floor', '/ floor'),
    tables.RATE,
    tables.SHARE,
    tables.PARAMETERS,
)
NOTE = (
    'peak: arguments and temporary memory, by XLA; process: growth of the '
    "process. floor: forward, input gradients, adapters; by XLA's count. "
    'LoRA: as many trained parameters as MoLoRA, or just fewer.'
)

# The decoder alone: mixtures in the MLPs and LoRA on the attention, as
# MoE-PEFT's LoRAMoE has it. 708,608 parameters train.
DECODER = {
    'vocab_size': 32000,
    'emb_dim': 256,
    'mlp_dim': 1024,
    'num_layers': 4,
    'num_heads': 4,
    'head_dim': 64,
    'num_experts': 10,
    'rank': 4,
    'lora_rank': 30,
}


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """T5 Small and the decoder, or with `quick` one layer of each."""
  if options.quick:
    return [
        measure_t5(
            't5_1_1_small', (64, 16), 8, 3, options, progress,
            experiments.ONE_LAYER,
        ),
        measure_decoder(
            DECODER | {'num_layers': 1, 'vocab_size': 4000},
            4, 64, 3, options, progress,
        ),
    ]
  return [
      measure_t5('t5_1_1_small', (256, 64), 8, 5, options, progress),
      measure_decoder(DECODER, 4, 256, 7, options, progress),
  ]


class Step:
  """A training step with its state; calling it times one step.

  Attributes:
    setup: The experiment on its devices.
  """

  def __init__(self, experiment: experiment_lib.Experiment):
    """Compiles the step.

    Args:
      experiment: The one that gin has just built.
    """
    self.setup = experiments.prepare(experiment)
    self._state = train_step.init_state(self.setup)
    self._batch = experiments.random_batch(experiment)
    with self.setup.context():
      compiled = timing.Compiled(
          train_step.make_train_step(self.setup),
          self._state,
          self.setup.frozen,
          self._batch,
      )
    self._step = compiled.compiled
    facts = compiled.facts()
    # XLA counts what one device does.
    facts['gflop'] *= self.setup.mesh.size
    self._facts = {
        **facts,
        'compile_seconds': compiled.compile_seconds,
        'parameters': trainable.num_params(self.setup.trainable),
        'optimizer_mib': sum(
            x.nbytes for x in jax.tree.leaves(self._state.opt_state)
        ) / 2**20,
    }

  def __call__(self) -> float:
    self._run()
    return timing.seconds_of(self._run)

  def _run(self) -> Any:
    # The old state is donated: nothing may hold it.
    with self.setup.context():
      self._state, metrics = self._step(
          self._state, self.setup.frozen, self._batch
      )
    return metrics

  def facts(self) -> dict[str, float]:
    """What is known without running it."""
    return self._facts

  @property
  def num_tokens(self) -> int:
    """Tokens of a step, inputs and targets."""
    return experiments.num_tokens(self._batch)


def measure_t5(
    model: str,
    lengths: tuple[int, int],
    batch_size: int,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    bindings: Mapping[str, Any] | None = None,
) -> tables.Table:
  """Full fine-tuning, LoRA and mixtures on an encoder-decoder.

  Args:
    model: File of gin/models/.
    lengths: Tokens of inputs and targets.
    batch_size: Rows.
    rounds: Timed steps of each case.
    options: Of the command line.
    progress: Told what is being done.
    bindings: Further gin bindings.
  """
  build = functools.partial(
      experiments.build, model, lengths=lengths, batch_size=batch_size
  )
  progress('compile floor')
  floor = frozen_gflop(build('full', bindings=bindings))
  cases, floors = {}, {}
  for name, method in (
      (MOLORA, 'molora'), (LORA, 'lora'), ('MoV', 'mov'), ('SiRA', 'sira'),
      (FULL, 'full'),
  ):
    progress(f'compile {name}')
    of_method = dict(bindings or {})
    if method == 'lora':
      of_method['PARAM_BUDGET'] = cases[MOLORA].facts()['parameters']
    experiment = build(method, bindings=of_method)
    if method != 'full':
      floors[name] = floor + 3 * adapter_gflop(experiment)
    cases[name] = Step(experiment)
  sizes = t5_sizes(cases[LORA].setup, lengths, batch_size)
  torch_cases = {'PyTorch: PEFT LoRA': ('t5/peft_lora', sizes)}
  return _table(
      'step',
      f'Training step: {model}, encoder {lengths[0]}, decoder {lengths[1]}, '
      f'batch {batch_size}, float32{experiments.describe(bindings)}, '
      f'{devices.describe(options.threads)}',
      cases, torch_cases, floors, rounds, options, progress,
  )


def measure_decoder(
    sizes: Mapping[str, int],
    batch_size: int,
    length: int,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
) -> tables.Table:
  """MoLoRA in a LLaMA's MLPs and LoRA on its attention, against peers.

  Args:
    sizes: As `DECODER`.
    batch_size: Rows.
    length: Tokens of a row.
    rounds: Timed steps of each case.
    options: Of the command line.
    progress: Told what is being done.
  """
  experiment = experiments.build(
      'tiny_llama', 'lora', (length // 2, length - length // 2), batch_size,
      {
          'llama.LlamaConfig.logits_via_embedding': False,
          'llama.LlamaConfig.num_kv_heads': sizes['num_heads'],
          **{
              f'llama.LlamaConfig.{name}': sizes[name]
              for name in ('vocab_size', 'emb_dim', 'mlp_dim', 'num_layers',
                           'num_heads', 'head_dim')
          },
      },
  )
  cases, floors = {}, {}
  progress('compile floor')
  floor = frozen_gflop(experiment)
  for name, rules in decoder_rules(sizes).items():
    progress(f'compile {name}')
    adapted = with_rules(experiment, rules)
    floors[name] = floor + 3 * adapter_gflop(adapted)
    cases[name] = Step(adapted)
  del floors[PUBLISHED]  # Not a floor: the formula itself is the waste.
  torch_sizes = {**sizes, 'tokens': [batch_size, length]}
  return _table(
      'decoder_step',
      f'Training step of a decoder alone: {sizes["num_layers"]} layers of '
      f'{sizes["emb_dim"]} ({sizes["mlp_dim"]} in the MLP), vocabulary '
      f'{sizes["vocab_size"]}, batch {batch_size} x {length} tokens, mixtures '
      f'of E {sizes["num_experts"]}, r {sizes["rank"]} in the MLPs, LoRA of '
      f'r {sizes["rank"]} on the attention, float32, '
      f'{devices.describe(options.threads)}',
      cases,
      {
          'PyTorch: PEFT LoRA': ('llama/peft_lora', torch_sizes),
          'PyTorch: MoE-PEFT LoRAMoE': ('llama/loramoe', torch_sizes),
      },
      floors, rounds, options, progress,
  )


def decoder_rules(
    sizes: Mapping[str, int],
) -> dict[str, tuple[inject.AdapterRule, ...]]:
  """The adapters of the decoder's cases, by name."""
  attention, mlp = '.*/(query|key|value|out)', '.*/(wi_0|wi_1|wo)'
  rank, num_experts = sizes['rank'], sizes['num_experts']
  plain = lambda rank: functools.partial(lora.LoRA, rank=rank)

  def mixtures(method):
    experts = functools.partial(method, num_experts=num_experts, rank=rank)
    return (
        inject.AdapterRule(attention, plain(rank)),
        inject.AdapterRule(mlp, experts),
    )

  return {
      MOLORA: mixtures(molora.MoLoRA),
      LORA: (
          inject.AdapterRule(
              f'{attention}|{mlp}', plain(sizes['lora_rank'])
          ),
      ),
      PUBLISHED: mixtures(published.PublishedMoLoRA),
  }


def with_rules(
    experiment: experiment_lib.Experiment,
    rules: tuple[inject.AdapterRule, ...],
) -> experiment_lib.Experiment:
  """The same experiment with other adapters."""
  model = experiment.model
  model = dataclasses.replace(model, module=model.module.clone(rules=rules))
  return dataclasses.replace(experiment, model=model)


def _table(
    name, title, cases, torch_cases, floors, rounds, options, progress
) -> tables.Table:
  with contextlib.ExitStack() as stack:
    progress('start peers')
    torch_cases = peers.start(options, torch_cases, stack)
    seconds = timing.interleave({**cases, **torch_cases}, rounds, progress)
    facts = {case: step.facts() for case, step in cases.items()}
    facts |= peers.facts(torch_cases)
  num_tokens = next(iter(cases.values())).num_tokens
  rows = [
      {
          'case': case,
          **seconds[case],
          **facts[case],
          'tokens_per_second': num_tokens / seconds[case]['seconds'],
      }
      for case in seconds
  ]
  for row in rows:
    if row['case'] in floors:
      row['over_floor'] = row['gflop'] / floors[row['case']]
  tables.ratios(rows, 'over_lora', LORA, 'fastest')
  if FULL in cases:
    tables.ratios(rows, 'over_full', FULL, 'fastest')
    tables.ratios(rows, 'peak_over_full', FULL, 'peak_mib')
  devices.add_rates(rows, len(jax.devices()))
  return tables.Table(
      name, title, COLUMNS, rows, (NOTE, *peers.notes(options))
  )


def frozen_gflop(experiment: experiment_lib.Experiment) -> float:
  """Forward pass and input gradients of the bare network, by XLA's count.

  The gradient of the embedding is the input gradient of everything above it.
  """
  model = experiment.model.without_adapters()
  params, batch = _abstract(experiment, model)

  def loss(embedding, others):
    merged = trainable.unflatten({**others, EMBEDDING: embedding})
    return model.loss(merged, batch)[0]

  embedding = params.pop(EMBEDDING)
  compiled = jax.jit(jax.grad(loss)).lower(embedding, params).compile()
  return timing.facts(compiled)['gflop']


def adapter_gflop(experiment: experiment_lib.Experiment) -> float:
  """Forward pass of the adapters: that of the network with and without them.

  Before XLA's optimizations, which takes no compilation.
  """

  def forward(model):
    params, batch = _abstract(experiment, model)
    lowered = jax.jit(
        lambda params: model.apply(trainable.unflatten(params), batch)[0]
    ).lower(params)
    return lowered.cost_analysis()['flops'] / 1e9

  model = experiment.model
  return forward(model) - forward(model.without_adapters())


def _abstract(experiment, model):
  """Shapes of the flat parameters, and a batch."""
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), experiment.task_feature_lengths)
  )
  batch = experiments.random_batch(experiment)
  return (
      trainable.flatten(variables['params']),
      {name: jnp.asarray(value) for name, value in batch.items()},
  )


def t5_sizes(
    setup: experiment_lib.Setup, lengths: tuple[int, int], batch_size: int
) -> dict[str, Any]:
  """What torch_peers.py needs to build the same T5 with the same LoRA."""
  config = setup.experiment.model.module.module.config
  return {
      **{
          name: getattr(config, name)
          for name in ('vocab_size', 'emb_dim', 'head_dim', 'mlp_dim',
                       'num_heads', 'num_encoder_layers', 'num_decoder_layers')
      },
      'rank': next(
          x.shape[-1] for path, x in setup.trainable.items()
          if path.endswith('lora_a')
      ),
      'inputs': [batch_size, lengths[0]],
      'targets': [batch_size, lengths[1]],
  }

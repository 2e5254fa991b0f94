# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole training step of the embedded engine: T5, and a decoder alone.

On an accelerator both are large enough to fill it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
from typing import Any

import jax

from benchmarks import decoder
from benchmarks import devices
from benchmarks import experiments
from benchmarks import floor
from benchmarks import peers
from benchmarks import tables
from benchmarks import timing
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import train_step

FULL = 'full fine-tuning'
LORA, MOLORA = decoder.LORA, decoder.MOLORA
METHODS = {
    MOLORA: 'molora', LORA: 'lora', 'MoV': 'mov', 'SiRA': 'sira', FULL: 'full',
}
# Rows of the same network in less memory: one compiled layer per stack, whose
# activations the backward pass computes again.
REMAT = ', remat'
REMAT_BINDINGS = {'SCAN_LAYERS': True, 'REMAT_POLICY': 'full'}
QUICK = (MOLORA, LORA, FULL)
COLUMNS = (
    tables.Column('seconds', 's, median', '#.3g'),
    tables.Column('fastest', 'fastest', '#.3g'),
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
    'LoRA: as many trained parameters as MoLoRA, or just fewer. remat: '
    'scanned layers, activations computed again; / full is over full '
    'fine-tuning of the same kind.'
)
PEERS_NOTE = (
    "MoE-PEFT's experts run without dropout; its fused path on the attention "
    'draws masks all the same (p = 1e-9).'
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> Iterator[tables.Table]:
  """The decoder and T5 Small, or with `quick` one layer of each."""
  if options.quick:
    yield measure_decoder(
        decoder.SIZES | {'num_layers': 1, 'vocab_size': 4000},
        4, 64, 3, options, progress,
    )
    yield measure_t5(
        't5_1_1_small', (64, 16), 8, 3, options, progress,
        experiments.ONE_LAYER, QUICK,
    )
  elif jax.default_backend() == 'cpu':
    yield measure_decoder(decoder.SIZES, 4, 256, 7, options, progress)
    yield measure_t5('t5_1_1_small', (256, 64), 8, 5, options, progress)
  else:
    yield measure_decoder(decoder.LARGE_SIZES, 8, 1024, 15, options, progress)
    yield measure_t5('t5_1_1_small', (512, 128), 64, 15, options, progress)


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
    # XLA counts what one device does, and the body of a scan only once.
    gflop = facts.pop('gflop', None)
    if gflop and not experiment.model.module.module.config.scan_layers:
      facts['gflop'] = gflop * self.setup.mesh.size
    self._facts = {
        **facts,
        'parameters': trainable.num_params(self.setup.trainable),
        'optimizer_mib': sum(
            x.nbytes for x in jax.tree.leaves(self._state.opt_state)
        ) / 2**20,
    }

  def __call__(self) -> float:
    return timing.warm_seconds_of(self._run)

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
    methods: Sequence[str] = (*METHODS, MOLORA + REMAT, FULL + REMAT),
) -> tables.Table:
  """Full fine-tuning, LoRA and mixtures on an encoder-decoder.

  Args:
    model: File of gin/models/.
    lengths: Tokens of inputs and targets.
    batch_size: Rows.
    rounds: Timed steps of each case.
    options: Options of the command line.
    progress: Told what is being done.
    bindings: Further gin bindings.
    methods: Keys of `METHODS`, perhaps with `REMAT` behind them; MoLoRA before
      LoRA, which gets its number of parameters.
  """
  build = functools.partial(
      experiments.build, model, lengths=lengths, batch_size=batch_size
  )
  bindings = dict(bindings or {})
  cases, floors = {}, {}
  if timing.counts_gflop():
    progress('compile floor')
    frozen = floor.frozen_gflop(build('full', bindings=bindings))
  for name in methods:
    progress(f'compile {name}')
    plain, of_case = name.removesuffix(REMAT), dict(bindings)
    if plain == LORA:
      of_case['PARAM_BUDGET'] = cases[MOLORA].facts()['parameters']
    if name != plain:
      of_case |= REMAT_BINDINGS
    experiment = build(METHODS[plain], bindings=of_case)
    if name == plain != FULL and timing.counts_gflop():
      floors[name] = frozen + 3 * floor.adapter_gflop(experiment)
    cases[name] = Step(experiment)
  sizes = t5_sizes(cases[LORA].setup, lengths, batch_size)
  torch_cases = {peers.PYTORCH + 'PEFT LoRA': ('t5/peft_lora', sizes)}
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
    sizes: As `decoder.SIZES`.
    batch_size: Rows.
    length: Tokens of a row.
    rounds: Timed steps of each case.
    options: Options of the command line.
    progress: Told what is being done.
  """
  experiment = decoder.build(sizes, batch_size, length)
  cases, floors = {}, {}
  if timing.counts_gflop():
    progress('compile floor')
    frozen = floor.frozen_gflop(experiment)
  for name, rules in decoder.rules(sizes).items():
    progress(f'compile {name}')
    adapted = decoder.with_rules(experiment, rules)
    # The published formula is no floor: it is itself the waste.
    if name != decoder.PUBLISHED and timing.counts_gflop():
      floors[name] = frozen + 3 * floor.adapter_gflop(adapted)
    cases[name] = Step(adapted)
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
          peers.PYTORCH + 'PEFT LoRA': ('llama/peft_lora', torch_sizes),
          peers.PYTORCH + 'MoE-PEFT LoRAMoE': ('llama/loramoe', torch_sizes),
      },
      floors, rounds, options, progress,
      (PEERS_NOTE,) if options.peer_python else (),
  )


def _table(
    name, title, cases, torch_cases, floors, rounds, options, progress, notes=()
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
  for full in (FULL, FULL + REMAT):
    if full in cases:
      alike = [r for r in rows if (REMAT in r['case']) == (REMAT in full)]
      tables.ratios(alike, 'over_full', full, 'fastest')
      tables.ratios(alike, 'peak_over_full', full, 'peak_mib')
  devices.add_rates(rows, len(jax.devices()))
  return tables.Table(
      name, title, COLUMNS, rows, (NOTE, *notes, *peers.notes(options))
  )


def t5_sizes(
    setup: experiment_lib.Setup, lengths: tuple[int, int], batch_size: int
) -> dict[str, Any]:
  """What torch_peers needs to build the same T5 with the same LoRA."""
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

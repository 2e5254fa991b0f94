# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every table at a tiny size: what it counts is right, times aside."""

import contextlib
import time

import jax
import numpy as np
import pytest

from benchmarks import bank
from benchmarks import checkpoint
from benchmarks import decode
from benchmarks import decoder
from benchmarks import experiments
from benchmarks import floor
from benchmarks import input as input_table
from benchmarks import layer
from benchmarks import published
from benchmarks import scaling
from benchmarks import startup
from benchmarks import step
from benchmarks import tables
from moe_peft.core import trainable
from moe_peft.methods import molora
from tests import refusals

OPTIONS = tables.Options(quick=True)
TINY = {
    't5.T5Config.emb_dim': 16,
    't5.T5Config.num_heads': 2,
    't5.T5Config.head_dim': 8,
    't5.T5Config.mlp_dim': 32,
    't5.T5Config.num_encoder_layers': 1,
    't5.T5Config.num_decoder_layers': 1,
}
# Where it does not matter which layers are adapted, few are compiled.
FEW = TINY | {'SITES': '.*/(query|wo)'}


def silent(text):
  del text


def by_case(table):
  # Title, empty line, head, rule, rows.
  lines = table.markdown().splitlines()
  assert [line.split(' | ')[0] for line in lines[4 : 4 + len(table.rows)]] == [
      f'| {row["case"]}' for row in table.rows
  ]
  return {row['case']: row for row in table.rows}


def test_the_published_formula_is_the_same_function():
  sizes = {'site': layer.SITE, 'num_experts': 3, 'rank': 2}
  ours, theirs = molora.MoLoRA(**sizes), published.PublishedMoLoRA(**sizes)
  x, y = np.random.default_rng(0).standard_normal((2, 2, 5, 8), np.float32)
  params = jax.tree.map(
      lambda p: p + 0.1, ours.init(jax.random.key(0), x, y)['params']
  )
  np.testing.assert_allclose(
      ours.apply({'params': params}, x, y),
      theirs.apply({'params': params}, x, y),
      rtol=1e-5, atol=1e-5,
  )


@pytest.mark.slow
def test_layer():
  rows = by_case(layer.measure(32, 64, 4, 2, 1, OPTIONS, silent))
  assert rows[layer.FROZEN]['parameters'] == 0
  assert rows[layer.PLAIN_LORA]['parameters'] == 2 * 32 * 4 * 2
  assert rows['MoLoRA soft']['parameters'] == 2 * 32 * 4 * 2 + 32 * 4
  assert rows['full fine-tuning']['parameters'] == 32 * 32
  assert rows[layer.FROZEN]['over_frozen'] == 1.0
  # Two products of 32 x 32 for the frozen layer, three to train it.
  product = 2 * 64 * 32 * 32 / 1e9
  assert rows[layer.FROZEN]['gflop'] == pytest.approx(2 * product, rel=0.01)
  assert rows['full fine-tuning']['gflop'] == pytest.approx(
      3 * product, rel=0.01
  )
  assert next(iter(rows)) == layer.MATMUL
  assert rows[layer.MATMUL]['gflop'] == pytest.approx(product, rel=0.01)
  assert (
      rows['published MoLoRA formula']['gflop'] > rows['MoLoRA soft']['gflop']
  )


def test_of_a_bank_the_router_alone_trains():
  rows = by_case(bank.measure(32, 64, 4, 2, 1, OPTIONS, silent))
  assert rows[layer.PLAIN_LORA]['parameters'] == 2 * 32 * 4 * 2
  assert rows[bank.LEARNED]['parameters'] == 32 * 4
  assert rows[bank.ARROW]['parameters'] == 0
  # Frozen experts have no gradients, so their products are two and not three.
  assert rows[bank.LEARNED]['gflop'] < rows[layer.TOP_2]['gflop']
  assert rows[layer.PLAIN_LORA]['over_lora'] == 1.0


def test_a_peer_is_over_the_frozen_layer_of_its_library():
  seconds = {
      layer.FROZEN: 1.0, layer.PLAIN_LORA: 1.3,
      f'PyTorch: {layer.FROZEN}': 2.0, 'PyTorch: PEFT LoRA': 3.0,
  }
  rows = [{'case': name, 'fastest': x} for name, x in seconds.items()]
  layer.over_own(rows)
  assert [row['over_frozen'] for row in rows] == [1.0, 1.3, 1.0, 1.5]


@pytest.mark.slow
def test_layer_has_a_case_for_every_method():
  cases = layer.of_gin_files(layer.Layer(32, 64), silent)
  left_out = {
      'full', 'mixlora', 'lora_id', 'molora_id', 'moelora_id', 'mtl_lora',
      'flix', 'bank_id', 'bank_xlora',
  }
  assert set(cases) == {
      f'{name}.gin' for name in set(experiments.method_names()) - left_out
  }


@pytest.mark.slow
def test_step():
  # Wide enough for matrix products to be all that counts.
  sizes = TINY | {
      't5.T5Config.emb_dim': 256,
      't5.T5Config.mlp_dim': 512,
      't5.T5Config.head_dim': 128,
      't5.T5Config.vocab_size': 512,
  }
  rows = by_case(
      step.measure_t5(
          'tiny_t5', (128, 32), 8, 1, OPTIONS, silent, sizes, step.QUICK
      )
  )
  assert set(rows) == {'MoLoRA', 'LoRA', 'full fine-tuning'}
  for row in rows.values():
    # Two moments in float32; a few counters.
    counters = 2**20 * row['optimizer_mib'] - 8 * row['parameters']
    assert 0 < counters < 100
  lora, mixture, full = (rows[x] for x in ('LoRA', 'MoLoRA', step.FULL))
  assert 0.8 * mixture['parameters'] < lora['parameters']
  assert lora['parameters'] <= mixture['parameters'] < full['parameters']
  assert mixture['peak_mib'] < full['peak_mib']
  assert full['over_full'] == 1.0
  # The floor has gradients of the inputs of the lowest layer, the steps do not;
  # here there is no other layer.
  for row in (lora, mixture):
    assert 0.9 < row['over_floor'] < 1.1
  assert mixture['gflop'] < 0.9 * full['gflop']


@pytest.mark.long
def test_remat_rows_are_over_full_fine_tuning_with_remat():
  methods = (*step.QUICK, step.MOLORA + step.REMAT, step.FULL + step.REMAT)
  rows = by_case(
      step.measure_t5(
          'tiny_t5', (32, 16), 8, 1, OPTIONS, silent, TINY, methods
      )
  )
  for of_kind in ('', step.REMAT):
    mixture, full = rows[step.MOLORA + of_kind], rows[step.FULL + of_kind]
    assert mixture['peak_over_full'] == mixture['peak_mib'] / full['peak_mib']
    assert full['peak_over_full'] == 1.0
    # XLA would count one layer of a scan.
    assert ('gflop' in mixture) == (of_kind == '')


@pytest.mark.slow
def test_remat_makes_room():
  sizes = FEW | {
      't5.T5Config.vocab_size': 64,
      't5.T5Config.num_encoder_layers': 3,
      't5.T5Config.num_decoder_layers': 3,
  }
  plain, remat = (
      step.Step(
          experiments.build('tiny_t5', 'molora', (128, 32), 64, sizes | more)
      ).facts()
      for more in ({}, step.REMAT_BINDINGS)
  )
  assert remat['parameters'] == plain['parameters']
  assert remat['temp_mib'] < 0.7 * plain['temp_mib']


@pytest.mark.slow
def test_the_floor_is_two_thirds_of_training_everything():
  experiment = experiments.build(
      'tiny_t5', 'molora', (32, 16), 8, TINY | {'t5.T5Config.vocab_size': 16}
  )
  frozen = floor.frozen_gflop(experiment)
  model = experiment.model.without_adapters()
  params, batch = floor.abstract(experiment, model)
  forward = jax.jit(
      lambda params: model.loss(trainable.unflatten(params), batch)[0]
  ).lower(params).compile().cost_analysis()['flops'] / 1e9
  assert 1.8 * forward < frozen < 2.5 * forward
  # Forward pass of all adapters: two FLOP for each number and token.
  variables = jax.eval_shape(
      lambda: experiment.model.init(
          jax.random.key(0), {'inputs': 32, 'targets': 16}
      )
  )
  of_layer = {'encoder': 32 * 8, 'decoder': 16 * 8}
  expected = 0
  for path, x in trainable.flatten(variables['params']).items():
    if trainable.is_adapter(path):
      cross = 'encoder_decoder' in path and ('/key/' in path or
                                             '/value/' in path)
      expected += 2 * x.size * of_layer['encoder' if cross else
                                        path.split('/')[0]]
  assert floor.adapter_gflop(experiment) == pytest.approx(
      expected / 1e9, rel=0.3
  )


def test_the_decoder_trains_what_the_issue_says():
  experiment = decoder.build(decoder.SIZES, 8, 64)
  counts = {}
  for name, rules in decoder.rules(decoder.SIZES).items():
    model = decoder.with_rules(experiment, rules).model
    variables = jax.eval_shape(
        lambda model=model: model.init(
            jax.random.key(0), {'inputs': 8, 'targets': 8}
        )
    )
    trained, _ = trainable.split(trainable.flatten(variables['params']))
    counts[name] = trainable.num_params(trained)
  assert counts == {
      step.MOLORA: 708_608, decoder.PUBLISHED: 708_608, step.LORA: 706_560
  }


@pytest.mark.slow
def test_decoder_step():
  sizes = decoder.SIZES | {
      'vocab_size': 64, 'emb_dim': 16, 'mlp_dim': 32, 'num_layers': 1,
      'num_heads': 2, 'head_dim': 8, 'lora_rank': 16,
  }
  rows = by_case(step.measure_decoder(sizes, 8, 64, 1, OPTIONS, silent))
  ours, theirs = rows[step.MOLORA], rows[decoder.PUBLISHED]
  assert ours['parameters'] == theirs['parameters']
  assert ours['temp_mib'] < theirs['temp_mib']
  assert ours['gflop'] < theirs['gflop']


def test_slopes_of_known_series():
  sizes = [1, 2, 4, 8]
  assert scaling.slope(sizes, [3, 6, 12, 24]) == pytest.approx(1)
  assert scaling.slope(sizes, [1, 4, 16, 64]) == pytest.approx(2)
  assert scaling.slope(sizes, [5, 5, 5, 5]) == pytest.approx(0, abs=1e-9)
  assert scaling.slope([0, 1, 2], [-1, 3, 6]) == pytest.approx(1)
  assert scaling.slope([1], [1]) is None


@pytest.mark.slow
def test_scaling():
  sweeps = {'tokens': (256, 512), 'experts': (2, 4)}
  base = {'tokens': 256, 'experts': 4, 'rank': 2}
  rows = by_case(scaling.measure(32, base, sweeps, 1, OPTIONS, silent))
  assert set(rows) == {
      f'{name} {n}' for name, sizes in sweeps.items() for n in sizes
  }
  assert rows['tokens 512']['gflop_slope'] == pytest.approx(1, abs=0.05)
  assert 0.8 < rows['experts 4']['gflop_slope'] < 1.2


@pytest.mark.slow
def test_checkpoint():
  rows = by_case(
      checkpoint.measure(
          'tiny_t5', 1, OPTIONS, silent,
          TINY | {'t5.T5Config.vocab_size': 8000},
      )
  )
  adapters, full = rows[checkpoint.ADAPTERS], rows[checkpoint.FULL]
  assert adapters['mib'] < full['mib']
  # A parameter and two moments; random numbers hardly compress.
  assert full['mib'] > 4 * full['parameters'] / 2**20


@pytest.mark.slow
def test_a_restored_checkpoint_is_the_saved_state(tmp_path):
  experiment = experiments.build(
      'tiny_t5', 'molora', (32, 16), 8, FEW | {'MODEL_DIR': str(tmp_path)}
  )
  with contextlib.closing(checkpoint.Saving(experiment)) as saving:
    saving.save()
    restored = saving.load()
    moments = [x for x in jax.tree.leaves(restored.opt_state) if x.ndim]
    assert all(np.all(x != 0) for x in moments)
    jax.tree.map(np.testing.assert_array_equal, restored, saving.state)


@pytest.mark.slow
def test_decode():
  table = decode.measure(
      'tiny_t5', (32, 16), 8, ('MoLoRA',), 1, OPTIONS, silent, TINY, ('greedy',)
  )
  rows = by_case(table)
  assert set(rows) == {f'greedy, {decode.BARE}', 'greedy, MoLoRA'}
  bare, adapted = rows[f'greedy, {decode.BARE}'], rows['greedy, MoLoRA']
  assert adapted['tokens_per_second'] * adapted['seconds'] == pytest.approx(
      8 * 16
  )
  assert adapted['adapter_seconds_per_token'] * 8 * 16 == pytest.approx(
      adapted['fastest'] - bare['fastest']
  )


@pytest.mark.slow
@pytest.mark.parametrize('num_beams', decode.SEARCHES.values())
def test_decoding_runs_the_adapters(num_beams):
  experiment = experiments.build('tiny_t5', 'molora', (32, 16), 8, TINY)
  adapted, bare = (
      decode.generation(experiment, model, num_beams).facts()['gflop']
      for model in (experiment.model, experiment.model.without_adapters())
  )
  shapes, _ = floor.abstract(experiment, experiment.model)
  of_encoder = sum(
      2 * x.size * 32 * 8
      for path, x in shapes.items()
      if path.startswith('encoder/') and trainable.is_adapter(path)
  )
  # And the decoder's, of which XLA counts one step.
  assert adapted - bare > 0.9 * of_encoder / 1e9


@pytest.mark.slow
def test_input():
  pytest.importorskip('lemminflect')
  rows = by_case(input_table.measure(8, 2, 1, OPTIONS, silent, FEW))
  one, many = rows['not packed'], rows['packed']
  assert one['examples_per_row'] == 1.0
  assert many['examples_per_row'] > 2
  assert many['real_tokens'] > 2 * one['real_tokens']


@pytest.mark.slow
def test_slow_data_cost_what_they_take():
  experiment = experiments.build('tiny_t5', 'molora', (32, 16), 8, FEW)
  batch = experiments.random_batch(experiment)

  def data(seconds):
    while True:
      time.sleep(seconds)
      yield batch

  row = input_table.rates(experiment, data(1.0), 2, 1, silent)
  # A second a batch, but what the steps do meanwhile costs nothing more.
  assert row['data_rate'] == pytest.approx(8, rel=0.1)
  assert row['data_cost'] > 0.5
  assert row['loop_rate'] / row['step_rate'] == pytest.approx(
      1 - row['data_cost']
  )


def test_examples_of_packed_batches():
  packed = {'decoder_segment_ids': np.array([[1, 1, 2, 0], [1, 2, 3, 3]])}
  alone = {'decoder_target_tokens': np.ones((4, 8))}
  assert input_table.num_examples([packed]) == 5
  assert input_table.num_examples([alone, alone]) == 8


@pytest.mark.slow
def test_startup_processes():
  assert startup.process('-c', 'pass')() > 0
  with refusals.refused('python -c nothing', 'is not defined'):
    startup.process('-c', 'nothing')()
  environment = {'A_NAME': 'a value'}
  source = 'import os; assert os.environ["A_NAME"] == "a value"'
  assert startup.process('-c', source, environment=environment)() > 0


@pytest.mark.long
def test_the_second_first_step_finds_the_cache_of_the_first():
  first_step = (
      'import os, pathlib, time\n'
      'entry = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"], "entry")\n'
      'if not entry.exists():\n'
      '  entry.touch()\n'
      '  time.sleep(5)\n'
  )
  rows = by_case(startup.measure(1, OPTIONS, silent, first_step))
  assert rows['first step, nothing cached']['fastest'] > 5
  assert rows['first step, warm compile cache']['fastest'] < 5

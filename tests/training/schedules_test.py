# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rate over the steps of a run."""

import json
import pathlib

from flax import linen as nn
import gin
import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.core import inject
from moe_peft.methods import lora
from moe_peft.training import schedules
from tests import refusals


def test_it_rises_to_the_peak_and_falls_to_zero():
  schedule = schedules.warmup_cosine(2.0, warmup_steps=4, train_steps=12)
  rates = [float(schedule(step)) for step in (0, 2, 4, 8, 12)]
  np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ('steps', 'warmup'),
    [(1, 0), (3, 0), (20, 5), (50, 5), (300, 18), (1000, 60), (50_000, 100)],
)
def test_the_warm_up_is_a_share_of_the_steps(steps, warmup):
  schedule = schedules.warmup_cosine(2.0, None, steps)
  text = schedules.describe(schedule, min(steps, 1000))
  assert text.endswith(f'peaks at 2, at step {warmup}.')


@pytest.mark.parametrize(
    ('model', 'width'), [('tiny_t5', 128), ('smollm2_135m', 576)]
)
def test_the_rate_follows_the_width_and_the_method(model, width):
  """1 / (10 sqrt(0.8 alpha width)) by ALPHA; methods without it differ."""
  closed = lambda alpha: (0.8 * alpha * width) ** -0.5 / 10
  for method, macros, expected in (
      ('molora', {}, closed(16)),
      ('molora', {'ALPHA': 64.0, 'RANK': 64}, closed(64)),
      ('lora', {'ALPHA': 4.0}, closed(4)),
      ('mixlora', {}, closed(32)),
      ('mola', {}, closed(16)),
      ('bottleneck', {}, closed(1)),
      ('mov', {}, 3e-2),
      ('ia3', {}, 3e-2),
      ('retrieval', {}, 2e-2),
      ('full', {}, closed(16) / 10),
  ):
    gin_files.load_gin(
        [f'gin/models/{model}.gin', f'gin/methods/{method}.gin'],
        [f'{k}={v!r}' for k, v in macros.items()],
    )
    module = gin.get_configurable(inject.AdaptedModule)()
    rate = schedules.suggested_rate(module)
    assert rate == pytest.approx(expected, rel=0.3), method
    assert len(f'{rate:g}'.strip('0.').partition('e')[0]) == 1
    share = schedules.suggested_rate(module, share=0.05)
    assert share == pytest.approx(rate / 20)
  gin.clear_config()


def test_a_network_that_does_not_tell_its_width_is_taken_for_a_small_one():
  module = inject.AdaptedModule(
      nn.Dense(3), (inject.OutputRule('.*', lora.LoRA),)
  )
  assert schedules.suggested_rate(module) == 1e-3


@pytest.mark.parametrize(
    ('warmup', 'steps', 'where'),
    [(5, 5, 'WARMUP_STEPS'), (-1, 5, 'WARMUP_STEPS'), (0, -1, 'TRAIN_STEPS')],
)
def test_a_warm_up_ends_before_the_run(warmup, steps, where):
  with refusals.refused(where):
    schedules.warmup_cosine(1.0, warmup, steps)


NAMES = {
    'LoRA': 'lora', 'MoLoRA': 'molora', 'MoLoRA by sequence': 'molora_sentence',
    'bottleneck': 'bottleneck', 'SMEAR': 'smear', 'MoV': 'mov',
    '(IA)^3': 'ia3', 'full': 'full',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_the_documents_hold_defaults_against_the_trials(name):
  root = pathlib.Path(__file__).parents[2]
  text = (root / 'docs' / 'methods.md').read_text()
  row = next(x for x in text.splitlines() if x.startswith(f'| {name} | '))
  _, _, default, tried, _ = row.split('|')
  trials = json.loads((root / 'results' / 'wide' / 'tuning.json').read_text())
  rates = {
      float(x['LEARNING_RATE']): x['validation']
      for x in trials[NAMES[name]]
      if float(x.get('ALPHA', 16)) == 16
  }
  best = max(rates, key=rates.get)
  expected = []
  for rate, score in sorted(rates.items()):
    number = f'{rate:.0e}'.replace('e-0', 'e-')
    shown = f'{number}: {score:.1f}'
    expected.append(f'**{shown}**' if rate == best else shown)
  assert tried.strip() == ', '.join(expected)
  gin_files.load_gin(
      ['gin/models/tiny_t5.gin', f'gin/methods/{NAMES[name]}.gin'],
      ["ACTIVATION_DTYPE = 'float32'"],
  )
  module = gin.query_parameter('%MODULE').scoped_configurable_fn()
  assert schedules.suggested_rate(module) == float(default)


@pytest.mark.slow
def test_without_steps_there_is_no_rate():
  schedule = schedules.warmup_cosine(1e-3, 20, 0)
  assert schedule(0) == 0.0
  assert 'scored' in schedules.describe(schedule, 0)

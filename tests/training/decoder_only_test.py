# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The engine on a decoder alone: the same gin files, another model file."""

import json

import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.data import local
from moe_peft.data.sets import words as _words  # noqa: F401 (registers tasks)
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import restored
from moe_peft.training import run
from moe_peft.training import train_step
from tests import refusals

SIZES = {
    'decoder_config.DecoderConfig.emb_dim': 16,
    'decoder_config.DecoderConfig.num_heads': 4,
    'decoder_config.DecoderConfig.head_dim': 8,
    'decoder_config.DecoderConfig.mlp_dim': 32,
    'decoder_config.DecoderConfig.num_layers': 2,
    'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 16},
    'MIXTURE_OR_TASK_NAME': 'past_tense',
    'INITIAL_CHECKPOINT_PATH': None,
    'TRAIN_STEPS': 3,
    'WARMUP_STEPS': 1,
    'BATCH_SIZE': 8,
    'EVAL_BATCH_SIZE': 8,
    'EVAL_EXAMPLES': 8,
    'LOG_PERIOD': 1,
}


def load(model_dir, method='molora', **bindings):
  values = {**SIZES, 'MODEL_DIR': str(model_dir), **bindings}
  gin_files.load_gin(
      [
          'gin/models/tiny_llama.gin',
          f'gin/methods/{method}.gin',
          'gin/runs/finetune.gin',
      ],
      [f'{name}={value!r}' for name, value in values.items()],
  )


def experiment(model_dir, method='molora', **bindings):
  load(model_dir, method, **bindings)
  return run.build()


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_batches_hold_inputs_and_targets_in_one_row(tmp_path, packing):
  data = loop.train_data(experiment(tmp_path, PACKING=packing))
  batch = next(data)
  tokens, weights = (
      np.asarray(batch[name])
      for name in ('decoder_target_tokens', 'decoder_loss_weights')
  )
  assert tokens.shape == (8, 48)
  text = bytes(int(x) - 3 for x in tokens[0] if 3 <= x < 259).decode()
  assert text.startswith('past tense: ')
  # Every example: the inputs with their EOS, then the targets with theirs.
  ends = np.flatnonzero(tokens[0] == 1)
  assert weights[0, : ends[0] + 1].sum() == 0
  assert weights[0, ends[0] + 1 : ends[1] + 1].all()
  segment_ids = np.asarray(batch['decoder_segment_ids'])
  assert (segment_ids.max() > 1) == packing == ('decoder_positions' in batch)
  np.testing.assert_array_equal(segment_ids > 0, tokens > 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    'method',
    [
        'mov',
        'molora_sentence',
        *(
            pytest.param(method, marks=pytest.mark.long)
            for method in ('lora', 'sira', 'mixlora', 'mode')
        ),
    ],
)
def test_the_methods_find_their_layers(tmp_path, method):
  """A step of each kind of adapter, with the files that T5 uses."""
  bindings = {'RANK': 2} if method in ('lora', 'sira', 'mixlora') else {}
  if method != 'lora':
    bindings['NUM_EXPERTS'] = 4
  bindings['decoder_config.DecoderConfig.num_layers'] = 1
  setup = experiment_lib.prepare(experiment(tmp_path, method, **bindings))
  state = train_step.init_state(setup)
  assert all(name.startswith('decoder/layers_') for name in state.params)
  data = loop.train_data(setup.experiment)
  with setup.context():
    state, metrics = train_step.make_train_step(setup)(
        state, setup.frozen, next(data)
    )
  assert np.isfinite(metrics['loss'].total)
  assert metrics['loss'].count > 8
  assert metrics['grad_norm'].total > 0


def test_a_loss_of_two_passes_gets_the_logits_of_all_tokens(tmp_path):
  setup = experiment_lib.lay_out(experiment(tmp_path, 'adamix', **{
      'decoder_only.DecoderOnlyModel.target_length': 16}))
  train_step.check(setup)


def test_rows_with_more_targets_than_logits_are_refused(tmp_path):
  with refusals.refused('decoder_only.DecoderOnlyModel.target_length', 15):
    experiment(tmp_path, **{
        'decoder_only.DecoderOnlyModel.target_length': 15})


@pytest.mark.slow
def test_a_run_from_the_base_to_answers(tmp_path):
  """Trained, evaluated, resumed, asked; rank classification too."""
  bindings = {
      'NUM_EXPERTS': 2,
      'RANK': 2,
      'SCAN_LAYERS': True,
      'MIXTURE_OR_TASK_NAME': local.register_mixture(
          'decoder_only_test', ['past_tense', 'article'], [1.0, 1.0]
      ),
  }
  load(tmp_path, **bindings)
  assert run.run_experiment() == tmp_path
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['tasks']['past_tense']['loss']['adapted'] > 0
  assert 0 <= results['tasks']['article']['accuracy']['adapted'] <= 100
  routing = json.loads((tmp_path / 'routing.json').read_text())
  assert {site['stack'] for site in routing['sites']} == {'decoder'}
  assert {site['layer'] for site in routing['sites']} == {0, 1}
  # A row of loads for each task and site; weights of a token sum to one.
  loads = np.asarray(routing['load'])
  np.testing.assert_allclose(loads.sum(-1), 1.0, atol=1e-3)
  load(tmp_path, **bindings)
  answers = list(restored.infer(['past tense: walk', 'past tense: see']))
  assert len(answers) == 2

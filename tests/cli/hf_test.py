# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line from a Hugging Face folder through training and back."""

import contextlib
import json

import gin
import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.cli import flags
from moe_peft.cli import hf
from moe_peft.hf import decoder_base
from moe_peft.hf import peft_format
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import run
from tests import refusals
from tests.hf import adapted
from tests.hf import conftest as models
from tests.training import tiny

# Torch, transformers and peft.
packages = models.hf
SIZES = {
    **models.SMALL,
    'vocab_size': 384,
    'd_model': 16,
    'num_heads': 2,
    'd_kv': 8,
    'd_ff': 32,
    'num_layers': 1,
    'num_decoder_layers': 1,
}


def write_run(run_dir, base, steps=2):
  """Trains for some steps, without evaluations."""
  experiment = tiny.experiment(
      run_dir, INITIAL_CHECKPOINT_PATH=str(base), TRAIN_STEPS=steps
  )
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda step, params: None)
  (run_dir / 'config.gin').write_text(gin.config_str())


def test_what_a_folder_does_not_say_is_named(tmp_path, capsys):
  config = {
      'model_type': 'llama', 'vocab_size': 48, 'hidden_size': 16,
      'intermediate_size': 24, 'num_hidden_layers': 1,
      'num_attention_heads': 2, 'num_key_value_heads': 1,
      'max_position_embeddings': 64, 'tie_word_embeddings': True,
  }
  entries = decoder_base.entries(decoder_base.from_hf(config), 't5')
  tensors = {
      name: np.ones(entry.hf_shape, np.float32)
      for entry in entries for name in entry.sources
  }
  models.write_model(tmp_path / 'hf', config, tensors)
  out = tmp_path / 'base'
  hf.main(['import', str(tmp_path / 'hf'), '--out', str(out)])
  said = capsys.readouterr().out
  assert 'VOCABULARY_FILE, eos_id' in said and str(out / 'model.gin') in said


@pytest.mark.slow
def test_a_run_on_an_imported_base_is_exported(tmp_path, capsys, request):
  hf_folder = models.write_model(
      tmp_path / 'hf', SIZES, models.random_tensors(SIZES)
  )
  base, run_dir = tmp_path / 'base', tmp_path / 'run'
  name = 'google/byt5-nano'
  hf.main(['import', str(hf_folder), '--out', str(base), '--hub_id', name])
  assert f'init --base {base} --data' in capsys.readouterr().out
  write_run(run_dir, base)
  out = tmp_path / 'out'
  hf.main(
      flags.rewrite_gin_args(['export', str(run_dir), '--out', str(out)])
  )
  config = json.loads((out / 'adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == name
  assert {group['num_experts'] for group in config['groups']} == {4}
  assert {group['rank'] for group in config['groups']} == {2}
  card = (out / 'README.md').read_text()
  assert '| trained on | `past_tense` |' in card
  assert '| steps | 2, 8 examples each |' in card
  with refusals.refused('--collapse', '--rank'):
    hf.main(['export', str(run_dir), '--out', 'x', '--rank', '3'])

  # Another base under the same name is noticed.
  models.write_model(hf_folder, SIZES, models.random_tensors(SIZES, seed=1))
  moved = base.rename(tmp_path / 'first')
  hf.main(['import', str(hf_folder), '--out', str(base)])
  with refusals.refused('MODEL_DIR', 'differs in base'):
    hf.main(['export', str(run_dir), '--out', str(tmp_path / 'two')])
  assert not (tmp_path / 'two').exists()

  request.getfixturevalue('packages')  # Parity needs torch; the above does not.
  assert hf.main(['verify', str(out), '--base', str(hf_folder)]) == 1
  models.write_model(hf_folder, SIZES, models.random_tensors(SIZES))
  assert hf.main(['verify', str(out), '--base', str(hf_folder)]) == 0
  assert moved.is_dir()


@pytest.mark.slow
def test_imported_experts_are_frozen_under_new_routers(tmp_path):
  config = adapted.CONFIG.replace(
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      mlp_dim=32,
      num_encoder_layers=1,
      num_decoder_layers=1,
  )
  hf_folder = models.write_model(
      tmp_path / 'hf', SIZES, models.random_tensors(SIZES)
  )
  folders = []
  for seed in range(2):
    trained = adapted.make('lora', config, seed)
    folders.append(tmp_path / f'lora_{seed}')
    folders[-1].mkdir()
    peft_format.write_adapter(
        folders[-1], trained, trained.sites, 'some/base'
    )
  base = tmp_path / 'base'
  hf.main([
      'import', str(hf_folder), '--out', str(base), '--experts',
      *map(str, folders),
  ])
  gin_files.load_gin(
      [
          str(base / 'model.gin'),
          str(base / 'experts.gin'),
          'gin/runs/finetune.gin',
      ],
      [
          f'MODEL_DIR={str(tmp_path / "run")!r}',
          f'INITIAL_CHECKPOINT_PATH={str(base)!r}',
          "MIXTURE_OR_TASK_NAME='past_tense'",
          "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
          'TRAIN_STEPS=2',
          'WARMUP_STEPS=1',
      ],
  )
  setup = experiment_lib.prepare(run.build())
  assert all('/adapter/router/' in name for name in setup.trainable)
  path = 'encoder/layers_0/mlp/wo/adapter/lora_a'
  np.testing.assert_array_equal(
      setup.frozen[path][1], trained.params[path][0]
  )

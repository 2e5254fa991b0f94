# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of version 0.1 still evaluate, answer, report, export and resume.

`old_runs/` holds two small runs and the configurations of all methods, written
by version 0.1 (commit 7321582), and what that version said of them.
"""

import contextlib
import io
import json
from pathlib import Path
import tarfile

import jax
import numpy as np
import pytest

from moe_peft import evaluate
from moe_peft import gin_files
from moe_peft import gin_names
from moe_peft import infer
from moe_peft import train
from moe_peft.cli import hf
from moe_peft.cli import report
from moe_peft.core import trainable
from moe_peft.training import run
from tests.refusals import refused

FOLDER = Path(__file__).parent / 'old_runs'
EXPECTED = json.loads((FOLDER / 'expected.json').read_text())


def unpack(name, folder):
  with tarfile.open(FOLDER / f'{name}.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
  return unpack('configs', tmp_path_factory.mktemp('configs'))


def load(configs, method, tmp_path):
  """Loads the configuration of a method as if a run had it."""
  file = tmp_path / 'config.gin'
  file.write_text((configs / f'{method}.gin').read_text())
  gin_files.load_gin([str(file)])
  return run.build()


# A rule with an input, a block, two passes, layers of different numbers.
@pytest.mark.parametrize('method', ['sira', 'mov_wo', 'mixlora', 'adamix'])
def test_configurations_have_the_parameters_they_had(
    method, configs, tmp_path
):
  experiment = load(configs, method, tmp_path)
  shapes = jax.eval_shape(lambda: experiment.init(jax.random.key(0))['params'])
  count = trainable.num_params(trainable.flatten(shapes))
  assert count == EXPECTED['configs'][method]['num_params']


def batch_and_params(experiment):
  """What version 0.1 was given when it was asked for its losses."""
  init = lambda: experiment.init(jax.random.key(0))['params']
  params = trainable.flatten(init())
  random = np.random.default_rng(0)
  noise = lambda x: 0.05 * random.standard_normal(x.shape).astype(np.float32)
  params = {
      k: x if 'layer_index' in k else x + noise(x)
      for k, x in sorted(params.items())
  }
  inputs = random.integers(3, 60, (2, 12)).astype(np.int32)
  targets = random.integers(3, 60, (2, 8)).astype(np.int32)
  inputs[1, 8:], targets[1, 5:] = 0, 0
  batch = {
      'encoder_input_tokens': inputs,
      'decoder_target_tokens': targets,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': (targets > 0).astype(np.int32),
  }
  return trainable.unflatten(params), batch


# One of each kind: vectors, matrices, a block, a capacity, whole layers. The
# others have parts of these.
KINDS = (
    'mov_wo', 'sira', 'moelora', 'hydralora', 'mixlora', 'expert_choice',
    'bottleneck',
)


@pytest.mark.slow
@pytest.mark.parametrize('method', [
    method if method in KINDS else pytest.param(method, marks=pytest.mark.long)
    for method in EXPECTED['configs']
])
def test_configurations_have_the_losses_they_had(method, configs, tmp_path):
  experiment = load(configs, method, tmp_path)
  params, batch = batch_and_params(experiment)
  loss, _ = jax.jit(
      lambda params, batch: experiment.model.loss(
          params, batch, jax.random.key(1), 8.0, 1.0, step=np.int32(0)
      )
  )(params, batch)
  np.testing.assert_allclose(
      loss, EXPECTED['configs'][method]['loss'], rtol=1e-5
  )


def printed(main, *argv):
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    main([str(argument) for argument in argv])
  return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['decoder_only', 'encoder_decoder'])
def test_a_run_of_version_0_1(name, tmp_path):
  folder = unpack(name, tmp_path) / name
  expected = EXPECTED[name]
  evaluate.main([str(folder), '--split=validation'])
  results = json.loads((folder / 'results_validation.json').read_text())
  for task, metrics in expected['tasks'].items():
    for metric, values in metrics.items():
      for model, value in values.items():
        np.testing.assert_allclose(
            results['tasks'][task][metric][model], value, rtol=1e-4,
            err_msg=f'{task} {metric} {model}',
        )
  questions = tmp_path / 'questions.txt'
  questions.write_text('past tense: walk\npast tense: sing\n')
  answers = printed(infer.main, folder, questions, '--json').splitlines()
  assert [json.loads(answer) for answer in answers] == expected['answers']
  page = tmp_path / 'page.html'
  printed(report.main, folder, f'--out={page}')
  assert 'past_tense' in page.read_text()
  # Two steps more, from the saved position in the data.
  train.main([
      f'--gin_file={folder / "config.gin"}', f'--gin.NAME=MODEL_DIR={folder}',
      '--gin.NAME=TRAIN_STEPS=8',
  ])
  lines = (folder / 'metrics' / 'train.jsonl').read_text().splitlines()
  row = json.loads(lines[-1])
  assert row['step'] == 8
  for metric, value in expected['step_8'].items():
    np.testing.assert_allclose(row[metric], value, rtol=1e-3, err_msg=metric)
  # The configuration is now one of today.
  assert not gin_names.is_old((folder / 'config.gin').read_text())


@pytest.mark.slow
def test_an_export_of_a_run_of_version_0_1(tmp_path):
  safetensors = pytest.importorskip('safetensors.numpy')
  folder = unpack('encoder_decoder', tmp_path) / 'encoder_decoder'
  out = tmp_path / 'export'
  printed(hf.main, 'export', folder, '--out', out, '--format', 'full')
  arrays = safetensors.load_file(out / 'model.safetensors')
  for name, total in EXPECTED['export'].items():
    np.testing.assert_allclose(
        np.abs(arrays[name].astype(np.float64)).sum(), total, rtol=1e-6
    )


@pytest.mark.parametrize(
    ('lines', 'where', 'now'),
    [
        ('from moe_peft import inject', 'moe_peft.inject', 'core.inject'),
        ('import moe_peft.data.tasks', 'moe_peft.data.tasks',
         'data.sets.words'),
        ('from moe_peft.core import inject\ninject.AdapterRule.path = "x"',
         'inject.AdapterRule', 'inject.OutputRule'),
        ("from moe_peft.core import routing\nrouting.Router.selection = 'all'",
         'routing.Router.selection', '@selection.TopK()'),
    ],
)
def test_old_names_in_other_files_are_answered_with_the_new_ones(
    lines, where, now, tmp_path
):
  file = tmp_path / 'mine.gin'
  file.write_text(f'from __gin__ import dynamic_registration\n{lines}\n')
  with refused(where, now) as info:
    gin_files.load_gin([str(file)])
  assert '\n' not in str(info.value)


def test_an_old_macro_is_answered_with_the_new_one():
  with refused('--gin.RENORMALISE', 'NORMALIZE'):
    gin_files.load_gin(
        ['gin/methods/molora_topk.gin'], ['RENORMALISE=False']
    )


def test_the_decoder_is_found_under_its_older_name(tmp_path):
  text = (
      'from __gin__ import dynamic_registration\n'
      'from moe_peft.models import llama\n\nTHETA = 5.0\n'
      'llama.Transformer.config = @llama.LlamaConfig()\n'
      'llama.LlamaConfig.rope_theta = %THETA\n'
  )
  file = tmp_path / 'config.gin'
  file.write_text(text)
  gin_files.load_gin([str(file)])
  # A file that somebody wrote is not rewritten: it is told the new name.
  file.rename(tmp_path / 'model.gin')
  with refused('moe_peft.models.llama', 'decoder_config.DecoderConfig'):
    gin_files.load_gin([str(tmp_path / 'model.gin')])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('line', 'where'),
    [
        ("routing.Router.unit = 'embedding'", 'routing.Router'),
        ('routing.Router.jitter = 0.1', 'routing.Router'),
        ('capacity.Capacity.counts_selected = True',
         'capacity.Capacity.counts_selected'),
    ],
)
def test_options_that_are_gone_are_named(line, where):
  with refused(where):
    gin_names.upgrade(f'from moe_peft import inject\n{line}\n')

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""DPO: the closed form, the reference without adapters, runs of every kind."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.data import local
from moe_peft.data import preferences as preference_data
from moe_peft.data import registration
from moe_peft.data import vocabularies
from moe_peft.models import preferences
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import objectives
from moe_peft.training import run
from moe_peft.training import step_program
from moe_peft.training import train_step
from tests import refusals
from tests.training import decoder_only_test
from tests.training import tiny

TASK = 'dpo_test'
WORDS = ('walk', 'see', 'mouse', 'ox', 'go', 'sing', 'tree', 'city')
MODELS = {'tiny_t5': tiny.SIZES, 'tiny_llama': decoder_only_test.SIZES}


def register():
  """Prompts, and which of two letters to answer."""
  if TASK in seqio.TaskRegistry.names():
    return

  def dataset(split, shuffle_files, seed=None):
    del shuffle_files, seed
    words = WORDS if split == 'train' else WORDS[:6]
    return tf.data.Dataset.from_tensor_slices({
        'prompt': [f'letter of {word}' for word in words],
        'chosen': ['aa'] * len(words),
        'rejected': ['bbb'] * len(words),
    })

  vocabulary = vocabularies.byte_vocabulary()
  names = ('prompt', 'chosen', 'rejected')
  seqio.TaskRegistry.add(
      TASK,
      source=seqio.FunctionDataSource(dataset, splits=('train', 'validation')),
      preprocessors=[
          seqio.preprocessors.tokenize,
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={name: seqio.Feature(vocabulary) for name in names},
  )


def load(folder, model='tiny_t5', method='molora', **bindings):
  register()
  values = {
      **MODELS[model],
      'MODEL_DIR': str(folder),
      'MIXTURE_OR_TASK_NAME': TASK,
      'TASK_FEATURE_LENGTHS': {'inputs': 24, 'targets': 6},
      **bindings,
  }
  for name in {'NUM_EXPERTS', 'RANK', 'SITES'} - bindings.keys():
    values.pop(name, None)
  gin_files.load_gin(
      [f'gin/models/{model}.gin', f'gin/methods/{method}.gin',
       'gin/runs/dpo.gin'],
      [f'{name}={value!r}' for name, value in values.items()],
  )


def first_step(folder, model, method, **bindings):
  """Takes a step; returns (setup, metrics of the step, metrics of the next)."""
  load(folder, model, method, **bindings)
  setup = experiment_lib.prepare(run.build())
  state = train_step.init_state(setup)
  data = loop.train_data(setup.experiment)
  step = train_step.make_train_step(setup)
  found = []
  with setup.context():
    for _ in range(2):
      state, metrics = step(state, setup.frozen, next(data))
      found.append(jax.device_get(metrics))
  return setup, *found


def test_the_loss_is_the_papers_and_so_is_its_gradient():
  beta, (good, bad, ref_good, ref_bad) = 0.3, (-2.0, -5.0, -4.0, -4.5)

  def loss(policy):
    reward = preferences.rewards(policy, jnp.array([ref_good, ref_bad]), beta)
    return preferences.loss_of_margin(reward[0] - reward[1])

  value, grad = jax.value_and_grad(loss)(jnp.array([good, bad]))
  d = (good - ref_good) - (bad - ref_bad)  # 2.5
  sigmoid = lambda x: 1 / (1 + math.exp(-x))
  assert value == pytest.approx(-math.log(sigmoid(beta * d)), rel=1e-6)
  pull = beta * sigmoid(-beta * d)
  np.testing.assert_allclose(grad, [-pull, pull], rtol=1e-6)


def test_no_gradient_passes_through_the_reference():
  grad = jax.grad(lambda r: preferences.rewards(jnp.float32(1), r, 0.5))
  assert grad(2.0) == 0


@pytest.mark.parametrize('margin', [-3.0, 0.0, 0.7])
def test_swapping_the_answers(margin):
  """L(d) - L(-d) = -d, with smoothing -(1 - 2 smoothing) d."""
  for smoothing in (0.0, 0.2):
    loss = lambda m, s=smoothing: preferences.loss_of_margin(jnp.float32(m), s)
    np.testing.assert_allclose(
        loss(margin) - loss(-margin), -(1 - 2 * smoothing) * margin, atol=1e-6
    )
  assert loss(0.0) == np.float32(math.log(2))


def test_labels_that_are_sometimes_wrong_have_their_logit_for_an_optimum():
  """Where a share p of pairs prefers the first, margin = logit(p)."""
  share = 0.8
  grad = jax.grad(
      lambda m: share * preferences.loss_of_margin(m)
      + (1 - share) * preferences.loss_of_margin(-m)
  )
  optimum = math.log(share / (1 - share))
  assert abs(grad(optimum)) < 1e-6
  # The smoothed loss of one pair is the same.
  smoothed = jax.grad(lambda m: preferences.loss_of_margin(m, 1 - share))
  assert abs(smoothed(optimum)) < 1e-6
  assert grad(optimum + 1) > 0 > grad(optimum - 1)


def test_smoothing_of_one_half_says_nothing():
  with refusals.refused('LABEL_SMOOTHING', 0.5):
    objectives.DirectPreference(label_smoothing=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('model', 'method'),
    [
        ('tiny_llama', 'sira'),
        pytest.param('tiny_t5', 'lora', marks=pytest.mark.long),
    ],
)
def test_the_first_loss_is_log_2_and_a_step_helps(tmp_path, model, method):
  setup, first, second = first_step(
      tmp_path, model, method, LEARNING_RATE=1e-2, WARMUP_STEPS=0
  )
  assert all(map(trainable.is_adapter, setup.trainable))
  value = lambda metrics, name: metrics[name].total / metrics[name].count
  assert value(first, 'loss') == np.float32(math.log(2))
  for name in ('margins', 'chosen', 'rejected'):
    # XLA may round two passes differently: sums of logarithms of about 30.
    assert abs(value(first, f'rewards/{name}')) < 1e-6
  assert value(first, 'logps/rejected') < value(first, 'logps/chosen') < 0
  assert first['grad_norm'].total > 0
  # All prompts prefer the same answer: the step helps on the next batch.
  assert value(second, 'rewards/margins') > 1e-4
  assert value(second, 'rewards/accuracies') == 1
  assert value(second, 'loss') < value(first, 'loss')


@pytest.mark.slow
@pytest.mark.parametrize('method', [
    'ia3', 'adamix', 'mixlora',
    *(
        pytest.param(method, marks=pytest.mark.long)
        for method in ('mov', 'mode', 'mola', 'smear', 'smoe_dropout', 'smora')
    ),
])
def test_every_method_begins_at_log_2_and_can_leave_it(tmp_path, method):
  """Noise and limits are off in both passes, and the reference is the base."""
  bindings = {'EXPERTS_BY_DEPTH': (2,)} if method == 'mola' else {}
  bindings['decoder_config.DecoderConfig.num_layers'] = 1
  load(tmp_path, 'tiny_llama', method, **bindings)
  experiment = run.build()
  setup = experiment_lib.prepare(experiment)
  batch = next(loop.train_data(experiment))

  @jax.jit
  def measure(trained):
    params = trainable.unflatten({**setup.frozen, **trained})
    return experiment.objective.loss(
        experiment.model, params, batch, jax.random.key(0), jnp.float32(8),
        1.0, jnp.int32(1),
    )[1]

  value = lambda metrics, name: metrics[name].total / metrics[name].count
  with setup.context():
    first = measure(setup.trainable)
    moved = measure({
        k: x if trainable.is_constant(k) else x + 0.1
        for k, x in setup.trainable.items()
    })
  assert value(first, 'loss') == pytest.approx(math.log(2), rel=1e-6)
  assert abs(value(moved, 'rewards/margins')) > 1e-4
  assert np.isfinite(value(moved, 'loss'))


@pytest.mark.parametrize('model', MODELS)
def test_batches_are_pairs_of_ordinary_rows(tmp_path, model):
  load(tmp_path, model)
  experiment = run.build()
  batch = next(loop.train_data(experiment))
  setup = experiment_lib.lay_out(experiment)
  assert {k: x.shape for k, x in batch.items()} == {
      k: x.shape for k, x in train_step.abstract_batch(setup).items()
  }
  targets = np.asarray(batch['decoder_target_tokens'])
  weights = np.asarray(batch['decoder_loss_weights'])
  answers = targets.reshape(-1, targets.shape[-1])[
      weights.reshape(-1, targets.shape[-1]) == 1
  ]
  vocabulary = experiment.model.output_vocabulary
  end = [vocabulary.eos_id]
  pair = [*vocabulary.encode('aa'), *end, *vocabulary.encode('bbb'), *end]
  assert answers.tolist() == pair * len(targets)


@pytest.mark.long
def test_microbatches_and_padding_change_nothing(tmp_path):
  found = []
  for name, bindings in {
      'whole': {},
      'in parts, padded': {
          'NUM_MICROBATCHES': 2,
          'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 9},
      },
  }.items():
    _, _, metrics = first_step(
        tmp_path / name, 'tiny_llama', 'lora', LEARNING_RATE=1e-2,
        WARMUP_STEPS=0, BATCH_SIZE=16, **bindings,
    )
    found.append(metrics)
  for key in ('loss', 'rewards/margins', 'logps/chosen'):
    np.testing.assert_allclose(
        found[0][key].total, found[1][key].total, rtol=1e-4
    )


def test_what_changes_the_base_has_no_reference(tmp_path):
  load(tmp_path, method='full')
  with refusals.refused('TRAINABLE_REGEX', 'full.gin'):
    experiment_lib.prepare(run.build())
  base = {'decoder/layers_0/mlp/wo/adapter/lora_a': None}
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'merged'):
    objectives.DirectPreference().check(base, base)


def test_pairs_are_not_packed(tmp_path):
  load(tmp_path, PACKING=True)
  with refusals.refused('PACKING'):
    loop.train_data(run.build())


@pytest.mark.parametrize(
    ('model', 'places'), [('tiny_t5', []), ('tiny_llama', ['line 1'])]
)
def test_a_run_that_diverges_names_the_pairs_of_a_batch(
    tmp_path, model, places
):
  """Of an encoder-decoder they are not known."""
  load(tmp_path, model, BATCH_SIZE=1)
  experiment = run.build()
  file = tmp_path / 'pairs.jsonl'
  file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
  local.register_task(
      'own_pairs', str(file), vocabulary=experiment.model.output_vocabulary
  )
  try:
    experiment = dataclasses.replace(
        experiment, mixture_or_task_name='own_pairs'
    )
    batch = next(loop.train_data(experiment))
    assert loop._places(experiment, batch) == [f'{file}, {x}' for x in places]
  finally:
    seqio.TaskRegistry.remove('own_pairs')
    registration.RECORDS.pop('own_pairs')


@pytest.mark.parametrize('model', MODELS)
def test_the_tokens_of_a_step_are_those_of_both_answers(tmp_path, model):
  load(tmp_path, model)
  step = step_program.of_experiment(run.build(), jax.devices())
  assert step.tokens == sum(
      x.size for name, x in step.batch.items() if name.endswith('input_tokens')
  )


def test_what_is_evaluated_are_questions_and_not_pairs(tmp_path):
  load(tmp_path, EVAL_MIXTURE_OR_TASK_NAME=TASK)
  with refusals.refused('EVAL_MIXTURE_OR_TASK_NAME', TASK, 'ranked'):
    run.build()


def test_a_task_without_preferences_is_named():
  nothing = lambda split, shuffle_files: None
  seqio.TaskRegistry.add(
      'no_preferences',
      source=seqio.FunctionDataSource(nothing, splits=('train',)),
      preprocessors=[],
      output_features={'text': seqio.Feature(vocabularies.byte_vocabulary())},
  )
  with refusals.refused('MIXTURE_OR_TASK_NAME', 'prompt'):
    preference_data.ranked('no_preferences')


def test_held_out_pairs_are_ranked():
  register()
  name = preference_data.ranked(TASK)
  assert preference_data.ranked(TASK) == name
  rows = list(seqio.get_mixture_or_task(name).get_dataset(
      {'inputs': 24, 'targets': 6}, 'validation', shuffle=False
  ).as_numpy_iterator())
  assert len(rows) == 12
  vocabulary = vocabularies.byte_vocabulary()
  targets = []
  for number, row in enumerate(rows):
    question, choice = row['idx']
    assert (question, choice) == divmod(number, 2)
    # The right place changes, so no place is a good answer.
    assert row['is_correct'] == (choice == question % 2)
    text = vocabulary.decode(row['targets'].tolist())
    assert text == ('aa' if row['is_correct'] else 'bbb')
    targets.append(row['is_correct'])
  scores = [3.0 if right else 1.5 for right in targets]
  task = seqio.get_mixture_or_task(name)
  targets = [task.postprocess_fn('', example=r, is_target=True) for r in rows]
  values = {}
  for function in task.score_metric_fns:
    values |= function(targets, scores)
  assert values == {'accuracy': 100.0, 'margin': 1.5}
  # An odd number of rows cuts the last pair, which is no pair then.
  cut = preference_data.margin(targets[:3], [*scores[:2], -50.0])
  assert cut == {'margin': 1.5}


@pytest.mark.slow
def test_a_run_learns_what_is_preferred(tmp_path):
  options = dict(TRAIN_STEPS=30, LEARNING_RATE=1e-2, LOG_PERIOD=10)
  load(tmp_path, 'tiny_llama', **options)
  assert run.run_experiment() == tmp_path
  results = json.loads((tmp_path / 'results.json').read_text())
  values = results['tasks'][f'{TASK}.ranked']
  assert values['accuracy']['adapted'] == 100
  lines = (tmp_path / 'metrics' / 'train.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  assert last['rewards/accuracies'] == 1
  gained = values['margin']['adapted'] - values['margin']['base']
  # On held-out pairs as on the last batches: beta times what was gained.
  assert 0.1 * gained == pytest.approx(last['rewards/margins'], rel=0.3)
  load(tmp_path, 'tiny_llama', **options)
  assert run.run_experiment() == tmp_path  # There is nothing left to do.

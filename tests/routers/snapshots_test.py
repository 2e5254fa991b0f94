# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the routing of held-out rows."""

import jax
import numpy as np
import pytest
import seqio

from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.evaluation import evaluator
from moe_peft.routers import snapshots
from moe_peft.routers import statistics
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import scoring
from tests import refusals
from tests.training import tiny


def _evaluator(experiment, num_examples=16):
  return evaluator.Evaluator(
      experiment.mixture_or_task_name,
      converters.of_model(experiment.model),
      experiment.task_feature_lengths,
      'validation',
      batch_size=8,
      num_examples=num_examples,
      mesh=partitioning.make_mesh(),
  )


@pytest.mark.slow
def test_the_same_parameters_do_not_drift_and_others_do(tmp_path):
  setup = experiment_lib.prepare(
      tiny.experiment(tmp_path, SITES='.*/mlp/wo')
  )
  batches = scoring.make_evaluator(setup).first_rows(snapshots.ROWS_PER_TASK)
  snapshot = snapshots.Snapshots(setup.experiment.model, batches, setup.mesh)
  params = {**setup.frozen, **setup.trainable}
  other = {
      k: np.roll(v, 1, axis=-1) if k.endswith('router/kernel') else v
      for k, v in params.items()
  }
  rows = snapshot.rows()
  assert [task for task, _ in rows] == ['past_tense'] * 2
  for _, pieces in rows:
    text = ''.join(pieces['encoder'])
    assert text.startswith('past tense: ') and text.endswith('⟨end⟩')
    # What the decoder reads begins with the start, and ends with the answer.
    assert pieces['decoder'][0] == '⟨start⟩'
    assert '⟨end⟩' not in pieces['decoder']
  weights = [snapshot.weights(x) for x in (params, params, other)]
  for site in ('encoder/layers_0/mlp/wo', 'decoder/layers_0/mlp/wo'):
    stack = site.partition('/')[0]
    first, same, moved = (
        np.concatenate([
            x[: len(pieces[stack])]
            for x, (_, pieces) in zip(w[site], rows, strict=True)
        ])
        for w in weights
    )
    np.testing.assert_array_equal(first, same)
    # The experts have changed places, and nothing else.
    assert statistics.drift(first, moved) > 1e-3
    np.testing.assert_allclose(moved.sum(-1), 1, atol=2e-3)


def test_a_method_without_routers_leaves_nothing(tmp_path):
  experiment = tiny.experiment(tmp_path, 'lora')
  init = lambda: experiment.model.init(
      jax.random.key(0), experiment.task_feature_lengths
  )['params']
  batches = _evaluator(experiment).first_rows(2)
  snapshot = snapshots.Snapshots(
      experiment.model, batches, partitioning.make_mesh()
  )
  assert snapshot.weights(trainable.flatten(jax.eval_shape(init))) == {}


def test_a_task_with_few_rows_does_not_move_those_of_others(tmp_path):
  experiment = tiny.experiment(tmp_path, 'lora')
  (batch,) = _evaluator(experiment).first_rows(2).values()
  one = {k: x * np.array([[1], [0]], x.dtype) for k, x in batch.items()}
  mesh = partitioning.make_mesh()
  alone = snapshots.Snapshots(experiment.model, {'b': batch}, mesh).rows()
  both = snapshots.Snapshots(experiment.model, {'a': one, 'b': batch}, mesh)
  assert both.rows() == [('a', alone[0][1]), *alone]


def test_pieces_are_the_text():
  vocabulary = seqio.ByteVocabulary()
  ids = [0, *vocabulary.encode('aé'), vocabulary.eos_id,
         *vocabulary.encode('b')]
  assert snapshots.pieces(vocabulary, ids, 0)[:2] == ['⟨start⟩', 'a']
  assert snapshots.pieces(vocabulary, ids)[-2:] == ['⟨end⟩', 'b']
  assert len(snapshots.pieces(vocabulary, ids)) == len(ids)


def test_right_answers_are_chosen_among_choices(tmp_path):
  experiment = tiny.experiment(tmp_path, MIXTURE_OR_TASK_NAME='article')
  batch = _evaluator(experiment).first_rows(4)['article']
  vocabulary = experiment.model.input_vocabulary
  for inputs, targets in zip(
      batch['encoder_input_tokens'], batch['decoder_target_tokens'],
      strict=True,
  ):
    word = vocabulary.decode(inputs.tolist()).split()[-1]
    answer = vocabulary.decode(targets.tolist())
    # The article goes by the sound, which is nearly always the letter.
    assert answer == ('an' if word[0] in 'aeio' else 'a'), word
  prompts = [tuple(x) for x in batch['encoder_input_tokens']]
  assert len(set(prompts)) == 4  # One row a prompt, not one a choice.


def test_half_a_question_is_not_evaluated(tmp_path):
  experiment = tiny.experiment(tmp_path, MIXTURE_OR_TASK_NAME='article')
  with refusals.refused('EVAL_EXAMPLES', 'article', '2 choices'):
    _evaluator(experiment, num_examples=1)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ids of examples in T5X's models, beside those of the embedded engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.data import converters
from tests.models import example_ids_test as ours
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = pytest.mark.t5x


def t5x_model(kind, **options):
  from moe_peft.t5x import models

  options['optimizer_def'] = None
  if kind == 't5':
    return models.AdaptedEncoderDecoderModel(
        ours.network(kind), ours.VOCABULARY, ours.VOCABULARY, **options
    )
  return models.AdaptedDecoderOnlyModel(
      ours.network(kind), ours.VOCABULARY, **options
  )


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_both_engines_say_the_same(kind):
  theirs, params = t5x_model(kind), ours.params(kind)
  for pack in (False, True):
    made = [
        list(converter(ours.dataset(), ours.LENGTHS).as_numpy_iterator())
        for converter in (
            theirs.FEATURE_CONVERTER_CLS(pack=pack),
            converters.of_model(ours.model(kind), pack),
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, *made)
    batch = jax.tree.map(lambda *x: jnp.stack(x), *made[0])
    score = jax.jit(ours.model(kind).score)
    np.testing.assert_allclose(
        jax.jit(theirs.score_batch)(params, batch), score(params, batch),
        rtol=1e-5,
    )
  batch = ours.batch(kind)
  generate = jax.jit(lambda params, batch: ours.model(kind).generate(
      params, ours.model(kind).prompts(batch)[:, :8], 4,
      example_ids=batch['example_ids'],
  ))
  one = np.asarray(jax.jit(theirs.predict_batch)(params, batch))
  np.testing.assert_array_equal(one[:, :4], generate(params, batch))


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_samples_of_an_example_have_its_id(kind):
  from t5x import decoding

  # From one token, so that all samples are the best answer.
  model = t5x_model(kind, decode_fn=decoding.temperature_sample)
  predict = functools.partial(model.predict_batch_with_aux, num_decodes=2)
  both, _ = jax.jit(functools.partial(predict, return_all_decodes=True))(
      ours.params(kind), ours.batch(kind)
  )
  one = jax.jit(model.predict_batch)(ours.params(kind), ours.batch(kind))
  for number in range(2):
    np.testing.assert_array_equal(both[:, number], one)


@pytest.mark.slow
def test_a_run_of_t5x_trains_and_evaluates_with_ids(tmp_path):
  """Training evaluation looks tasks up by their names, and finds the ids."""
  training.add_task()
  file = tmp_path / 'run.gin'
  imports = 'import seqio\nfrom t5x import utils'
  config = networks.adapted('lora_id', 'own', imports=imports)
  file.write_text(config + training.DATA + """
BATCH_SIZE = 8
EVAL_PERIOD = 1
EVAL_STEPS = 1
train/utils.DatasetConfig.pack = True
seqio.Evaluator.num_examples = 8
""")
  macros = dict(
      MODEL_DIR=str(tmp_path), INITIAL_CHECKPOINT_PATH=[], TRAIN_STEPS=1,
      WARMUP_STEPS=0, NUM_EXPERTS=2, RANK=2, USE_CACHED_TASKS=False,
      EXAMPLE_IDS=('another', training.TASK),
  )
  with training.parsed('train', [file], **macros) as main:
    _, state = main()
  moved = {
      path: np.abs(np.asarray(x)).reshape(-1, *x.shape[-2:])
      for path, x in training.flat_params(state).items()
      if path.endswith('lora_b')
  }
  for path, x in moved.items():  # Experts first, then layers of the scan.
    first, second = np.split(x, 2)
    assert first.max() == 0 < second.max(), path
  written = {x.name for x in (tmp_path / 'inference_eval').glob('*.jsonl')}
  assert any(training.TASK in name for name in written), written

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stock T5X trains, saves and evaluates an imported LLaMA with adapters."""

import json

import gin
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import seqio

from moe_peft.data import converters
from moe_peft.data import vocabularies
from moe_peft.hf import import_base
from moe_peft.models import decoder_only
from tests.hf import import_decoder_test as models
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

# The sizes of networks.NETWORKS.
SIZES = {
    **models.SMALL,
    'vocab_size': 384,
    'hidden_size': 8,
    'intermediate_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 4,
    'rope_theta': 10000.0,
    'tie_word_embeddings': True,
}
LENGTHS = {'inputs': 8, 'targets': 8}  # Those of tests.t5x.training.
LENGTH = sum(LENGTHS.values())


def make_base(folder, layout):
  """Imports a LLaMA; returns T5X's checkpoint and the parameters by path."""
  hf = models.write_model(folder / 'hf', SIZES, models.random_tensors(SIZES))
  import_base.import_base(hf, folder / 'base', layout)
  import_base.import_base(hf, folder / 'flat', layout, 'safetensors')
  params = safetensors_numpy.load_file(folder / 'flat' / 'model.safetensors')
  return str(folder / 'base' / 'checkpoint_0'), params


@pytest.mark.parametrize(
    'layout', [pytest.param('t5', marks=pytest.mark.long), 'scan']
)
def test_an_imported_llama_trains_and_is_evaluated(tmp_path, layout):
  base, base_params = make_base(tmp_path, layout)
  macros = {'NUM_EXPERTS': 3, 'RANK': 2, 'SCAN_LAYERS': layout == 'scan'}
  state = training.train(
      networks.adapted(
          'moelora',  # Losses, which no scan may lose.
          'llama',
          includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
          more="LEARNING_RATE = 0.3\nSITE_METRICS = ('router_entropy',)\n",
      ),
      tmp_path / 'run',
      INITIAL_CHECKPOINT_PATH=base,
      TRAIN_STEPS=3,
      **macros,
  )
  training.check_trained(state, base_params, 3)

  folder = tmp_path / 'eval'
  with (
      training.on_one_device(),
      training.configured(
          'eval',
          networks.adapted('moelora', 'llama', run='t5x_eval'),
          folder / 'gin',
          EVAL_OUTPUT_DIR=str(folder),
          CHECKPOINT_PATH=str(tmp_path / 'run' / 'checkpoint_3'),
          **macros,
      ) as main,
  ):
    main()
    # The model of the embedded engine, with the same parameters.
    vocabulary = vocabularies.byte_vocabulary()
    model = decoder_only.DecoderOnlyModel(
        gin.get_bindings(main)['model'].module, vocabulary, vocabulary
    )
    params = state.state_dict()['target']
    prompts = np.asarray(model.prompts(read_batch(training.TASK)))
    tokens = np.asarray(model.generate(params, prompts, LENGTH))
    # T5X stops at the end of the row in which the prompt stands.
    row_ends = LENGTH - (prompts > 0).sum(axis=-1, keepdims=True)
    tokens = np.where(np.arange(LENGTH) < row_ends, tokens, 0)
    answers = vocabulary.decode_tf(tokens).numpy()
    scores = model.score(params, read_batch(training.CHOICES_TASK))
  found = read_lines(folder, training.CHOICES_TASK)
  np.testing.assert_allclose(
      [line['score'] for line in found], scores, rtol=1e-5
  )
  assert len(set(np.asarray(scores).tolist())) > 32
  found = read_lines(folder, training.TASK)
  assert [line['prediction'] for line in found] == [
      answer.decode('utf-8', 'ignore') for answer in answers
  ]


def read_batch(task):
  """All examples of a task as one batch."""
  dataset = seqio.get_dataset(
      task,
      task_feature_lengths=LENGTHS,
      dataset_split='validation',
      feature_converter=converters.RowConverter(
          vocabularies.byte_vocabulary(), 0, pack=False
      ),
      shuffle=False,
  )
  (batch,) = dataset.batch(1000).as_numpy_iterator()
  return batch


def read_lines(folder, task):
  file = folder / 'inference_eval' / f'{task}-000003.jsonl'
  return [json.loads(line) for line in file.read_text().splitlines()]

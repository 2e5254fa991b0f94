# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Public gin files of T5X and Flaxformer, adapted, made tiny and trained."""

import numpy as np
import pytest

from moe_peft.training import bases
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

# Vocabularies of the files lie in a bucket.
BYTES = """
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 125
network.T5Config.vocab_size = 384
"""
LEAVES = {
    't5x/examples/t5/t5_1_0/base.gin': 'examples.t5',
    't5x/examples/t5/t5_1_1/base.gin': 'examples.t5',
    't5x/examples/t5/mt5/base.gin': 'examples.t5',
    't5x/examples/t5/byt5/base.gin': 'examples.t5',
    't5x/examples/scalable_t5/t5_1_1/base.gin': 'examples.scalable_t5',
    't5x/examples/scalable_t5/mt5/base.gin': 'examples.scalable_t5',
    't5x/examples/decoder_only/models/xl.gin': 'examples.decoder_only',
    'flaxformer/t5x/configs/t5/models/t5_base.gin': 'flaxformer',
    'flaxformer/t5x/configs/t5/models/t5_1_1_large.gin': 'flaxformer',
    'flaxformer/t5x/configs/t5/models/byt5_small.gin': 'flaxformer',
}


# Here, where sizes and vocabulary are small ones, they differ in little.
LIKE_OTHERS = {
    't5x/examples/t5/mt5/base.gin',
    't5x/examples/scalable_t5/mt5/base.gin',
    'flaxformer/t5x/configs/t5/models/byt5_small.gin',
}


@pytest.mark.parametrize(
    'leaf',
    [
        pytest.param(x, marks=[pytest.mark.long] * (x in LIKE_OTHERS))
        for x in LEAVES
    ],
)
def test_a_public_leaf_is_adapted_and_trained(leaf, tmp_path):
  name = LEAVES[leaf]
  networks.require(name)
  config = networks.adapted(
      'molora', name, imports='import seqio', sizes=leaf,
      more=BYTES if name.endswith('t5') else '',
  )
  macros = dict(
      MODEL_DIR=str(tmp_path / 'run'), TRAIN_STEPS=3,
      INITIAL_CHECKPOINT_PATH=str(tmp_path / 'checkpoint_0'),
      NUM_EXPERTS=3, RANK=2,
  )
  with (
      training.on_one_device(),
      training.configured(
          'train', config, tmp_path / 'gin', networks.NETWORKS[name].package,
          **macros,
      ) as train,
  ):
    rng = np.random.default_rng(0)
    base = {
        path: rng.normal(0, 0.2, x.shape).astype(np.float32)
        for path, x in planning.step().frozen.items()
    }
    bases.write_t5x(base, tmp_path)
    _, state = train()
  training.check_trained(state, base, 3)

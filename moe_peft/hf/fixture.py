# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parity fixtures: tokens and the logits that JAX computes for them."""

from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft.hf import trained as trained_lib

FILE = 'parity.safetensors'
_ENCODER_LENGTH = 24
_DECODER_LENGTH = 8


def write(
    folder: Path,
    trained: trained_lib.Trained,
    params: dict[str, np.ndarray] | None = None,
) -> float:
  """Writes `parity.safetensors`.

  It holds random tokens, the second row with padding, the logits of the
  model, and those of the bare base.

  Args:
    folder: Where to.
    trained: The model.
    params: Parameters of the bare base to use instead of the model's.

  Returns:
    How far the adapter moves a logit, at most.
  """
  rng = np.random.default_rng(0)
  vocab_size = trained.config.vocab_size
  inputs, decoder_inputs = (
      rng.integers(3, vocab_size, (2, length), dtype=np.int32)
      for length in (_ENCODER_LENGTH, _DECODER_LENGTH)
  )
  inputs[1, _ENCODER_LENGTH // 2 :] = 0
  decoder_inputs[:, 0] = 0
  logits = trained.logits(inputs, decoder_inputs, params)
  base = trained.logits(inputs, decoder_inputs, trained.base_params)
  safetensors_numpy.save_file(
      {
          'input_ids': inputs,
          'decoder_input_ids': decoder_inputs,
          'logits': logits,
          'base_logits': base,
      },
      folder / FILE,
  )
  return float(np.abs(logits - base).max())


def read(folder: Path) -> dict[str, np.ndarray]:
  """Reads the fixture of a folder.

  Raises:
    errors.UserError: If it has none.
  """
  file = folder / FILE
  if not file.is_file():
    raise errors.UserError(
        f'{folder} holds no {FILE}; give a folder that `python -m moe_peft hf '
        'export` wrote.'
    )
  try:
    return safetensors_numpy.load_file(file)
  except Exception as error:  # The library raises several kinds.
    raise errors.UserError(f'{file} cannot be read: {error}') from error

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5's tensors of a Hugging Face folder as parameters of models/t5.py."""


import numpy as np

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import names
from moe_peft.models import t5


def plan(
    tensors: folders.Tensors,
    config: t5.T5Config,
    layout: str,
) -> tuple[folders.Readers, t5.T5Config]:
  """Plans the import of a model.

  Args:
    tensors: The tensors of the folder.
    config: What `architecture.from_hf` returned.
    layout: One of `names.LAYOUTS`.

  Returns:
    Shape and reader by T5X path, and the final configuration.

  Raises:
    errors.UserError: For missing, unused and mis-shaped tensors, and for two
      embeddings that differ.
  """
  entries = names.entries(config, layout)
  expected = {
      source: entry.hf_shape for entry in entries for source in entry.sources
  }
  width = (config.vocab_size, config.emb_dim)
  aliases = [name for name in names.HF_EMBEDDINGS if name in tensors.shapes]
  expected.update({name: width for name in aliases or names.HF_EMBEDDINGS[:1]})
  if names.HF_LOGITS in tensors.shapes:
    expected[names.HF_LOGITS] = width
  folders.check_shapes(tensors.shapes, expected, names.HF_IGNORED)

  embedding = tensors[aliases[0]]
  for name in aliases[1:]:
    if not np.array_equal(tensors[name], embedding):
      raise errors.UserError(
          f'{name} differs from {aliases[0]}; T5 shares one embedding.'
      )
  readers = {names.EMBEDDING: (width, lambda: tensors[aliases[0]])}
  logits, config = _plan_logits(tensors, config, embedding, aliases[0])
  if logits is not None:
    readers[names.LOGITS] = (width[::-1], logits)
  readers |= names.readers(entries, tensors)
  return readers, config


def _plan_logits(tensors, config, embedding, alias):
  """Returns the reader of `logits_dense`, if there is one, and the config.

  Four cases: tied and scaled (T5 1.0) has none; a head of its own is taken
  over; without a head of its own but unscaled it is the embedding's; scaled
  with a head of its own, which transformers allows, gets the scale.
  """
  own = names.HF_LOGITS in tensors.shapes
  if not config.logits_via_embedding:
    name = names.HF_LOGITS if own else alias
    return lambda: tensors[name].T, config
  if not own or np.array_equal(tensors[names.HF_LOGITS], embedding):
    return None, config

  def scaled():
    kernel = tensors[names.HF_LOGITS].T.astype(np.float32)
    return kernel * np.float32(config.emb_dim**-0.5)

  return scaled, config.replace(logits_via_embedding=False)

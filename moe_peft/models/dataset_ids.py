# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ids of data sets, and ids of models.

SeqIO and T5X take the id 0 for padding: in packing, in what they generate, in
prompts. In many vocabularies of decoders it is an ordinary token, as `!` in
those of Qwen and LLaMA 3. So a vocabulary may have an `id_offset`: in data
sets, prompts and answers its ids are the model's plus that, and 0 is free. The
feature converter takes the offset off. T5's vocabularies have none.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp


def offset(vocabulary: Any) -> int:
  """How much larger the ids of data sets are than the model's."""
  return getattr(vocabulary, 'id_offset', 0)


def stop_ids(vocabulary: Any) -> tuple[int, ...]:
  """The ids of data sets at which an answer ends; the first is the EOS."""
  end = vocabulary.eos_id
  return getattr(vocabulary, 'stop_ids', () if end is None else (end,))


@dataclasses.dataclass(frozen=True)
class InDatasetIds:
  """A network with the call of T5X's decoders, in the ids of data sets.

  It reads and predicts them; 0 is never predicted. Everything else is the
  network's own.

  Attributes:
    module: The network.
    vocabulary: Its vocabulary.
    one_end: Whether the first of the ids that end an answer stands for all, for
      those who stop at one only: its logit is the largest of theirs.
  """

  module: Any
  vocabulary: Any
  one_end: bool = False

  def __getattr__(self, name: str) -> Any:
    return getattr(self.module, name)

  def apply(
      self,
      variables: Any,
      decoder_input_tokens: Any,
      decoder_target_tokens: Any,
      **options: Any,
  ) -> Any:
    """Applies the network, with `mutable` collections among the options.

    Returns:
      Logits `<float>[batch, length, offset + vocab]`, and the collections.
    """
    more = offset(self.vocabulary)
    logits, collections = self.module.apply(
        variables,
        jnp.maximum(decoder_input_tokens - more, 0),
        decoder_target_tokens,
        **options,
    )
    never = jnp.finfo(logits.dtype).min
    before = ((0, 0),) * (logits.ndim - 1) + ((more, 0),)
    logits = jnp.pad(logits, before, constant_values=never)
    ends = list(stop_ids(self.vocabulary))
    if self.one_end and len(ends) > 1:
      best = logits[..., ends].max(axis=-1)
      logits = logits.at[..., ends].set(never).at[..., ends[0]].set(best)
    return logits, collections

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What becomes of examples that are longer than TASK_FEATURE_LENGTHS.

The length of `inputs` is that of what a model is given, the length of `targets`
that of what it learns. An answer is never cut: its end would not be learned.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from moe_peft import errors

DROP, CUT, ERROR = POLICIES = ('drop', 'cut', 'error')
# What TASK_FEATURE_LENGTHS calls the lengths of a feature.
KIND = {
    'inputs': 'inputs', 'targets': 'targets',
    'prompt': 'inputs', 'chosen': 'targets', 'rejected': 'targets',
}  # fmt: skip


def check_policy(policy: str, where: str) -> str:
  """Returns the policy; raises errors.UserError if there is no such."""
  if policy not in POLICIES:
    raise errors.UserError(
        f'{policy!r} is none of {", ".join(POLICIES)}.', where,
        "'drop' leaves long examples out, 'cut' cuts their inputs at the left, "
        "'error' refuses them.",
    )
  return policy


class Fit:
  """A SeqIO preprocessor that leaves out or cuts long examples of tokens."""

  def __init__(self, policy: str):
    """Takes one of `POLICIES`."""
    self._policy = policy

  def __call__(
      self,
      dataset: tf.data.Dataset,
      output_features,
      sequence_length: Mapping[str, int] | None = None,
  ) -> tf.data.Dataset:
    """Called by SeqIO, before it appends the ends of sequences."""
    if not sequence_length or self._policy == ERROR:
      return dataset
    limits = {
        name: sequence_length[KIND[name]] - int(feature.add_eos)
        for name, feature in output_features.items()
        if sequence_length.get(KIND.get(name)) is not None
    }

    def cut(example):
      return example | {
          # From the end: there may be room for the end of a sequence alone.
          name: example[name][tf.maximum(tf.size(example[name]) - limit, 0) :]
          for name, limit in limits.items()
          if KIND[name] == 'inputs'
      }

    def fits(example):
      return tf.reduce_all([
          tf.size(example[name]) <= limit for name, limit in limits.items()
      ])

    if self._policy == CUT:
      dataset = dataset.map(cut)
    return dataset.filter(fits)


def too_long(
    sizes: Sequence[Mapping[str, int]], policy: str, limits: Mapping[str, int]
) -> tuple[int, int]:
  """How many examples `Fit` cuts and how many it leaves out.

  Args:
    sizes: Tokens of the features of every example, ends included.
    policy: 'drop' or 'cut'.
    limits: TASK_FEATURE_LENGTHS.

  Returns:
    The numbers of examples that are cut, and that are left out.
  """
  cut = dropped = 0
  for size in sizes:
    long = {KIND[name] for name, n in size.items() if n > limits[KIND[name]]}
    if policy == CUT and long == {'inputs'}:
      cut += 1
    elif long:
      dropped += 1
  return cut, dropped

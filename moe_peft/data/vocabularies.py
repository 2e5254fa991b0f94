# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies that need no file."""

import functools

import seqio


@functools.lru_cache(maxsize=1)
def byte_vocabulary() -> seqio.ByteVocabulary:
  """Returns ByT5's vocabulary (arXiv 2105.13626): 384 ids, no file.

  0 is padding, 1 the end of a sequence, 2 unknown, 3 to 258 the bytes, and
  259 to 383 are 125 sentinels (383 is the first one of T5's span corruption).
  """
  return seqio.ByteVocabulary(extra_ids=125)

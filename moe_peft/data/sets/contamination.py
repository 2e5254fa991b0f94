# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds training rows that equal, or nearly equal, rows of an evaluation.

Texts are compared by their sets of word n-grams, numbers masked, so that a
problem with other numbers is a copy too. Two texts are near copies if the
Jaccard index of their sets, the size of the intersection over that of the
union, reaches a threshold.
"""

import collections
from collections.abc import Iterable
import re

WORDS = 5
THRESHOLD = 0.5

# What the formats of the tasks put around a question.
_FRAME = re.compile(
    r'^(question|answer|goal|fill in the blank):', re.IGNORECASE | re.MULTILINE
)
_WORD = re.compile(r'\d[\d.,]*|\w+')


def ngrams(text: str) -> frozenset[tuple[str, ...]]:
  """The n-grams of a text; of one that is shorter than n words, itself."""
  found = _WORD.findall(_FRAME.sub(' ', text.lower()))
  words = ['0' if word[0].isdigit() else word for word in found]
  last = max(1, len(words) - WORDS + 1)
  return frozenset(tuple(words[i : i + WORDS]) for i in range(last))


class Index:
  """Texts of evaluations, to be asked for near copies."""

  def __init__(self, texts: Iterable[tuple[str, str]]):
    """Makes an index.

    Args:
      texts: (name of the evaluation, text); the name is what `find` returns.
    """
    self._names: list[str] = []
    self._sizes: list[int] = []
    self._holders: dict[tuple[str, ...], list[int]] = {}
    known = {}
    for name, text in texts:
      grams = ngrams(text)
      if known.setdefault(grams, len(self._names)) < len(self._names):
        continue
      for gram in grams:
        self._holders.setdefault(gram, []).append(len(self._names))
      self._names.append(name)
      self._sizes.append(len(grams))

  def find(self, text: str, threshold: float = THRESHOLD) -> str | None:
    """Returns the evaluation that has a near copy of a text, or None.

    Args:
      text: A training row.
      threshold: Least Jaccard index of a near copy, above 0.
    """
    grams = ngrams(text)
    shared = collections.Counter()
    for gram in grams:
      shared.update(self._holders.get(gram, ()))
    best, nearest = 0.0, None
    for number, count in shared.items():
      jaccard = count / (len(grams) + self._sizes[number] - count)
      if jaccard >= max(threshold, best):
        best, nearest = jaccard, self._names[number]
    return nearest

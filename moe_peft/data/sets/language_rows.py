# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows in many languages: lemmas, dates, and plural classes of numbers.

Lemmas are those of the package `simplemma`, whose tables come from Wiktionary,
UniMorph and others under licenses of their own (ODbL, CC BY-SA, GPL), so no
row is part of this repository. Dates and plural classes are Unicode's CLDR,
read through the package `babel`.

What decides a split is the same in all languages: the lemma, the date, the
number. A row of an unseen language whose form and lemma a seen language also
trains on is left out of its evaluation.
"""

from collections.abc import Callable, Iterator
import dataclasses
import datetime
import functools
import itertools
import zlib

from moe_peft.data import packages
from moe_peft.data import rows

MAX_TRAIN_ROWS = 8000
MAX_EVAL_ROWS = 200
# Bytes that fit `{'inputs': 48, 'targets': 40}` with the ends.
_MOST_BYTES = {'inputs': 47, 'targets': 39}
_NUMBERS = range(10_000)
# A plural class of fewer numbers is an exception, not a class to learn.
_LEAST_NUMBERS = 500
# Finnish has 3.4 million forms, of which a few thousand are kept: a fixed share
# of so many is looked at.
_MOST_FORMS = 200_000
_FIRST_DAY, _DAYS = datetime.date(1926, 1, 1), 36_525

Splits = dict[str, tuple[rows.Row, ...]]


def split_of(unit: str) -> str:
  """The split of a lemma, a date or a number: 80, 10 and 10 %."""
  bucket = rows.stable_hash(f'language/{unit}') % 10
  return {8: 'validation', 9: 'test'}.get(bucket, 'train')


def _lemmas(language: str) -> Iterator[rows.Row]:
  factory = packages.import_optional(
      'simplemma.strategies.dictionaries.dictionary_factory', 'languages'
  ).DefaultDictionaryFactory()
  dictionary = factory.get_dictionary(language)
  every = -(-len(dictionary) // _MOST_FORMS)
  for form, lemma in dictionary.items():
    if zlib.crc32(form.encode()) % every:
      continue
    # Forms that are their own lemma ask nothing.
    if form != lemma and form.isalpha() and 3 <= len(form.encode()) <= 24:
      yield rows.Row(f'lemma {language}: {form}', lemma, (lemma,))


def _dates(language: str) -> Iterator[rows.Row]:
  """Days that are not written out: that takes long, and few are kept."""
  for number in range(_DAYS):
    day = str(_FIRST_DAY + datetime.timedelta(number))
    yield rows.Row(f'date {language}: {day}', '', (day,))


def _writer(language: str) -> Callable[[rows.Row], rows.Row]:
  """Returns a function that gives a day its text."""
  dates = packages.import_optional('babel.dates', 'languages')
  locale = packages.import_optional('babel', 'languages').Locale.parse(language)

  def write(row):
    day = datetime.date.fromisoformat(row.words[0])
    text = dates.format_date(day, 'long', locale=locale)
    return dataclasses.replace(row, targets=text)

  return write


def _plurals(language: str) -> Iterator[rows.Row]:
  babel = packages.import_optional('babel', 'languages')
  form = babel.Locale.parse(language).plural_form
  numbers = {}
  for number in _NUMBERS:
    numbers.setdefault(form(number), []).append(number)
  common = {k: v for k, v in numbers.items() if len(v) >= _LEAST_NUMBERS}
  choices = tuple(sorted(common))
  for name, found in common.items():
    for number in found:
      yield rows.Row(
          f'plural {language}: {number}', name, (str(number),), choices
      )


_BUILDERS: dict[str, Callable[[str], Iterator[rows.Row]]] = {
    'lemma': _lemmas, 'date': _dates, 'plural': _plurals,
}


@functools.cache
def split_rows(task: str, language: str) -> Splits:
  """Split -> rows of a task in a language, in a fixed pseudo-random order.

  Rows that are too long are left out, and choices are balanced.

  Args:
    task: 'lemma', 'date' or 'plural'.
    language: Code of the package that the task reads.

  Raises:
    errors.UserError: The package is not installed.
  """
  by_split = {split: [] for split in rows.SPLITS}
  for row in _BUILDERS[task](language):
    by_split[split_of(row.words[0])].append(row)
  write = _writer(language) if task == 'date' else lambda row: row
  result = {}
  for split, found in by_split.items():
    ordered = rows.by_hash(found, key=lambda row: row.inputs)
    limit = MAX_TRAIN_ROWS if split == 'train' else MAX_EVAL_ROWS
    whole = filter(_fits, map(write, ordered))
    if ordered and ordered[0].choices:
      whole = rows.balance(list(whole), limit)
    result[split] = tuple(itertools.islice(whole, limit))
  return result


def _fits(row: rows.Row) -> bool:
  return all(
      len(getattr(row, feature).encode()) <= most
      for feature, most in _MOST_BYTES.items()
  )


@functools.cache
def unseen_rows(task: str, language: str, seen: tuple[str, ...]) -> Splits:
  """Rows of a language that nothing trains on: evaluation alone.

  Args:
    task: As for `split_rows`.
    language: The unseen one.
    seen: Languages whose training rows must not say the same: rows of which
      both the question without its prefix and the answer occur there.
  """
  pair = lambda row: (row.inputs.partition(': ')[2], row.targets)
  trained = set()
  if task == 'lemma':  # The class of a number is not the same everywhere.
    for other in seen:
      trained |= {pair(row) for row in split_rows(task, other)['train']}
  return {
      split: () if split == 'train' else tuple(
          row for row in found if pair(row) not in trained
      )
      for split, found in split_rows(task, language).items()
  }

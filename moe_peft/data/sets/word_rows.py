# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of the word tasks: what is asked and what is answered.

Each builder takes a `lexicon.Lexicon` and yields rows in any order;
`split_rows` puts them in their splits, orders them by a stable hash, balances
the classes of classification tasks, and cuts the evaluation splits.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import functools

from moe_peft.data import rows
from moe_peft.data.sets import lexicon

MAX_EVAL_ROWS = 400

Builder = Callable[[lexicon.Lexicon], Iterable[rows.Row]]
Splits = dict[str, tuple[rows.Row, ...]]


def _is_vowel(phone: str) -> bool:
  return phone[-1].isdigit()


def _lemmas(words: lexicon.Lexicon) -> list[str]:
  return list(dict.fromkeys(e.lemma for e in words.entries))


def _spoken_lemmas(words: lexicon.Lexicon) -> Iterator[tuple[str, list[str]]]:
  for lemma in _lemmas(words):
    if lemma in words.pronunciations:
      yield lemma, list(words.pronunciations[lemma])


# Pretraining


def single_words(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Every surface string, as text for span corruption."""
  for word in words.split:
    if len(word) >= 4:
      yield rows.Row(word, word, (word,))


def word_strings(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Strings of three words of one split, at most 31 bytes, for corruption."""
  by_split = collections.defaultdict(list)
  for word in words.split:
    if len(word) <= 9:
      by_split[words.split[word]].append(word)
  for split in sorted(by_split):
    for salt in ('a', 'b'):
      shuffled = rows.by_hash(by_split[split], key=lambda w, s=salt: f'{s}/{w}')
      for triple in zip(*(shuffled[i::3] for i in range(3)), strict=False):
        yield rows.Row(' '.join(triple), ' '.join(triple), triple)


def spelling(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  for word in words.split:
    if 3 <= len(word) <= 11:
      yield rows.Row(f'spell: {word}', ' '.join(word), (word,))


def joining(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  for word in words.split:
    if 3 <= len(word) <= 11:
      yield rows.Row(f'join: {" ".join(word)}', word, (word,))


def pronunciation(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Phones without stress, so that the stress task stays unseen."""
  for word, phones in words.pronunciations.items():
    sounds = ' '.join(p.rstrip('012').lower() for p in phones)
    if len(word) >= 3 and len(sounds) <= 23:
      yield rows.Row(f'say: {word}', sounds, (word,))


def inflection(
    words: lexicon.Lexicon, *, pos: str, tag: str, prefix: str
) -> Iterator[rows.Row]:
  """One inflected form of each lemma of a part of speech."""
  for entry in words.entries:
    if entry.pos == pos and tag in entry.forms:
      form = entry.forms[tag]
      # The table lists mass nouns ("badness") as their own plural.
      if tag == 'NNS' and form == entry.lemma:
        continue
      yield rows.Row(f'{prefix}: {entry.lemma}', form, (entry.lemma, form))


def derivation(
    words: lexicon.Lexicon,
    *,
    pos: str,
    spell: Callable[[str], str],
    prefix: str,
) -> Iterator[rows.Row]:
  """Words derived from adjectives, where the dictionary lists both."""
  lemmas = {e.lemma for e in words.entries if e.pos == pos}
  for entry in words.entries:
    word, derived = entry.lemma, spell(entry.lemma)
    if entry.pos == 'adj' and derived in lemmas:
      yield rows.Row(f'{prefix}: {word}', derived, (word, derived))


# Adaptation


def lemma(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """The dictionary form of an inflected form that has only one."""
  lemmas_of = collections.defaultdict(set)
  for entry in words.entries:
    lemmas_of[entry.lemma].add(entry.lemma)
    for form in entry.forms.values():
      lemmas_of[form].add(entry.lemma)
  for form, candidates in lemmas_of.items():
    if len(candidates) == 1 and form not in candidates:
      (base,) = candidates
      yield rows.Row(f'lemma: {form}', base, (form, base))


def stress(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """One digit per syllable, 1 where the main stress is."""
  for word, phones in _spoken_lemmas(words):
    pattern = ''.join(str(int(p[-1] == '1')) for p in phones if _is_vowel(p))
    if 2 <= len(pattern) <= 5 and pattern.count('1') == 1:
      yield rows.Row(f'stress: {word}', pattern, (word,))


def syllables(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """How many syllables a word has, 1 to 4."""
  choices = ('1', '2', '3', '4')
  for word, phones in _spoken_lemmas(words):
    count = str(sum(map(_is_vowel, phones)))
    if count in choices:
      yield rows.Row(f'syllables: {word}', count, (word,), choices)


def article(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """`a` or `an`, by the first sound (an hour, a university)."""
  for word, phones in _spoken_lemmas(words):
    target = 'an' if _is_vowel(phones[0]) else 'a'
    yield rows.Row(f'article: {word}', target, (word,), ('a', 'an'))


def part_of_speech(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Part of speech of dictionary forms that have only one."""
  names = {'noun': 'noun', 'verb': 'verb', 'adj': 'adjective', 'adv': 'adverb'}
  pos_of = collections.defaultdict(set)
  for entry in words.entries:
    for word in (entry.lemma, *entry.forms.values()):
      pos_of[word].add(entry.pos)
  for word in _lemmas(words):
    if len(pos_of[word]) == 1:
      (pos,) = pos_of[word]
      yield rows.Row(
          f'class: {word}', names[pos], (word,), tuple(names.values())
      )


def word_form(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Which inflected form a word is, where that is certain."""
  names = {'NNS': 'plural', 'VBD': 'past', 'VBG': 'gerund',
           'JJR': 'comparative', 'JJS': 'superlative'}
  names_of = collections.defaultdict(set)
  bases = set(_lemmas(words))
  for entry in words.entries:
    for tag, form in entry.forms.items():
      names_of[form].add('past' if tag == 'VBN' else names.get(tag, tag))
  for form, found in names_of.items():
    if len(found) == 1 and form not in bases and found <= set(names.values()):
      (name,) = found
      yield rows.Row(f'form: {form}', name, (form,), tuple(names.values()))


def _rhyme_part(phones: list[str]) -> str:
  """The sounds from the last stressed vowel on, without stress digits."""
  vowels = [i for i, p in enumerate(phones) if _is_vowel(p)]
  stressed = [i for i in vowels if phones[i][-1] in '12']
  start = (stressed or vowels or [0])[-1]
  return ' '.join(p.rstrip('012') for p in phones[start:])


def rhyme(words: lexicon.Lexicon) -> Iterator[rows.Row]:
  """Do two words rhyme? Each word asks once; half of the answers are yes."""
  by_split = collections.defaultdict(list)
  for word, phones in _spoken_lemmas(words):
    if 3 <= len(word) <= 10:
      by_split[words.split[word]].append((word, _rhyme_part(phones)))
  for split in sorted(by_split):
    shuffled = rows.by_hash(by_split[split], key=lambda x: f'rhyme/{x[0]}')
    rhyming = collections.defaultdict(list)
    for word, part in shuffled:
      rhyming[part].append(word)
    for (word, part), (other, other_part) in zip(
        shuffled, shuffled[1:], strict=False
    ):
      partners = [w for w in rhyming[part] if w != word]
      if partners and rows.stable_hash(f'answer/{word}') % 2:
        other = partners[rows.stable_hash(word) % len(partners)]
        other_part = part
      yield rows.Row(
          f'rhyme: {word} {other}',
          'yes' if part == other_part else 'no',
          (word, other),
          ('yes', 'no'),
      )


# Splits


@functools.cache
def split_rows(builder: Builder) -> Splits:
  """Returns split -> rows of one builder, in a fixed pseudo-random order.

  Evaluation splits have at most `MAX_EVAL_ROWS`; the rest of their rows is not
  used at all. Classification rows are balanced, so chance is 1 / choices.

  Raises:
    errors.UserError: A data package is missing.
  """
  words = lexicon.load()
  by_split = {split: {} for split in rows.SPLITS}
  for row in builder(words):
    (split,) = {words.split[word] for word in row.words}
    # The first row wins where the table lists a question twice.
    by_split[split].setdefault(row.inputs, row)
  result = {}
  for split, found in by_split.items():
    ordered = rows.by_hash(found.values(), key=lambda row: row.inputs)
    limit = len(ordered) if split == 'train' else MAX_EVAL_ROWS
    if ordered[0].choices:
      ordered = rows.balance(ordered, limit)
    result[split] = tuple(ordered[:limit])
  return result

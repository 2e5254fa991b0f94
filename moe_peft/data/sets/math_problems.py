# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Math word problems: six public test sets, and rows to train on.

The test sets are those of LLM-Adapters (arXiv 2304.01933), read from a clone of
its repository (https://github.com/AGI-Edgerunners/LLM-Adapters, `dataset/`;
ODC-By 1.0); they are part of no package. Its `math_data.json` holds four fifths
of these very rows, so it is not used: training rows are GSM-Symbolic's (arXiv
2410.05229), made by the package `reasoning-gym`. In gin:

    MIXTURE_OR_TASK_NAME = @math_problems.register()
    math_problems.register:
      vocabulary = %VOCABULARY
      data_dir = 'LLM-Adapters/dataset'

`gsm_symbolic` has the splits train and validation, the six others test only:
the mixture `math` trains on the former and is tested on the latter.
"""

from collections.abc import Iterator, Mapping
import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import seqio

from moe_peft import errors
from moe_peft.data import metrics
from moe_peft.data import registration
from moe_peft.data import rows as rows_lib
from moe_peft.data import vocabularies
from moe_peft.data.sets import contamination

# Task -> stem of its file: `AQuA/test.json` in the clone, or `AQuA.json`.
TEST_SETS = {
    'addsub': 'AddSub',
    'multiarith': 'MultiArith',
    'singleeq': 'SingleEq',
    'svamp': 'SVAMP',
    'aqua': 'AQuA',
    'gsm8k': 'gsm8k',
}
TRAINED = 'gsm_symbolic'
MIXTURE = 'math'
GYM_VERSION = '0.1.25'
# Templates rename people and things as well as numbers, so copies share less
# than those of `contamination.THRESHOLD`.
THRESHOLD = 0.3
VALIDATION_ROWS = 500
# What `clean_templates` finds with the real test sets: 24 of 85.
KEPT_TEMPLATES = frozenset({
    0, 9, 10, 11, 12, 16, 18, 20, 28, 36, 43, 46, 49, 55, 56, 58, 62, 68, 72,
    73, 89, 92, 93, 95,
})  # fmt: skip
# What reasoning-gym adds to each question.
_DEMAND = ' Give the result as your final answer. Do not include units.'


def register(
    mixture: str = MIXTURE,
    vocabulary: seqio.Vocabulary | None = None,
    data_dir: str = 'LLM-Adapters/dataset',
    num_rows: int = 20_000,
    seed: int = 0,
    rationale: bool = True,
) -> str:
  """Registers the tasks and the mixture `math`; returns the name of one.

  No row is read before a dataset is asked for.

  Args:
    mixture: The mixture or task to return.
    vocabulary: Vocabulary of inputs and targets; ours of bytes if not given.
    data_dir: `dataset` of a clone of LLM-Adapters.
    num_rows: Rows to make; 5,595 of 20,000 stay, see `KEPT_TEMPLATES`.
    seed: What the rows are made from.
    rationale: Train on the steps, then the answer; else on the answer alone.

  Raises:
    errors.UserError: Unknown name, or other arguments than in an earlier call.
  """
  names = [TRAINED, *TEST_SETS, MIXTURE]
  if mixture not in names:
    raise errors.UserError(
        f'There is no mixture or task {mixture!r} of math problems.',
        'math_problems.register.mixture', f'Choose from {", ".join(names)}.',
    )
  vocabulary = vocabulary or vocabularies.byte_vocabulary()
  settings = {
      'vocabulary': vocabulary, 'data_dir': data_dir, 'num_rows': num_rows,
      'seed': seed, 'rationale': rationale,
  }
  if registration.is_new(names, settings):
    made = functools.partial(
        training_rows, num_rows, seed, rationale=rationale
    )
    _add(TRAINED, made, ('train', 'validation'), vocabulary)
    for name in TEST_SETS:
      read = lambda n=name: {'test': list(test_rows(Path(data_dir), n))}
      _add(name, read, ('test',), vocabulary)
    seqio.MixtureRegistry.add(MIXTURE, [TRAINED, *TEST_SETS], default_rate=1.0)
  return mixture


def _add(name, rows_fn, splits, vocabulary) -> None:
  aqua = name == 'aqua'
  metric = metrics.option_accuracy if aqua else metrics.numeric_accuracy
  registration.add_rows(
      registration.TaskRecord(
          name, functools.cache(rows_fn), vocabulary, inputs_eos=False
      ),
      splits,
      metric_fns=[metric],
  )


def _question(text: str) -> str:
  return f'Question: {" ".join(text.split())}\nAnswer:'


def _number(text: str) -> str:
  """`9.0` as it is written in a text: `9`."""
  number = float(text.replace(',', ''))
  return str(int(number)) if number == int(number) else str(number)


def test_rows(folder: Path, name: str) -> Iterator[rows_lib.Row]:
  """Yields the rows of a test set.

  The column `output` is a model's own solution and often wrong: what counts is
  `answer`.

  Args:
    folder: `dataset` of a clone of LLM-Adapters.
    name: One of `TEST_SETS`.

  Raises:
    errors.UserError: The file is absent, broken, or lacks a column.
  """
  stem = TEST_SETS[name]
  candidates = (folder / stem / 'test.json', folder / f'{stem}.json')
  path = next((path for path in candidates if path.is_file()), None)
  if path is None:
    raise errors.UserError(
        f'The test set {name} is not in {folder}: there is neither '
        f'{stem}/test.json nor {stem}.json.', 'math_problems.register.data_dir',
        'Set it to the folder dataset of a clone of '
        'https://github.com/AGI-Edgerunners/LLM-Adapters.',
    )
  for number, row in enumerate(_json_list(path)):
    try:
      answer = row['answer']
      answer = answer.strip() if name == 'aqua' else _number(answer)
      yield rows_lib.Row(_question(row['instruction']), f' {answer}')
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise errors.UserError(
          'There is no question with an answer '
          f'({type(error).__name__}: {error}) in {row!r:.200}.',
          f'{path}, row {number}',
      ) from error


def _json_list(path: Path) -> list[Any]:
  try:
    content = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'It is no JSON file: {error}', path) from error
  if not isinstance(content, list):
    raise errors.UserError('It holds no JSON list.', path)
  return content


def clean_templates(
    folder: Path, num_rows: int = 20_000, seed: int = 0
) -> frozenset[int]:
  """Finds the templates of which no row is a near copy of a test row.

  The more rows are made, the fewer templates stay: 34 after 300 rows, 24 after
  10,000, and 200,000 of another seed take no more. So `KEPT_TEMPLATES` is what
  20,000 rows show, however many are trained on.

  Args:
    folder: The test sets, see `test_rows`.
    num_rows: Rows to make.
    seed: What they are made from.

  Raises:
    errors.UserError: As `training_rows`, or a test set is absent.
  """
  index = contamination.Index(
      (name, row.inputs)
      for name in TEST_SETS
      for row in test_rows(folder, name)
  )
  clean: dict[int, bool] = {}
  for template, item in _gym(num_rows, seed):
    if clean.get(template, True):
      clean[template] = index.find(_asked(item), THRESHOLD) is None
  return frozenset(template for template, is_clean in clean.items() if is_clean)


def training_rows(
    num_rows: int, seed: int, *, rationale: bool = True
) -> Mapping[str, list[rows_lib.Row]]:
  """Makes rows of GSM-Symbolic, without the templates of test rows.

  All its templates stem from problems of GSM8K's test set. Those of which a
  row is a near copy of a test row are left out whole; those in
  `KEPT_TEMPLATES` stay, whose wording is another one.

  Args:
    num_rows: Rows to make.
    seed: What they are made from.
    rationale: See `register`.

  Returns:
    train and validation.

  Raises:
    errors.UserError: The package is absent or of another version, which makes
      other rows; or too few rows stay for a validation split.
  """
  kept = {}
  for template, item in _gym(num_rows, seed):
    if template not in KEPT_TEMPLATES:
      continue
    inputs = _asked(item)
    answer = _number(item['answer'])
    steps, _, _ = item['metadata']['answer_cot'].rpartition('####')
    targets = f' {steps.strip()}\nThe answer is {answer}.'
    kept[inputs] = rows_lib.Row(inputs, targets if rationale else f' {answer}')
  ordered = rows_lib.by_hash(kept.values(), key=lambda row: row.inputs)
  size = min(VALIDATION_ROWS, len(ordered) // 10)
  if not size:
    raise errors.UserError(
        f'Of {num_rows} rows of math problems {len(ordered)} stay, too few to '
        'split.', 'math_problems.register.num_rows', 'Make more rows.',
    )
  return {'train': ordered[size:], 'validation': ordered[:size]}


def _asked(item: Mapping[str, Any]) -> str:
  return _question(item['question'].removesuffix(_DEMAND))


def _gym(num_rows: int, seed: int) -> Iterator[tuple[int, dict]]:
  """Yields (number of the template, row) of reasoning-gym."""
  remedy = f'Run pip install reasoning-gym=={GYM_VERSION}.'
  try:
    import reasoning_gym
  except ImportError as error:
    raise errors.UserError(
        'Training rows of math problems are made by a package that is not '
        'installed.', 'reasoning-gym', remedy,
    ) from error
  version = importlib.metadata.version('reasoning-gym')
  if version != GYM_VERSION:
    raise errors.UserError(
        f'Version {version} makes other rows than {GYM_VERSION}.',
        'reasoning-gym', remedy,
    )
  made = reasoning_gym.create_dataset('gsm_symbolic', size=num_rows, seed=seed)
  for number in range(num_rows):
    yield made.task_indices[number], made[number]

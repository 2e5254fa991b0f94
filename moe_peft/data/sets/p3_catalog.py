# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What P3 and T0 are made of: `p3_tasks.json` as Python objects.

The file lists facts: data sets, their training rows and their part in T0
(arXiv 2110.08207, table 5, and its released list of tasks), and of each prompt
of promptsource its name, its metrics, whether it has answer choices and
whether it asks the original task. `python -m moe_peft data prompts` writes the
prompts from promptsource's own files.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
from pathlib import Path
import re
from typing import Any

from moe_peft import atomic
from moe_peft.data.sets import prompts

PATH = Path(__file__).with_name('p3_tasks.json')

# A data set with more rows than this counts, in the mixture, as if it had so
# many (arXiv 2110.08207, section 3).
MAX_ROWS_OF_DATASET = 500_000
# The rounds of ANLI are tasks of their own; the value is the ending of splits.
_ROUNDS = {('anli', None): ('r1', 'r2', 'r3')}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
  """One task: a prompt of a data set.

  Attributes:
    name: Name of the SeqIO task, that of the released P3.
    dataset: Name of the data set.
    subset: Its subset, or None.
    round: The round, for ANLI, or None.
    prompt: Name of the prompt in promptsource.
    original_task: The prompt asks what the data set was made for.
    has_choices: The prompt has answer choices.
    metrics: promptsource's names of metrics.
    trained_from: 't0', 't0_plus' or 't0_plus_plus', the smallest mixture that
      trains on it; None for data that none trains on.
    held_out: It belongs to the data sets T0 was evaluated on.
    rate: Its rate in training mixtures, in rows.
  """

  name: str
  dataset: str
  subset: str | None
  round: str | None
  prompt: str
  original_task: bool
  has_choices: bool
  metrics: tuple[str, ...]
  trained_from: str | None
  held_out: bool
  rate: int

  @property
  def scored_name(self) -> str:
    """Name of the task by rank classification."""
    return f'{self.name}_score_eval'

  @property
  def dataset_name(self) -> str:
    """The data set as one word, `super_glue_cb`."""
    return f'{self.dataset}_{self.subset}' if self.subset else self.dataset


@functools.cache
def tasks() -> dict[str, TaskInfo]:
  """Returns all tasks by name."""
  content = json.loads(PATH.read_text(encoding='utf-8'))
  return {
      info.name: info
      for entry in content['datasets']
      for info in _dataset_tasks(entry)
  }


def _dataset_tasks(entry: Mapping[str, Any]) -> Iterator[TaskInfo]:
  name, subset = entry['name'], entry['subset']
  rate = entry['train_rows']
  if rate > MAX_ROWS_OF_DATASET:
    rate = MAX_ROWS_OF_DATASET // len(entry['prompts'])
  for prompt in entry['prompts']:
    for ending in _ROUNDS.get((name, subset), (None,)):
      words = filter(None, (name, subset, prompt['name']))
      task = re.sub(r'[^\w.]+', '_', '_'.join(words))
      yield TaskInfo(
          name=f'{task}_{ending}' if ending else task,
          dataset=name,
          subset=subset,
          round=ending,
          prompt=prompt['name'],
          original_task=prompt['original_task'],
          has_choices=prompt['choices'],
          metrics=tuple(prompt['metrics']),
          trained_from=entry['trained_from'],
          held_out=entry['held_out'],
          rate=rate,
      )


def trained(mixtures: tuple[str, ...]) -> list[TaskInfo]:
  """Returns the training tasks of data sets in these mixtures."""
  return [info for info in tasks().values() if info.trained_from in mixtures]


def held_out() -> list[TaskInfo]:
  """Returns the original-task prompts with choices of T0's held-out sets."""
  return [
      info
      for info in tasks().values()
      if info.held_out and info.original_task and info.has_choices
  ]


def update_prompts(promptsource: Path, path: Path = PATH) -> int:
  """Writes the prompts of every data set into `p3_tasks.json`.

  Args:
    promptsource: Unpacked promptsource.
    path: The file.

  Returns:
    The number of prompts.

  Raises:
    errors.UserError: promptsource lacks a data set.
  """
  templates = prompts.find_templates(promptsource)
  content = json.loads(path.read_text(encoding='utf-8'))
  count = 0
  datasets = []
  for entry in content['datasets']:
    found = prompts.read(templates, entry['name'], entry['subset'])
    count += len(found)
    head = {key: value for key, value in entry.items() if key != 'prompts'}
    # One prompt a line, so that changes can be read.
    lines = ',\n'.join(f'  {_line(prompt)}' for prompt in found.values())
    datasets.append(f'{json.dumps(head)[:-1]}, "prompts": [\n{lines}\n]}}')
  listed = ',\n'.join(datasets)
  source = json.dumps(content['source'])
  atomic.write(path, f'{{"source": {source},\n"datasets": [\n{listed}\n]}}\n')
  return count


def _line(prompt: prompts.Prompt) -> str:
  facts = {
      'name': prompt.name,
      'original_task': prompt.original_task,
      'choices': bool(prompt.choices_source),
      'metrics': list(prompt.metrics),
  }
  return json.dumps(facts, ensure_ascii=False)

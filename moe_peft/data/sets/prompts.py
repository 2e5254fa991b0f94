# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""P3's prompts (arXiv 2202.01279): reads and renders promptsource's templates.

The package `promptsource` itself is never imported: it needs an old Python.
Its YAML files are data, and are rendered as it renders them, with two
differences: a name that the row lacks is an error instead of an empty string,
and templates run in a sandbox.
"""

import collections
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
from pathlib import Path
import random
from typing import Any

from moe_peft import errors
from moe_peft.data import packages
from moe_peft.data import rows

_SEPARATOR = '|||'
# Stands for the separator where a row's own text has it.
_PROTECTED = '\x00separator\x00'
# P3 cuts what a template inserts after so many characters.
_MAX_VALUE_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One template of a data set.

  Attributes:
    name: Its name in promptsource.
    source: Jinja source of inputs and targets, with `|||` between them.
    choices_source: Jinja source of the answer choices, or None.
    original_task: It asks what the data set was made for.
    metrics: promptsource's names of its metrics.
  """

  name: str
  source: str
  choices_source: str | None
  original_task: bool
  metrics: tuple[str, ...]

  @property
  def fingerprint(self) -> str:
    """Changes where what it renders may change."""
    text = f'{self.source}\x00{self.choices_source}'
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def render(self, row: Mapping[str, Any], seed: str) -> rows.Row | None:
    """Applies the template to a row.

    Args:
      row: The row, by column.
      seed: What the template's random choices are drawn from.

    Returns:
      The row, with the choices in the order of the template; None if the
      template does not apply to the row (no inputs or no targets come out).

    Raises:
      errors.UserError: A column is missing, or the template fails.
    """
    # promptsource's templates write `_` where a column has `-`.
    values = {
        key.replace('-', '_'): value.replace(_SEPARATOR, _PROTECTED)
        if isinstance(value, str) else value
        for key, value in row.items()
    }
    values['choose'] = random.Random(seed).choice
    cut = f' | string | truncate({_MAX_VALUE_LENGTH}) }}}}'
    try:
      values['answer_choices'] = None
      if self.choices_source:
        values['answer_choices'] = _parts(self.choices_source, values)
      parts = _parts(self.source.replace('}}', cut), values)
    except Exception as error:  # Jinja lets through whatever a filter raises.
      raise errors.UserError(
          f'The template {self.name!r} does not render: {error}. The row has '
          f'the columns {", ".join(sorted(row))}.', self.name,
      ) from error
    if len(parts) != 2 or not all(parts):
      return None
    return rows.Row(
        inputs=parts[0],
        targets=parts[1],
        choices=tuple(values['answer_choices'] or ()),
    )


def _parts(source: str, values: Mapping[str, Any]) -> list[str]:
  text = _compiled(source).render(**values)
  return [
      part.replace(_PROTECTED, _SEPARATOR).strip()
      for part in text.split(_SEPARATOR)
  ]


@functools.cache
def _compiled(source: str):
  return _environment().from_string(source)


@functools.cache
def _environment():
  jinja2 = packages.import_optional('jinja2', 'p3')
  sandbox = packages.import_optional('jinja2.sandbox', 'p3')

  @jinja2.pass_context
  def choice(context, items):
    return context['choose'](list(items))

  def most_frequent(items):
    counts = collections.Counter(items)
    return [k for k, v in counts.most_common() if v == max(counts.values())]

  environment = sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
  environment.globals['zip'] = zip
  environment.filters['choice'] = choice
  environment.filters['most_frequent'] = most_frequent
  return environment


def find_templates(folder: Path) -> Path:
  """Returns the folder of templates in an unpacked promptsource.

  Raises:
    errors.UserError: There is none.
  """
  candidates = [folder, *sorted(folder.glob('**/templates'))]
  for candidate in candidates:
    if (candidate / 'super_glue').is_dir():
      return candidate
  raise errors.UserError(
      f'There is no folder of templates in {folder}.', '--promptsource',
      f'Get promptsource with: {packages.PROMPTSOURCE.command}',
  )


def _loader(yaml):
  """Returns a loader that reads promptsource's own tags as plain mappings."""

  class Loader(yaml.SafeLoader):
    pass

  Loader.add_multi_constructor(
      '!', lambda loader, _, node: loader.construct_mapping(node, deep=True)
  )
  return Loader


def read(templates: Path, name: str, subset: str | None) -> dict[str, Prompt]:
  """Returns the prompts of a data set by name, sorted by name.

  Args:
    templates: What `find_templates` returns.
    name: Data set, as `super_glue`.
    subset: Its subset, as `cb`, or None.

  Raises:
    errors.UserError: There are none, or the file is broken.
  """
  path = templates / name / (subset or '') / 'templates.yaml'
  if not path.is_file():
    raise errors.UserError('promptsource has no such file.', path)
  yaml = packages.import_optional('yaml', 'p3')
  try:
    loader = _loader(yaml)(path.read_text(encoding='utf-8'))
    found = loader.get_single_data()['templates']
    prompts = [
        Prompt(
            name=item['name'],
            source=item['jinja'],
            choices_source=item.get('answer_choices'),
            original_task=bool(item['metadata'].get('original_task')),
            metrics=tuple(item['metadata'].get('metrics') or ()),
        )
        for item in found.values()
    ]
  except (yaml.YAMLError, KeyError, TypeError) as error:
    raise errors.UserError(f'It is no file of templates: {error}', path) from (
        error
    )
  return {p.name: p for p in sorted(prompts, key=lambda p: p.name)}

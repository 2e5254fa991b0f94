# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A gin file for a first run on somebody's own rows, made to measure.

Lengths are those of the rows, the batch is what fits into memory, and the
adapters get about as many parameters as there are tokens to learn.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from pathlib import Path
import re
import shlex
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import seqio

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.data import catalog
from moe_peft.data import converters
from moe_peft.data import local
from moe_peft.data import registration
from moe_peft.data.sets import words  # noqa: F401  (registers tasks)
from moe_peft.training import memory
from moe_peft.training import run

_RUN = 'gin/runs/finetune.gin'
_BATCH_SIZE = 16
_EPOCHS = 3
_MOST_STEPS = 1000
# Lengths of rows are multiples of it.
_LENGTH_STEP = 16
_LONGEST = 2048
# Shares of the base that adapters get at least and at most.
_BUDGET = 0.002, 0.05
# The rest of the memory is for parameters, temporary arrays and the system.
_SHARE_OF_MEMORY = 0.4
_EVAL_EXAMPLES = 32


@dataclasses.dataclass(frozen=True)
class Leaf:
  """The choices of a gin file.

  Attributes:
    model: Gin file of the model.
    method: Gin file of the method.
    macros: Values of macros, with a comment each.
    task: Arguments of `local.register_task`.
  """

  model: str
  method: str
  macros: Mapping[str, tuple[Any, str]]
  task: Mapping[str, Any]

  def text(self, command: str) -> str:
    """The gin file; every value is quoted as Python does."""
    lines = [
        '# Written by `python -m moe_peft init`; change what you like.',
        '#',
        f'#   {command}',
        'from __gin__ import dynamic_registration',
        '',
        'from moe_peft.data import local',
        '',
        *(f'include {x!r}' for x in (self.model, self.method, _RUN)),
        '',
        '# The rows; `python -m moe_peft data show --gin_file=...` shows them.',
        'MIXTURE_OR_TASK_NAME = @local.register_task()',
        'local.register_task:',
        *(f'  {name} = {value!r}' for name, value in self.task.items()),
        '',
    ]
    for name, (value, comment) in self.macros.items():
      lines += [f'# {comment}', f'{name} = {value!r}']
    return '\n'.join([*lines, ''])


def write(base: Path, data: str, method: str, out: Path, force: bool) -> str:
  """Measures rows and machine, and writes the gin file.

  Args:
    base: Folder of a base, as `hf import` writes it, or one that comes with
      the package.
    data: File of rows, or a pattern.
    method: Name of a file of gin/methods/.
    out: The gin file to write.
    force: Whether an existing file is replaced.

  Returns:
    The command that trains.

  Raises:
    errors.UserError: Anything that does not exist or does not fit.
  """
  if out.exists() and not force:
    raise errors.UserError(
        f'{out} exists.', '--out', 'Name a new file, or add --force.'
    )
  model, files = _model_file(base), [f'gin/methods/{method}.gin', _RUN]
  name = task_name(data)
  task = {'name': name, 'data': data, 'split_fractions': (0.9, 0.1, 0.0)}
  given = {
      'MODEL_DIR': f'runs/{out.stem}', 'MIXTURE_OR_TASK_NAME': name,
      'INITIAL_CHECKPOINT_PATH': str(base), 'TRAIN_STEPS': _MOST_STEPS,
  }
  lengths = {'inputs': _LENGTH_STEP, 'targets': _LENGTH_STEP}
  bindings = [f'{k}={v!r}' for k, v in given.items()]
  bindings.append(f'BATCH_SIZE={_BATCH_SIZE}')
  load = lambda lengths: gin_files.load_gin(
      [model, *files], [*bindings, f'TASK_FEATURE_LENGTHS={lengths!r}']
  )
  load(lengths)
  gin.get_configurable(local.register_task)(**task)  # Of this vocabulary.
  catalog.check_features(name, ('inputs', 'targets'), '--data')
  record = registration.RECORDS[name]
  lengths, kept = _lengths(record.sizes['train'])
  load(lengths)
  macros = {
      'MODEL_DIR': (given['MODEL_DIR'], 'Where the run is kept.'),
      'INITIAL_CHECKPOINT_PATH': (str(base), 'The base.'),
      'TASK_FEATURE_LENGTHS': (
          lengths, f'Tokens; they fit {kept:.0%} of the examples, and others '
          'are left out.',
      ),
      **_sizes(record, lengths),
  }
  command = f'python -m moe_peft train --gin_file={shlex.quote(str(out))}'
  try:
    _write_checked(Leaf(model, files[0], macros, task).text(command), out)
  except errors.UserError as error:
    if error.where != 'PARAM_BUDGET':
      raise
    # The smallest size of this method has more, or it has none to choose.
    del macros['PARAM_BUDGET']
    if 'RANK' in gin_files.macros():
      macros['RANK'] = 1, 'The smallest: there are few tokens to learn from.'
    _write_checked(Leaf(model, files[0], macros, task).text(command), out)
  return command


def task_name(data: str) -> str:
  """The name of a file as one of a task, which no task of words has."""
  name = re.sub(r'\W', '_', Path(data).name.partition('.')[0]) or 'rows'
  taken = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  own = registration.RECORDS.get(name)
  return f'my_{name}' if name in taken and not (own and own.files) else name


def _model_file(base: Path) -> str:
  """The gin file of the model of a base."""
  if (base / 'model.gin').is_file():
    return str(base / 'model.gin')
  shipped = Path('gin/models') / f'{base.name}.gin'
  try:
    gin_files.resource(str(shipped))
  except errors.UserError as error:
    raise errors.UserError(
        f'{base} holds no model.gin.', '--base',
        'Give a folder that `python -m moe_peft hf import` has written, or '
        'bases/tiny_t5.',
    ) from error
  return str(shipped)


def _lengths(sizes) -> tuple[dict[str, int], float]:
  """Lengths that fit nearly all examples, and the share of them.

  Where the longest example is twice as long as most, it is left out: every row
  would be padded to it.
  """
  found = {}
  for name, kind in (('inputs', 'inputs'), ('targets', 'targets')):
    of = np.array([size[name] for size in sizes])
    most, longest = np.quantile(of, 0.98, method='higher'), of.max()
    wanted = longest if longest <= 2 * most else most
    rounded = -(-int(wanted) // _LENGTH_STEP) * _LENGTH_STEP
    found[kind] = max(min(rounded, _LONGEST), _LENGTH_STEP)
  fits = [all(size[k] <= found[k] for k in found) for size in sizes]
  return found, sum(fits) / len(fits)


def _sizes(record, lengths) -> dict[str, tuple[Any, str]]:
  """Batch, steps and budget, each with its reason."""
  sizes = [
      size for size in record.sizes['train']
      if all(size[k] <= lengths[k] for k in lengths)
  ]
  experiment = run.build()
  batch = min(_BATCH_SIZE, 2 ** int(math.log2(len(sizes))))
  parts, free = _parts(experiment, batch)
  steps = min(max(_EPOCHS * len(sizes) // batch, 30), _MOST_STEPS)
  total = trainable.num_params({
      path: x for path, x in _params(experiment).items()
      if not trainable.is_adapter(path)
  })
  learned = sum(x['targets'] for x in sizes)
  budget = int(min(max(learned, _BUDGET[0] * total), _BUDGET[1] * total))
  return {
      'BATCH_SIZE': (batch, 'Rows of a step.'),
      'NUM_MICROBATCHES': (
          parts, f'{batch // parts} rows at a time; {free / 1e9:.1f} GB of '
          'memory were free.',
      ),
      'TRAIN_STEPS': (
          steps, f'{steps * batch / len(sizes):.1f} times over '
          f'{len(sizes):,} examples.',
      ),
      'PARAM_BUDGET': (
          budget, f'{budget / total:.1%} of the {total:,} parameters of the '
          f'base; {learned:,} tokens are learned from.',
      ),
      'EVAL_EXAMPLES': (_EVAL_EXAMPLES, 'Generated before and after.'),
      'EVAL_BATCH_SIZE': (batch // parts, 'Rows evaluated at a time.'),
  }


def _parts(experiment, batch: int) -> tuple[int, int]:
  """Into how many parts a batch must be cut, and the memory that it takes."""
  base, whole = _bytes(experiment)
  free, per_row = _memory(), max(whole - base, 1) / experiment.batch_size
  rows = int((_SHARE_OF_MEMORY * free - base) / per_row)
  if rows < 1:
    raise errors.UserError(
        f'The base takes {base / 1e9:.1f} GB, a row '
        f'{per_row / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free.',
        '--base', 'Take a smaller base, or shorter rows.',
    )
  parts = range(1, batch + 1)
  return next(n for n in parts if batch % n == 0 and batch // n <= rows), free


def _bytes(experiment) -> tuple[int, int]:
  """Bytes of all parameters, and with what a batch keeps for gradients."""

  def loss(trained, frozen, batch):
    merged = trainable.unflatten({**frozen, **trained})
    return experiment.model.loss(
        merged, batch, jax.random.key(0), jnp.ones(()), step=jnp.int32(0)
    )[0]

  def kept(trained, *rest):
    return jax.vjp(lambda x: loss(x, *rest), trained)[1]

  lengths = converters.of_model(experiment.model).get_model_feature_lengths(
      experiment.task_feature_lengths
  )
  batch = {
      name: jax.ShapeDtypeStruct((experiment.batch_size, length), jnp.int32)
      for name, length in lengths.items()
  }
  params = _params(experiment)
  split = trainable.split(params, experiment.trainable_regex)
  return memory.num_bytes(params), memory.num_bytes(
      jax.eval_shape(kept, *split, batch)
  )


def _params(experiment) -> Mapping[str, Any]:
  """Shapes of the parameters by path."""
  variables = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
  return trainable.flatten(variables['params'])


def _memory() -> int:
  """Bytes of the first device, or those that are free on this machine."""
  if known := memory.limit(jax.local_devices()[0]):
    return known
  # Pages that are free leave out what only caches files, nearly all in time.
  known = Path('/proc/meminfo')
  text = known.read_text('utf-8') if known.is_file() else ''
  if found := re.search(r'^MemAvailable:\s+(\d+) kB', text, re.MULTILINE):
    return int(found[1]) * 1024
  return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _write_checked(text: str, out: Path) -> None:
  """Writes a gin file, if the run that it describes can be built.

  Raises:
    errors.UserError: It cannot.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  trial = out.with_name(f'.{out.name}')
  atomic.write(trial, text)
  try:
    gin_files.load_gin([str(trial)])
    run.build()
    trial.replace(out)
  finally:
    trial.unlink(missing_ok=True)

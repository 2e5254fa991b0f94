# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of one forward pass: what may change the outputs at a token.

Where the same program runs twice, what must be equal is equal bit for bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.checks import outcome
from moe_peft.checks import subject as subject_lib
from moe_peft.core import trainable

Array = jax.Array
Batch = subject_lib.Batch
# Outputs of a batch, padding included.
Run = Callable[[Batch], np.ndarray]


def identity(
    subject: subject_lib.Subject, tolerance: float = outcome.ROUNDING
) -> None:
  """Adapters change nothing before training, and something once they moved.

  Args:
    subject: What is checked.
    tolerance: As of `outcome.close`.
  """
  if not subject.has_adapters:
    raise outcome.Skipped('the network has no adapters')
  base, _ = subject.base(subject.base_params, subject.batch)
  elsewhere = {
      type(site.adapter).__name__ for site in subject.sites.values()
      if not site.adapter.starts_at_base
  }
  fresh, _ = subject.evaluate(subject.params, subject.batch)
  if not elsewhere:
    outcome.close(
        fresh, base, 'Outputs with and without fresh adapters', tolerance
    )
  changed, _ = subject.evaluate(subject.moved, subject.batch)
  if not outcome.difference(changed, fresh) > 1e-3:
    raise outcome.Failure(
        'Adapters with other values do not change the outputs either.'
    )
  if elsewhere:
    raise outcome.Skipped(f'{min(elsewhere)} does not begin with the base')


def determinism(subject: subject_lib.Subject) -> None:
  """Evaluation and fresh parameters depend on nothing but what they are given.

  Programs are made anew, since a program that is made once may have drawn a
  number once.
  """
  want, _ = subject.evaluate(subject.moved, subject.batch)
  if not np.isfinite(want).all():
    raise outcome.Failure('Outputs are not finite.')
  for run in (
      subject.evaluate, subject.compiled(subject.module, training=False)
  ):
    got, _ = run(subject.moved, subject.batch)
    outcome.equal(got, want, 'Outputs of two evaluations')
  again = subject.fresh(subject.module)['params']
  for path, x in trainable.flatten(again).items():
    outcome.equal(x, subject.params[path], f'Two fresh {path}')


def padding(subject: subject_lib.Subject) -> None:
  """Neither what stands at padding nor how much there is of it matters.

  The latter is left out where experts may be full at evaluation: the limit goes
  by the length of a row.
  """
  if subject.real(subject.batch).all():
    raise outcome.Skipped('no row of the batch has padding')
  _judge(subject, _padding)
  _padding_in_losses(subject)


def batch_mates(subject: subject_lib.Subject) -> None:
  """The outputs of a row do not depend on the other rows of its batch."""
  _judge(subject, _batch_mates)


def causality(subject: subject_lib.Subject) -> None:
  """Outputs do not depend on later tokens, in training neither.

  There experts may be full, and a later token must not take the place of an
  earlier one.
  """
  _judge(subject, _causality)
  _judge(subject, _causality, training=True)


def packing(subject: subject_lib.Subject) -> None:
  """Examples that share a row do not see each other."""
  if subject.packed is None:
    raise outcome.Skipped('PACKING is off')
  _judge(subject, _packing)
  _judge(subject, _packing, training=True)


def _judge(subject, check, training=False) -> None:
  """Checks the adapted network; if it fails, the one without adapters too."""
  program = subject.train if training else subject.evaluate
  try:
    check(subject, _runner(program, subject.moved))
    return
  except outcome.Failure as failure:
    found = failure
  base = subject.compiled(subject.module.module, training)
  try:
    check(subject, _runner(base, subject.base_params))
  except outcome.Failure as error:
    if not subject.strict:
      raise outcome.Skipped(f'the network alone does so: {error}') from found
    raise outcome.Failure(
        f'{found} The network without adapters fails too.'
    ) from found
  raise found


def _runner(program, params) -> Run:
  return lambda batch: np.asarray(program(params, batch)[0])


def _padding(subject, run) -> None:
  batch, real = subject.batch, subject.real(subject.batch)
  want = run(batch)
  if subject.reads != subject.padding:
    at_padding = jnp.where(real, batch[subject.reads], 3)
    got = run({**batch, subject.reads: at_padding})
    outcome.equal(
        got[real], want[real], 'Outputs of tokens, with other ids at padding,'
    )
  if subject.is_limited:  # By the length of a row, padding included.
    return
  other = _with_other_amount(batch)
  outcome.close(
      run(other)[subject.real(other)], want[real],
      'Outputs of tokens, with another amount of padding behind them,',
  )


def _padding_in_losses(subject) -> None:
  """Padding counts in no loss and in no metric of a router."""
  if subject.reads == subject.padding:
    return
  real = subject.real(subject.batch)
  at_padding = jnp.where(real, subject.batch[subject.reads], 3)
  _, want = subject.evaluate(subject.moved, subject.batch)
  _, got = subject.evaluate(
      subject.moved, {**subject.batch, subject.reads: at_padding}
  )
  for name, value in want.items():
    outcome.close(got[name], value, f'Means of {name} with other padding')


def _with_other_amount(batch: Batch) -> dict[str, Array]:
  """The batch with less padding behind its rows; with more if all is needed."""
  used: dict[int, int] = {}
  for x in batch.values():
    columns = np.flatnonzero(np.asarray(x).any(axis=0))
    last = int(columns.max(initial=0)) + 1
    used[x.shape[1]] = max(last, used.get(x.shape[1], 0))
  if all(length == last for length, last in used.items()):
    return {name: jnp.pad(x, ((0, 0), (0, 2))) for name, x in batch.items()}
  return {name: x[:, :used[x.shape[1]]] for name, x in batch.items()}


def _batch_mates(subject, run) -> None:
  batch = subject.batch
  want = run(batch)
  got = run({name: x.at[1].set(x[2]) for name, x in batch.items()})
  others = [row for row in range(len(want)) if row != 1]
  outcome.equal(got[others], want[others], 'Outputs of rows with other mates')


def _causality(subject, run) -> None:
  batch, real = subject.batch, subject.real(subject.batch)
  want = run(batch)
  tokens, length = batch[subject.reads], want.shape[1]
  first = _first_target(batch)
  last = int(real.sum(axis=1).max()) - 1
  for position in {first, (first + last) // 2}:
    later = jnp.arange(length) >= position
    got = run({
        **batch, subject.reads: jnp.where(later, _other_ids(tokens), tokens)
    })
    outcome.equal(
        got[:, :position], want[:, :position],
        f'Outputs before token {position}, with other tokens from there on,',
    )
    if not outcome.difference(got[:, position:], want[:, position:]) > 0:
      raise outcome.Failure(f'No output depends on {subject.reads}.')


def _first_target(batch: Batch) -> int:
  """The first position that is a target in every row, and at least 1.

  What stands before the targets is given, and may be read as a whole.
  """
  weights = batch.get('decoder_loss_weights')
  if weights is None:
    return 1
  return max(1, int(np.argmax(np.asarray(weights) > 0, axis=1).max()))


def _other_ids(tokens: Array) -> Array:
  """Another id for each but 0, of those in use."""
  top = tokens.max()
  return jnp.where(tokens > 0, 1 + tokens % top, tokens)


def _packing(subject, run) -> None:
  batch = subject.packed
  want, others = run(batch), {}
  for stack in ('encoder', 'decoder'):
    if (segments := batch.get(f'{stack}_segment_ids')) is not None:
      name = f'{stack}_input_tokens'
      others[name] = jnp.where(
          segments == 1, _other_ids(batch[name]), batch[name]
      )
  got = run({**batch, **others})
  second = np.asarray(batch['decoder_segment_ids']) > 1
  if not second.any():
    raise outcome.Failure('No row of a packed batch holds two examples.')
  outcome.equal(
      got[second], want[second],
      'Outputs of examples, with another example before them in the row,',
  )

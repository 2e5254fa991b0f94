# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""All checks in their order, what a failure means, and where to look."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import time

from moe_peft import errors
from moe_peft.checks import exports
from moe_peft.checks import gradients
from moe_peft.checks import layers
from moe_peft.checks import mixtures
from moe_peft.checks import outcome
from moe_peft.checks import runs
from moe_peft.checks import subject as subject_lib
from moe_peft.checks import tokens


@dataclasses.dataclass(frozen=True)
class Check:
  """One check.

  Attributes:
    name: Of the row, and of the flags.
    run: The check.
    means: What it means for a user if it fails, a sentence.
    look: Where to look, a sentence.
  """

  name: str
  run: Callable[[subject_lib.Subject], None]
  means: str
  look: str


@dataclasses.dataclass(frozen=True)
class Result:
  """What a check has found.

  Attributes:
    name: Of the check.
    status: 'passed', 'failed' or 'skipped'.
    seconds: What it took.
    detail: The figures of a failure, or why it was skipped.
    means: As of `Check`; empty unless it failed.
    look: As of `Check`; empty unless it failed.
  """

  name: str
  status: str
  seconds: float
  detail: str = ''
  means: str = ''
  look: str = ''


CHECKS = (
    Check(
        'identity', tokens.identity,
        'Training does not begin with the base: its first steps repair what '
        'the adapters have broken.',
        'At the initial values of the method: one factor of each expert must '
        'begin at zero, a scale at one. RESIDUAL = False (MoV) does so on '
        'purpose.',
    ),
    Check(
        'determinism', tokens.determinism,
        'No result can be made again.',
        'For random numbers that do not come from make_rng, for dropout that '
        'is on in evaluation, for what depends on the time.',
    ),
    Check(
        'padding', tokens.padding,
        'The same example has other results, and routers other losses, with '
        'more or other padding behind it.',
        'At inject.AdaptedModule.describe_tokens, and where the method takes '
        'means over tokens without Tokens.valid.',
    ),
    Check(
        'batch mates', tokens.batch_mates,
        'A score depends on what else is evaluated beside it.',
        'At capacity.Capacity.group_size and at_evaluation, and where the '
        'method reduces over the axis of the batch.',
    ),
    Check(
        'causality', tokens.causality,
        'The model is trained with what it is to predict, and is worse '
        'when it generates.',
        'Where the method reduces over the length, and at the priority of a '
        'capacity; a router of a causal layer must not look ahead.',
    ),
    Check(
        'packing', tokens.packing,
        'Packed examples train on each other.',
        'Where the method reduces over the length without Tokens.segment_ids.',
    ),
    Check(
        'one expert', mixtures.one_expert,
        'With one expert it is not the plain method; comparisons with it '
        'compare something else.',
        "At the method's formula and scale (alpha / rank).",
    ),
    Check(
        'permutation', mixtures.permutation,
        'What an expert does depends on its number.',
        'At how gates and experts are laid out and paired.',
    ),
    Check(
        'executions', mixtures.executions,
        'A run on another mesh, or of another size, computes something else.',
        'At adapter.MoeAdapter.mix and moe_peft/core/dispatch.py, or at a '
        'method that does not keep to them.',
    ),
    Check(
        'scan', layers.scan,
        'SCAN_LAYERS changes what is computed, and not only how.',
        'At what the method knows of its layer (Site.layer is None in a scan), '
        'and at collections that the scan does not lift.',
    ),
    Check(
        'gradients', gradients.gradients,
        'Something is meant to train and cannot: a router without a gradient '
        'stays random.',
        'For stop_gradient, for top-1 with NORMALIZE = True, at LOSS_FACTORS '
        'and TRAINABLE_REGEX.',
    ),
    Check(
        'sharding', gradients.sharded,
        'The number of devices changes the results.',
        'At the axis names of the parameters, and at code that asks how many '
        'devices there are.',
    ),
    Check(
        'frozen', runs.frozen,
        'The base that results are compared with is not the base that was '
        'trained.',
        'At TRAINABLE_REGEX and at the optimizer.',
    ),
    Check(
        'optimizer state', runs.optimizer_state,
        'Memory and checkpoints grow with the base and not with the adapters.',
        'At TRAINABLE_REGEX and at the optimizer.',
    ),
    Check(
        'resume', runs.resume,
        'A run that is interrupted ends with other results.',
        'For state outside of parameters and optimizer: counters, random '
        'numbers, data that are not read in order.',
    ),
    Check(
        'export', exports.parity,
        'What is served is not what was trained.',
        'At moe_peft/hf/adapter_specs.py and at the versions of torch, '
        'transformers and peft.',
    ),
)
NAMES = tuple(check.name for check in CHECKS)


def run(
    subject: subject_lib.Subject,
    names: Sequence[str] = NAMES,
    begin: Callable[[str], None] = lambda name: None,
) -> Iterator[Result]:
  """Runs checks one after another.

  Args:
    subject: What is checked.
    names: Which checks; the others are left out.
    begin: Is told the name of each check before it runs.

  Yields:
    What each has found, as soon as it has.
  """
  for check in CHECKS:
    if check.name in names:
      begin(check.name)
      yield _result(check, subject)


def _result(check: Check, subject: subject_lib.Subject) -> Result:
  start = time.monotonic()
  status, detail = 'passed', ''
  try:
    check.run(subject)
  except outcome.Skipped as reason:
    status, detail = 'skipped', str(reason)
  except (outcome.Failure, errors.UserError) as failure:
    status, detail = 'failed', str(failure)
  except Exception as error:  # The code that is checked may raise anything.
    said = ' '.join(f'{type(error).__name__}: {error}'.split())
    status, detail = 'failed', f'It ended with {said[:400]}'
  seconds = round(time.monotonic() - start, 1)
  if status != 'failed':
    return Result(check.name, status, seconds, detail)
  return Result(check.name, status, seconds, detail, check.means, check.look)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer under a bank of frozen experts, against a LoRA of their size.

The LoRA trains and the bank does not, which is what each is for: of a bank the
gradients are those of its router and of the inputs. The trained mixture of the
same size stands beside it.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

from benchmarks import devices
from benchmarks import layer
from benchmarks import tables
from benchmarks import timing
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import bank
from moe_peft.methods import lora
from moe_peft.methods import molora

LEARNED, ARROW = 'bank, learned top-2', 'bank, Arrow top-2'
COLUMNS = tuple(x for x in layer.COLUMNS if x.key != 'process_mib')


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> Iterator[tables.Table]:
  """64 experts of rank 8; quick: 8 of rank 4 on a smaller layer."""
  if options.quick:
    yield measure(256, 512, 8, 4, 3, options, progress)
  else:
    yield measure(1024, 2048, 64, 8, 15, options, progress)


def measure(
    features: int,
    tokens: int,
    num_experts: int,
    rank: int,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
) -> tables.Table:
  """The table; arguments as of `layer.measure`."""
  one = layer.Layer(features, tokens)
  progress('compile')
  cases = {
      layer.FROZEN: one.frozen(),
      layer.PLAIN_LORA: one.adapted(
          lora.LoRA(site=layer.SITE, rank=num_experts * rank)
      ),
      **_mixtures(one, num_experts, rank),
  }
  seconds = timing.interleave(cases, rounds, progress)
  rows: list[dict[str, Any]] = [
      {'case': name, **seconds[name], **case.facts()}
      for name, case in cases.items()
  ]
  layer.over_own(rows)
  devices.add_rates(rows)
  return tables.Table(
      'bank',
      f'A bank over one layer: features {features}, tokens {tokens}, '
      f'E {num_experts}, r {rank}, float32, '
      f'{devices.describe(options.threads)}',
      COLUMNS,
      rows,
  )


def _mixtures(
    one: layer.Layer, num_experts: int, rank: int
) -> dict[str, timing.Compiled]:
  """The bank and a mixture of its size, two experts of each token."""
  sizes = {'site': layer.SITE, 'num_experts': num_experts, 'rank': rank}
  router = functools.partial(
      routing.Router, select=selection.TopK(k=2, normalize=True)
  )
  learned = functools.partial(bank.Bank, **sizes, router_factory=router)
  by_arrow = functools.partial(router, scores=bank.ArrowScores())
  return {
      layer.TOP_2: one.adapted(molora.MoLoRA(**sizes, router_factory=router)),
      LEARNED: one.adapted(learned(), trained='router/'),
      f'{LEARNED}, ragged': one.adapted(
          learned(execution='ragged'), trained='router/'
      ),
      ARROW: one.adapted(
          bank.Bank(**sizes, router_factory=by_arrow), trained='router/'
      ),
  }

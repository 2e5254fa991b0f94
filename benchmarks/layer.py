# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One adapted dense layer, forward and backward, against its peers.

A peer in another library is over the frozen layer of that library: what a
library's matrix product takes is no merit or fault of a method. The products
alone stand first.

Gradients are taken of experts, router and inputs, and the output is returned,
so nothing can be left out. The frozen layer is part of every case. Adapters run
as in training: routers drop and draw what they drop and draw there. On an
accelerator the layer is large enough to fill it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import devices
from benchmarks import experiments
from benchmarks import peers
from benchmarks import published
from benchmarks import tables
from benchmarks import timing
from moe_peft import gin_methods
from moe_peft.core import capacity
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.methods import xlora

MATMUL = 'matrix product alone'
FROZEN = 'frozen layer'
PLAIN_LORA = 'LoRA of rank E*r'
SOFT, TOP_2 = 'MoLoRA soft', 'MoLoRA top-2'
COLUMNS = (
    tables.MILLISECONDS,
    tables.FASTEST,
    tables.Column('over_frozen', '/ own frozen'),
    tables.Column('over_lora', '/ LoRA'),
    tables.TEMP,
    tables.Column('process_mib', 'process MiB', ',.0f'),
    tables.GFLOP,
    tables.RATE,
    tables.SHARE,
    tables.PARAMETERS,
)
PEERS = {
    MATMUL: 'layer/matmul',
    FROZEN: 'layer/frozen',
    'PEFT LoRA of rank E*r': 'layer/peft_lora',
    'MoE-PEFT LoRAMoE': 'layer/loramoe',
    'MoE-PEFT MoLA top-2': 'layer/mola',
}
# The last layer of its stack: MoLA puts most experts there.
SITE = sites.Site(
    path='encoder/layers_3/mlp/wi', causal=False, layer=3, num_layers=4
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> Iterator[tables.Table]:
  """Sizes in turn, all methods at the first one; quick: executions alone."""
  if options.quick:
    yield measure(512, 1024, 10, 4, 3, options, progress)
    return
  measure_size = functools.partial(
      measure, rounds=15, options=options, progress=progress
  )
  if jax.default_backend() == 'cpu':
    yield measure_size(1024, 2048, 10, 4, methods=True)
    yield measure_size(768, 2048, 8, 16)
    yield measure_size(1024, 4096, 32, 4)
  else:
    yield measure_size(4096, 16384, 10, 4, methods=True)
    yield measure_size(4096, 16384, 32, 4)


def measure(
    features: int,
    tokens: int,
    num_experts: int,
    rank: int,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    methods: bool = False,
) -> tables.Table:
  """One table.

  Args:
    features: Inputs and outputs of the layer.
    tokens: Tokens in all, in rows of 256.
    num_experts: E.
    rank: r.
    rounds: Timed calls of each case.
    options: Options of the command line.
    progress: Told what is being done.
    methods: Whether every file of gin/methods/ has a case.
  """
  layer = Layer(features, tokens)
  gflop = 2 * tokens * features**2 / 1e9
  progress('compile executions')
  cases = executions(layer, num_experts, rank)
  if methods:
    cases |= of_gin_files(layer, progress)
  sizes = {'features': features, 'tokens': tokens, 'num_experts': num_experts,
           'rank': rank}
  with contextlib.ExitStack() as stack:
    torch_cases = peers.start(
        options,
        {
            peers.PYTORCH + name: (case, sizes)
            for name, case in PEERS.items()
        },
        stack,
    )
    seconds = timing.interleave({**cases, **torch_cases}, rounds, progress)
    facts = {name: case.facts() for name, case in cases.items()}
    facts |= peers.facts(torch_cases)
  for name, products in ((MATMUL, 1), (FROZEN, 2)):
    if peers.PYTORCH + name in facts:
      facts[peers.PYTORCH + name]['gflop'] = products * gflop
  rows = [
      {'case': name, **seconds[name], **facts[name]} for name in seconds
  ]
  # Products first, each library's.
  rows.sort(key=lambda row: not row['case'].endswith(MATMUL))
  over_own(rows)
  devices.add_rates(rows)
  return tables.Table(
      'layer',
      f'One layer: features {features}, tokens {tokens}, E {num_experts}, '
      f'r {rank}, float32, {devices.describe(options.threads)}',
      COLUMNS,
      rows,
      peers.notes(options),
  )


def over_own(rows: Sequence[dict[str, Any]]) -> None:
  """Adds `over_frozen` and `over_lora`: fastest times over those of the same
  library; only ours has the latter."""
  libraries = {True: [], False: []}
  for row in rows:
    libraries[row['case'].startswith(peers.PYTORCH)].append(row)
  tables.ratios(libraries[False], 'over_frozen', FROZEN, 'fastest')
  tables.ratios(libraries[False], 'over_lora', PLAIN_LORA, 'fastest')
  if libraries[True]:
    tables.ratios(
        libraries[True], 'over_frozen', peers.PYTORCH + FROZEN, 'fastest'
    )


class Layer:
  """A frozen dense layer and what goes through it; adapters are float32.

  Attributes:
    inputs: <dtype>[rows, tokens / rows, features].
    kernel: <dtype>[features, features].
  """

  def __init__(self, features: int, tokens: int, dtype: Any = jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)
    rows = max(tokens // 256, 1)
    shape = (rows, tokens // rows, features)
    self.inputs = draw(keys[0], *shape)
    self.kernel = draw(keys[1], features, features) / features**0.5
    self._cotangent = draw(keys[2], *shape)
    self._key = keys[3]

  def product(self) -> '_Case':
    """Compiles the product of inputs and kernel, without gradients."""
    return _Case(
        lambda params, kernel, x: x @ kernel, {}, self.kernel, self.inputs
    )

  def frozen(self) -> '_Case':
    """Compiles the layer without adapters."""
    return self.case(lambda params, kernel, x, key: x @ kernel, {})

  def case(
      self, function: Callable[..., jax.Array], params: Any, frozen: Any = None
  ) -> '_Case':
    """Compiles `function(params, kernel, inputs, key)` with its gradients.

    Args:
      function: What is computed.
      params: What trains.
      frozen: In the place of the kernel, where more than it is frozen.
    """

    def call(params, kernel, inputs, cotangent, key):
      outputs, backward = jax.vjp(
          lambda params, x: function(params, kernel, x, key), params, inputs
      )
      return outputs, backward(cotangent)

    frozen = self.kernel if frozen is None else frozen
    return _Case(
        call, params, frozen, self.inputs, self._cotangent, self._key
    )

  def adapted(
      self, adapter: Any, of_inputs: bool = False, trained: str = ''
  ) -> '_Case':
    """The case of an adapter, on outputs or inputs of the layer.

    Args:
      adapter: The adapter.
      of_inputs: Whether it is an adapter of the inputs.
      trained: Where the paths of what trains begin; '' trains everything.
    """
    tokens = tokens_lib.Tokens(step=jnp.int32(0))

    def at(kernel):
      site = dataclasses.replace(
          adapter.site, frozen=lambda: {'kernel': kernel}
      )
      return adapter.clone(site=site)

    def function(params, frozen, inputs, key):
      kernel, others = frozen
      whole = traverse_util.unflatten_dict({**params, **others}, sep='/')
      call = functools.partial(
          at(kernel).apply,
          {'params': whole},
          tokens=tokens,
          rngs={'dropout': key},
          mutable=['intermediates'],
      )
      if of_inputs:
        return call(inputs, inputs)[0] @ kernel
      return call(inputs, inputs @ kernel)[0]

    keys = {'params': self._key, 'dropout': self._key}
    shapes = jax.eval_shape(
        at(self.kernel).init, keys, self.inputs, self.inputs, tokens
    )['params']
    # Not the initial values: zeros could be simplified away.
    rng = np.random.default_rng(0)
    params = {
        path: 0.02 * rng.standard_normal(x.shape, np.float32)
        for path, x in traverse_util.flatten_dict(shapes, sep='/').items()
    }
    some = {k: v for k, v in params.items() if k.startswith(trained)}
    frozen = self.kernel, {k: v for k, v in params.items() if k not in some}
    return self.case(function, some, frozen)


class _Case(timing.Compiled):
  """A compiled case that knows its parameters."""

  def __init__(self, function, params, *arguments):
    super().__init__(function, params, *arguments)
    self._parameters = sum(x.size for x in jax.tree.leaves(params))

  def facts(self):
    return {**super().facts(), 'parameters': self._parameters}


def adapters(num_experts: int, rank: int) -> dict[str, Any]:
  """MoLoRA under all executions, and adapters that it is compared with."""
  top_2 = functools.partial(routing.Router, select=selection.TopK(k=2))
  # Two experts of each token, and a quarter more room than they need.
  limited = functools.partial(
      top_2, capacity=capacity.Capacity(capacity_factor=2 * 1.25)
  )
  mixture = functools.partial(
      molora.MoLoRA, site=SITE, num_experts=num_experts, rank=rank
  )
  return {
      PLAIN_LORA: lora.LoRA(site=SITE, rank=num_experts * rank),
      SOFT: mixture(),
      TOP_2: mixture(router_factory=top_2),
      'MoLoRA top-2, capacity 1.25': mixture(router_factory=limited),
      'MoLoRA top-2, capacity 1.25, einsum': mixture(
          router_factory=limited, execution='einsum'
      ),
      'MoLoRA top-2, ragged': mixture(
          router_factory=top_2, execution='ragged'
      ),
      'published MoLoRA formula': published.PublishedMoLoRA(
          site=SITE, num_experts=num_experts, rank=rank
      ),
  }


def executions(
    layer: Layer, num_experts: int, rank: int
) -> dict[str, timing.Compiled]:
  """The cases of `adapters`, and the layer without any."""
  return {
      MATMUL: layer.product(),
      FROZEN: layer.frozen(),
      'full fine-tuning': layer.case(
          lambda params, kernel, x, key: x @ params, layer.kernel
      ),
      **{
          name: layer.adapted(adapter)
          for name, adapter in adapters(num_experts, rank).items()
      },
  }


def of_gin_files(
    layer: Layer, progress: Callable[[str], None]
) -> dict[str, timing.Compiled]:
  """One case for each file of gin/methods/ that adapts single layers.

  That is all but `full`, which has no adapters, `mixlora`, whose experts are
  whole MLPs, and methods that are told an id of each example, or read another
  pass of the model (X-LoRA): the layer has tokens alone. Experts and ranks are
  those of the file.
  """
  cases = {}
  for method in experiments.method_names():
    if 'EXAMPLE_IDS' in gin_methods.MethodFile(method).options:
      continue
    progress(f'compile {method}')
    experiment = experiments.build('tiny_t5', method, (32, 16), 8)
    rules = experiment.model.module.rules
    if not rules or any(
        rule.siblings or isinstance(rule, xlora.TwoPasses) for rule in rules
    ):
      continue
    adapter = rules[0].adapter_factory(site=SITE)
    cases[f'{method}.gin'] = layer.adapted(
        adapter, isinstance(rules[0], inject.InputRule)
    )
  return cases

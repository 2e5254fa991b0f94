# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold for every method, as a table over their gin files."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from flax import traverse_util
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft import gin_files
from moe_peft.checks import gradients
from moe_peft.checks import layers
from moe_peft.checks import mixtures
from moe_peft.checks import outcome
from moe_peft.checks import subject as subject_lib
from moe_peft.checks import tokens
from moe_peft.core import inject
from moe_peft.core import trainable
from tests import tiny_network
from tests.checks import tiny
from tests.refusals import refused

ROOT = pathlib.Path(__file__).parents[1]
BINDINGS = """
from __gin__ import dynamic_registration
from moe_peft.core import inject
from moe_peft.core import trainable
inject.AdaptedModule.rules = %ADAPTER_RULES
trainable.split.trainable_regex = %TRAINABLE_REGEX
"""


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    file: Name of the gin file.
    macros: Small sizes, by macro.
    identity: Tolerance of the identity at initialization; None: not an
      identity, as the paper's code.
    layers: Of each stack of the network: two where a scan, or depth, matters.
    like: A row whose program this one has, with other constants, optimizers or
      values to begin with: what holds of that one holds of it.
  """

  file: str
  macros: dict[str, Any]
  identity: float | None = 0.0
  layers: int = 1
  like: str | None = None


# Few sites, to compile less: one with heads, one whose input is the MLP's.
SITES = {'SITES': '.*/(key|wo)'}
# One site, for methods of which another row has what is compiled.
ONE = {'SITES': '.*/wo'}
VECTORS = {'SITES': '.*/(key|act)', 'NUM_EXPERTS': 3}
SMALL = {**SITES, 'NUM_EXPERTS': 3, 'RANK': 2}
BLOCK = {**SMALL, 'SITES': '.*/wo', 'ATTENTION_SITES': '.*/key'}
TOLD = {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2, 'EXAMPLE_IDS': 3}
DEPTH = {**SITES, 'EXPERTS_BY_DEPTH': (2, 3), 'RANK': 2}
ENCODER = {**SMALL, 'SITES': '(.*/)?encoder/.*/(key|wo)'}
# Experts that train too: gradients of what is frozen must be zero here.
BANK = {
    **ONE, 'NUM_EXPERTS': 3, 'RANK': 2, 'TRAINABLE_REGEX': '.*/adapter/.*'
}
# The stacks of the tiny network have no norm at their ends.
READ = {'HIDDEN_STATES': 'encoder|decoder'}
MLP = {'CLASSIFIER_DEPTH': 2, 'CLASSIFIER_WIDTH': 5}
TABLE = {
    'lora': Row('lora', {**SITES, 'RANK': 2}),
    'ia3': Row('ia3', {'SITES': '.*/(key|act)'}, layers=2),
    'mov': Row('mov', VECTORS),
    'mov_wo': Row('mov_wo', {'NUM_EXPERTS': 3}),
    'mov_topk': Row('mov_topk', VECTORS),
    'mov_topk, released': Row(
        'mov_topk',
        {**VECTORS, 'NORMALIZE': False, 'RESIDUAL': False},
        identity=None,
    ),
    'molora': Row('molora', SMALL, layers=2),
    'molora_topk': Row('molora_topk', SMALL),
    'molora_topk, released': Row(
        'molora_topk', {**SMALL, 'NORMALIZE': False}
    ),
    'molora_sentence': Row('molora_sentence', SMALL),
    'sira': Row(
        'sira', {**SMALL, 'NUM_SELECTED_EXPERTS': 2, 'CAPACITY_FACTOR': 1.5}
    ),
    'smear': Row('smear', SMALL),
    'smoe_dropout': Row(
        'smoe_dropout',
        {
            **SMALL, 'FIRST_K': 1, 'NUM_SELECTED_EXPERTS': 2,
            'GROWTH_STEPS': None,
        },
    ),
    'adamix': Row('adamix', SMALL, layers=2),
    'moelora': Row('moelora', SMALL, layers=2),
    'adamole': Row('adamole', SMALL),
    'hydralora': Row('hydralora', SMALL),
    'mosld': Row('mosld', {**DEPTH, 'EXPERTS_BY_DEPTH': (3, 2)}, layers=2),
    'smora': Row(
        'smora', {**SITES, 'NUM_EXPERTS': 6, 'NUM_SELECTED_EXPERTS': 2},
        layers=2,
    ),
    'mode': Row('mode', SMALL),
    'mola': Row('mola', DEPTH, layers=2),
    'mixlora': Row('mixlora', BLOCK, layers=2),
    'bottleneck': Row('bottleneck', SMALL),
    'expert_choice': Row('expert_choice', ENCODER),
    'dora': Row('dora', {**ONE, 'RANK': 2}),
    'pissa': Row('pissa', {**ONE, 'RANK': 2}),
    'milora': Row('milora', {**ONE, 'RANK': 2}, like='pissa'),
    'olora': Row('olora', {**ONE, 'RANK': 2}, like='pissa'),
    'mica': Row('mica', {**ONE, 'RANK': 2}),
    'goat': Row('goat', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2}, identity=None),
    'rslora': Row('rslora', {**SITES, 'RANK': 2}, like='lora'),
    'lora_fa': Row('lora_fa', {**SITES, 'RANK': 2}, like='lora'),
    'molora_lossfree': Row(
        'molora_lossfree',
        {**ONE, 'NUM_EXPERTS': 4, 'RANK': 2, 'NUM_SELECTED_EXPERTS': 2},
    ),
    'loraplus': Row('loraplus', {**SITES, 'RANK': 2}, like='lora'),
    'mlae': Row('mlae', {**ONE, 'RANK': 3}),
    'ttlora': Row('ttlora', {**ONE, 'RANK': 2}),
    'comol': Row('comol', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2}),
    'modula': Row('modula', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2}),
    'ldmole': Row(
        'ldmole', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2, 'LAMBDA_UNITS': 3},
    ),
    'dynmole': Row(
        'dynmole',
        {
            **ONE, 'NUM_EXPERTS': 4, 'RANK': 2, 'NUM_SELECTED_EXPERTS': 1,
            'ENTROPY_THRESHOLD': 1.2,
        },
    ),
    'mor_lora': Row('mor_lora', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2}),
    'flylora': Row(
        'flylora', {**ONE, 'NUM_EXPERTS': 6, 'NUM_SELECTED_EXPERTS': 2},
    ),
    'molora_orthogonal': Row(
        'molora_orthogonal', {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2},
    ),
    'riemannian': Row(
        'riemannian',
        {**ONE, 'NUM_EXPERTS': 3, 'RANK': 2, 'NUM_SELECTED_EXPERTS': 2},
    ),
    'lora_id': Row('lora_id', TOLD),
    'molora_id': Row('molora_id', TOLD),
    'moelora_id': Row('moelora_id', TOLD),
    'mtl_lora': Row('mtl_lora', TOLD),
    'flix': Row(
        'flix', {**TOLD, 'FEATURES': (('a', 'b'), ('b', 'c'), ('c',))},
    ),
    'bank': Row('bank', SMALL, like='molora'),
    'bank_topk': Row('bank_topk', SMALL, like='molora_topk'),
    'bank_sequence': Row('bank_sequence', SMALL, like='molora_sentence'),
    'bank_arrow': Row('bank_arrow', {**BANK, 'NUM_SELECTED_EXPERTS': 2}),
    'bank_spectr': Row('bank_spectr', {**BANK, 'NUM_SELECTED_EXPERTS': 2}),
    'bank_phatgoose': Row('bank_phatgoose', BANK),
    'bank_uniform': Row('bank_uniform', BANK),
    'bank_retrieval': Row('bank_retrieval', BANK),
    'bank_id': Row('bank_id', TOLD, like='lora_id'),
    'bank_xlora': Row('bank_xlora', {**BANK, **READ, **MLP}, layers=2),
    'bank_xlora, layerwise': Row(
        'bank_xlora', {**BANK, **READ, 'LAYERWISE': True},
    ),
    'bank_random': Row('bank_random', SMALL, like='molora_topk'),
    'phatgoose': Row(
        'phatgoose',
        {**ONE, 'RANK': 2, 'TRAINABLE_REGEX': '.*/adapter/.*'},
    ),
    'retrieval': Row(
        'retrieval',
        {**ONE, 'RANK': 2, 'TRAINABLE_REGEX': '.*/adapter/.*'},
    ),
}


# The others run with -m slow.
FAST = ('lora', 'mov', 'molora', 'sira')
# What executions, scans, remat and bfloat16 may treat in another way: vectors,
# experts by depth, two passes, kernels of the base, ids, blocks, state that is
# no gradient's. The others run there with -m long.
DISTINCT = (
    'molora', 'ia3', 'moelora', 'adamix', 'mola', 'mixlora', 'dora', 'flix',
    'molora_lossfree', 'smora',
)
# Others with other constants.
CONSTANTS = (
    'mov_topk', 'mov_topk, released', 'molora_topk, released', 'mov_wo',
    'bank_uniform', 'bank_spectr',
)


def names(slow, long):
  """Methods in the table's order, marked."""
  marks = lambda name: [pytest.mark.slow] * (name in slow) + (
      [pytest.mark.long] * (name in long)
  )
  return [
      pytest.param(name, marks=marks(name))
      for name, row in TABLE.items()
      if row.like is None
  ]


NAMES = names(set(TABLE) - set(FAST), CONSTANTS)
variants = pytest.mark.parametrize(
    'case',
    names(set(DISTINCT) - {'molora'}, set(TABLE) - set(DISTINCT)),
    indirect=True,
)


def load(row, **macros):
  gin.clear_config()
  lines = [f'{k} = {v!r}' for k, v in {**row.macros, **macros}.items()]
  gin.parse_config_files_and_bindings(
      [str(ROOT / 'gin' / 'methods' / f'{row.file}.gin')],
      [*BINDINGS.strip().splitlines(), *lines],
  )


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def adapted(layers=1, **options):
  """The network with the adapters that gin describes."""
  base = tiny_network.Network(tiny_network.Config(
      num_encoder_layers=layers, num_decoder_layers=layers, **options
  ))
  return gin.get_configurable(inject.AdaptedModule)(module=base)


def subject(layers=1):
  """What is checked of the method that gin describes."""
  told = 'EXAMPLE_IDS' in gin_files.macros()
  return tiny.subject(
      adapted(layers),
      gin_files.macro('LOSS_FACTORS'),
      num_ids=gin_files.macro('EXAMPLE_IDS') if told else 0,
      trainable_regex=gin_files.macro('TRAINABLE_REGEX'),
  )


@functools.cache
def alone(layers):
  """Fresh parameters of the network that all methods adapt."""
  made = subject(layers)
  return flatten(made.fresh(made.module.module)['params'])


class Case(NamedTuple):
  """A row of the table, and what is checked of it."""

  row: Row
  subject: subject_lib.Subject

  def adapted(self, **options):
    return adapted(self.row.layers, **options)


@pytest.fixture(scope='module', params=NAMES)
def case(request):
  row = TABLE[request.param]
  load(row)
  yield Case(row, subject(row.layers))
  gin.clear_config()


def test_parameters(case):
  params = case.subject.params
  axes = flatten(case.subject.variables['params_axes'])
  adapters = {k: v for k, v in params.items() if trainable.is_adapter(k)}
  assert adapters
  for path, x in adapters.items():
    names = axes[f'{path}_axes'].names
    assert len(names) == x.ndim, path
    # A mesh takes no name twice.
    named = [name for name in names if name is not None]
    assert len(set(named)) == len(named), path
    assert x.dtype == jnp.float32
    assert 'expert' not in path
  jax.tree.map(
      np.testing.assert_array_equal, case.subject.base_params,
      alone(case.row.layers),
  )


LIKE = [name for name, row in TABLE.items() if row.like is not None]


@pytest.mark.parametrize('name', LIKE)
def test_a_variant_has_the_parameters_of_what_it_is_like(name):
  shapes = []
  for row in (TABLE[name], TABLE[TABLE[name].like]):
    load(row)
    shapes.append(subject().shapes(adapted()))
  gin.clear_config()
  assert shapes[0] == shapes[1]


def test_identity_at_initialisation(case):
  if case.row.identity is None:
    says = 'fresh adapters|does not begin with the base'
    with pytest.raises((outcome.Failure, outcome.Skipped), match=says):
      tokens.identity(case.subject)
  else:
    tokens.identity(case.subject, case.row.identity)


@pytest.mark.parametrize(
    'check',
    [
        tokens.determinism, tokens.padding, tokens.batch_mates,
        tokens.causality, mixtures.permutation, gradients.gradients,
        pytest.param(tokens.packing, marks=pytest.mark.slow),
        pytest.param(mixtures.one_expert, marks=pytest.mark.slow),
    ],
    ids=lambda check: check.__name__,
)
def test_check(case, check):
  run(check, case)


def run(check, case):
  try:
    check(case.subject)
  except outcome.Skipped as reason:
    pytest.skip(str(reason))


@variants
def test_executions_agree(case):
  run(mixtures.executions, case)


@pytest.mark.slow
@variants
def test_scan_equals_unrolled(case):
  layers.compare(
      case.subject, case.adapted(), case.adapted(scan=True, remat=True)
  )


@pytest.mark.slow
def test_jit_equals_eager(case):
  want, _ = case.subject.evaluate(case.subject.moved, case.subject.batch)
  got, _ = tiny.call(
      case.subject.module, trainable.unflatten(case.subject.moved),
      case.subject.batch, False,
  )
  outcome.close(got, want, 'Outputs without jit')


@variants
def test_bfloat16(case):
  params, batch = case.subject.moved, case.subject.batch
  want, _ = case.subject.evaluate(params, batch)
  network = case.adapted(dtype=jnp.bfloat16)
  got, _ = case.subject.compiled(network, training=False)(params, batch)
  assert got.dtype == jnp.bfloat16
  error = np.abs(np.asarray(got, np.float32) - want).mean()
  assert error < 0.05 * np.abs(want).mean()


def grads_of(case, network):
  """Gradients of the loss, also of what does not train."""
  params = trainable.unflatten(case.subject.moved)
  loss = lambda params: case.subject.loss(network, params, case.subject.batch)
  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  return value, flatten(grads)


@pytest.mark.slow
@variants
def test_remat_equals_none(case):
  want, want_grads = grads_of(case, case.subject.module)
  got, grads = grads_of(case, case.adapted(remat=True))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for path, value in want_grads.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(
        grads[path], value, rtol=0, atol=1e-4 * scale + 1e-6
    )
    trains = trainable.matcher(case.subject.trainable_regex)(path)
    if trainable.is_adapter(path) and not trains:  # Frozen, as some routers.
      assert scale == 0, path


def test_every_gin_file_is_in_the_table():
  files = {path.stem for path in (ROOT / 'gin' / 'methods').glob('*.gin')}
  assert files == {row.file for row in TABLE.values()} | {'full'}


def test_full_fine_tuning_trains_everything():
  load(Row('full', {}))
  base = tiny_network.Network()
  network = gin.get_configurable(inject.AdaptedModule)(module=base)
  shapes = jax.eval_shape(
      network.init, jax.random.key(0), *tiny_network.tokens()
  )
  trained, frozen = gin.get_configurable(trainable.split)(
      flatten(shapes['params'])
  )
  assert trained and not frozen


@pytest.mark.slow
def test_expert_choice_refuses_decoders():
  load(TABLE['expert_choice'], SITES='.*/decoder/.*/wo|decoder/.*/wo')
  base = tiny_network.Network()
  network = gin.get_configurable(inject.AdaptedModule)(module=base)
  with refused('SITES'):
    network.init(jax.random.key(0), *tiny_network.tokens())

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tower of rooms: each floor imports only floors below it.

Imports are read from the source, those inside functions too.
"""

import ast
from collections.abc import Iterator
import functools
import graphlib
from pathlib import Path
import re
import subprocess
import sys

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'moe_peft'

FLOORS = {
    'errors': 0, 'atomic': 0, 'gin_names': 0, 'gin_places': 0,
    'gin_suggestions': 0, 'gin_trust': 0, 'gin_types': 0, 'gin_rules': 0,
    'gin_values': 0, 'gin_files': 0, 'gin_methods': 0, 'signals': 0,
    'core': 1,
    'methods': 2, 'models': 2,
    'data': 3,
    'data.sets': 4,
    'evaluation': 5, 'runs': 5, 'routers': 5,
    'training': 6,
    'hf': 7, 'compile': 7, 't5x': 7,
    'experts': 8, 'report': 8, 'checks': 8,
    'study': 9, 'drill': 9,
    'cli': 10,
    'train': 11, 'evaluate': 11, 'infer': 11, '__main__': 11,
}  # fmt: skip

# Rooms that must work without an engine, TensorFlow, torch or T5X.
PLAIN = ('core', 'methods', 'models')
HEAVY = {'t5x', 'tensorflow', 'tensorflow_datasets', 'torch'}
# The package that an imported module belongs to, where names differ.
DISTRIBUTIONS = {
    'absl': 'absl-py', 'gin': 'gin-config',
    'huggingface_hub': 'huggingface-hub', 'orbax': 'orbax-checkpoint',
    'reasoning_gym': 'reasoning-gym', 'rouge_score': 'rouge-score',
    'tensorflow_datasets': 'tensorflow-datasets', 'yaml': 'pyyaml',
}  # fmt: skip


def module_name(file: Path) -> str:
  name = '.'.join(file.relative_to(ROOT).with_suffix('').parts)
  return name.removesuffix('.__init__')


def imported(file: Path) -> Iterator[str]:
  """Names that a file imports, `a.b` for `from a import b` too."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file} has a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Call) and _is_lazy(node):
      yield node.args[0].value


def _is_lazy(node: ast.Call) -> bool:
  called = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
  return (
      called in ('import_module', 'importorskip')
      and bool(node.args)
      and isinstance(node.args[0], ast.Constant)
  )


@functools.cache
def modules() -> dict[str, Path]:
  return {module_name(file): file for file in PACKAGE.rglob('*.py')}


def ours(name: str) -> str | None:
  """The module of this package that an imported name is of, or None."""
  while name and name not in modules():
    name = name.rpartition('.')[0]
  return name if name.startswith('moe_peft.') else None


@functools.cache
def arrows() -> dict[str, set[str]]:
  return {
      module: {x for name in imported(file) if (x := ours(name))} - {module}
      for module, file in modules().items()
  }


def room(module: str) -> str | None:
  inside = module.removeprefix('moe_peft').lstrip('.')
  if inside.startswith('data.sets'):
    return 'data.sets'
  return inside.partition('.')[0] or None


def test_every_room_has_a_floor():
  assert {room(module) for module in modules()} - {None} == set(FLOORS)


def test_no_arrow_runs_up():
  up = [
      f'{module} -> {target}'
      for module, targets in arrows().items()
      for target in targets
      if room(module) is not None
      and room(module) != room(target)
      and FLOORS[room(module)] <= FLOORS[room(target)]
      # The ground floor is one room.
      and FLOORS[room(module)] > 0
  ]
  assert not up, 'An import runs up the tower, or to a room beside:\n' + (
      '\n'.join(sorted(up))
  )


def test_there_is_no_circle():
  tuple(graphlib.TopologicalSorter(arrows()).static_order())


def test_core_methods_and_models_need_no_engine():
  heavy = [
      f'{module} imports {name}'
      for module, file in modules().items()
      for name in imported(file)
      if room(module) in PLAIN and name.partition('.')[0] in HEAVY
  ]
  assert not heavy, heavy


def test_networks_and_methods_load_no_tensorflow():
  # SeqIO's feature converters are imported by the methods that make them.
  names = [module for module in modules() if room(module) in PLAIN]
  code = f'import sys, importlib\nfor name in {names}:\n'
  code += '  importlib.import_module(name)\n'
  code += "assert not {'tensorflow', 'torch', 't5x'} & set(sys.modules)\n"
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_what_is_imported_is_declared():
  setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
  known = sys.stdlib_module_names | {'moe_peft', '__gin__'}
  for module, file in modules().items():
    for name in {x.partition('.')[0] for x in imported(file)} - known:
      distribution = DISTRIBUTIONS.get(name, name)
      assert re.search(rf"'{distribution}[\s\[<>=@~!']", setup), (
          f'{module} imports {name}: declare {distribution} in setup.py'
      )


def test_every_module_is_imported_by_a_test():
  reached = {
      x
      for file in (ROOT / 'tests').rglob('*.py')
      for name in imported(file)
      if (x := ours(name))
  }
  # What an exported folder carries is run by the tests of exports, from there.
  carried = {'moe_peft.hf.remote_model', 'moe_peft.hf.torch_experts',
             'moe_peft.hf.torch_router', 'moe_peft.hf.peft_tuner'}
  packages = {
      module
      for module, file in modules().items()
      if file.name == '__init__.py'
  }
  missing = set(modules()) - reached - packages - carried
  assert not missing, f'No test imports {sorted(missing)}'

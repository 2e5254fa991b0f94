# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""No source runs what it reads: the calls that would are not there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file
    for folder in ('moe_peft', 'benchmarks', 'docs', 'launch')
    for file in (ROOT / folder).rglob('*.py')
)
MODULES = {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'}
BUILTINS = {'eval', 'exec', 'compile'}
CALLS = {
    'os.system', 'os.popen', 'yaml.load', 'yaml.unsafe_load', 'np.load',
    'numpy.load', 'jnp.load', 'subprocess.getoutput',
}  # fmt: skip


def problems(source):
  """What a source imports or calls that runs data, with the line of each."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [alias.name for alias in node.names]
      names += [getattr(node, 'module', None) or '']
      found = {x.partition('.')[0] for x in names} & MODULES
      yield from (f'{node.lineno}: {x}' for x in found)
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      options = {x.arg: ast.unparse(x.value) for x in node.keywords}
      safe = options.get('allow_pickle') == 'False'
      if name in BUILTINS or (name in CALLS and not safe):
        yield f'{node.lineno}: {name}'
      elif name == 'torch.load' and options.get('weights_only') != 'True':
        yield f'{node.lineno}: torch.load without weights_only=True'
      for option in ('shell', 'allow_pickle', 'trust_remote_code'):
        if options.get(option, 'False') != 'False':
          yield f'{node.lineno}: {name} with {option}'


@pytest.mark.parametrize(
    'file', FILES, ids=[str(x.relative_to(ROOT)) for x in FILES]
)
def test_nothing_that_is_read_runs(file):
  assert not list(problems(file.read_text(encoding='utf-8')))


@pytest.mark.parametrize(
    'source',
    [
        'import pickle', 'from pickle import load', 'import torch, marshal',
        'eval(x)', 'exec(x)', 'os.system(x)', 'yaml.load(x)',
        'subprocess.run(x, shell=True)', 'np.load(x)', 'torch.load(x)',
        'np.load(x, allow_pickle=True)', 'f(x, trust_remote_code=True)',
    ],
)  # fmt: skip
def test_what_would_run_is_found(source):
  assert list(problems(source))


@pytest.mark.slow
def test_what_only_looks_like_it_is_left_alone():
  source = 'jax.eval_shape(f)\nre.compile(x)\nyaml.safe_load(x)\nmodel.eval()'
  source += '\nnp.load(x, allow_pickle=False)\nsubprocess.run(x, shell=False)'
  assert not list(problems(source))

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft check` from its command line to its exit status."""

import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

from moe_peft import __main__ as main
from moe_peft.checks import outcome
from moe_peft.checks import suite
from moe_peft.cli import check
from moe_peft.cli import flags
from moe_peft.methods import lora
from tests.checks import tiny
from tests.cli import refusal

refusals = refusal.refusals
ROOT = Path(__file__).parents[2]
NETWORK = '''
from flax import linen as nn
import jax.numpy as jnp

class Decoder(nn.Module):

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(32, 8)(tokens)
    return nn.Dense(32, name='head')(jnp.cumsum(x, axis=1))
'''


def run(args, capsys):
  status = main.dispatch(flags.rewrite_gin_args(['check', *args]))
  return status, capsys.readouterr().out


@pytest.mark.slow
def test_a_row_for_each_check_and_a_sum(capsys, monkeypatch):
  def fail(subject):
    raise outcome.Failure('They differ by 3 [of 4].')

  broken = suite.Check('causality', fail, 'It looks ahead.', 'At the router.')
  monkeypatch.setattr(suite, 'CHECKS', (suite.CHECKS[0], broken))
  monkeypatch.setattr(check, '_subject', lambda: tiny.subject(
      tiny.network(lora.LoRA, rank=2), sizes='LoRA, tiny.'
  ))
  args = ['--gin_file=configs/quickstart.gin']
  status, out = run(args, capsys)
  assert status == 1
  assert re.search(r'^identity +passed +[\d.]+ s', out, re.M)
  assert re.search(r'^causality +failed +[\d.]+ s', out, re.M)
  for text in ('3 [of 4].', 'It looks ahead.', 'At the router.', 'LoRA, tiny.',
               '1 passed, 1 failed, 0 skipped.'):
    assert text in out
  status, out = run([*args, '--json', '--only=identity'], capsys)
  found = json.loads(out)
  assert status == 0 and found['passed'] == 1 and found['failed'] == 0
  assert [row['name'] for row in found['checks']] == ['identity']


def test_a_network_of_the_user_as_documented(tmp_path, monkeypatch, capsys):
  text = (ROOT / 'docs' / 'models.md').read_text(encoding='utf-8')
  (block,) = re.findall(r'^```python\n(.*?MODULE =.*?)^```$', text, re.M | re.S)
  (tmp_path / 'my_network.gin').write_text(block)
  (tmp_path / 'my_networks.py').write_text(NETWORK)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  status, out = run(
      ['--gin_file=my_network.gin', '--gin_file=gin/methods/molora.gin',
       '--gin.SITES=head', '--gin.NUM_EXPERTS=3', '--only=identity',
       '--only=padding', '--only=resume'], capsys,
  )
  assert status == 0
  assert 'Decoder, in its own size' in out
  assert '2 passed, 0 failed, 1 skipped' in out


@pytest.mark.parametrize(
    ('words', 'names'),
    [
        ('--gin_file=nowhere.gin', ['nowhere.gin']),
        ('', ['--gin_file']),
        ('--gin_file=configs/quickstart.gin --only=nope', ['--only', 'nope']),
        ('--gin_file=configs/quickstart.gin --gin.SITES=nope', ['SITES']),
        ('--gin_file=gin/methods/molora.gin', ['MODULE', '--gin_file']),
        ('--gin_file=configs/quickstart.gin --gin.NUM_EXPERTS=0',
         ['NUM_EXPERTS']),
    ],
)
def test_what_cannot_be_checked_is_refused(refusals, words, names):
  refusals.expect(['check', *words.split()], *names)


@pytest.mark.slow
def test_the_quickstart_as_a_user_checks_it(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  result = subprocess.run(
      [sys.executable, '-m', 'moe_peft', 'check',
       '--gin_file=configs/quickstart.gin', '--only=sharding',
       '--only=identity'],
      cwd=ROOT, capture_output=True, text=True,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert '2 passed, 0 failed, 0 skipped.' in result.stdout

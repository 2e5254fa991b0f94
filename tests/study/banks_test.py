# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Studies whose arms are trained over banks of what other arms have trained."""

import json
import os

import pytest

from moe_peft.cli import study
from moe_peft.study import banks
from moe_peft.study import configurations
from moe_peft.study import loading
from moe_peft.study import plots
from moe_peft.study import processes
from moe_peft.study import run_rows
from tests import refusals
from tests.study import study_test

ROW = {'trainable': 1, 'base': {'t': 1.0}, 'adapted': {'t': 2.0},
       'held_out': []}


@pytest.fixture
def ran(monkeypatch):
  """What would run, in this order: [(module, folder, arguments)]."""
  commands = []

  def run_all(some, jobs, done, module='moe_peft.train', what='run'):
    assert (what == 'run') == (module == 'moe_peft.train')
    for index, (folder, arguments) in enumerate(some):
      commands.append((module, folder, arguments))
      left = folder / 'bank' / 'bank.json' if module == 'moe_peft' else (
          folder / 'run.json')
      left.parent.mkdir(parents=True, exist_ok=True)
      left.write_text('{}')
      done(index)

  monkeypatch.setattr(processes, 'run_all', run_all)
  monkeypatch.setattr(plots, 'save', lambda *_: None)
  monkeypatch.setattr(run_rows, 'read', lambda folder: dict(ROW))
  return commands


BASE = 'bases/any'


def write_files(folder):
  """Two experts, two gates, and two arms over the bank."""
  for name, bank_of in {
      'a_router': ('two', 'one'), 'one': None, 'two': None, 'z_gate': ('one',),
      'b_gates': ('z_gate',), 'c_router': ('two', 'one'),
  }.items():
    more = {'BANK_OF': bank_of} if bank_of else {}
    study_test.write_study(
        folder, name, SEEDS=(3, 4), INITIAL_CHECKPOINT_PATH=BASE, **more
    )


def test_arms_wait_for_their_experts_seed_by_seed(tmp_path, ran):
  write_files(tmp_path / 'files')
  out = tmp_path / 'out'
  command = [str(tmp_path / 'files'), '--out', str(out)]
  study.main([*command, '--trust_gin'])
  of_seed = lambda seed: [
      f'one/seed{seed}', f'two/seed{seed}',
      f'banks/two+one/seed{seed}', f'banks/one/seed{seed}',
      f'a_router/seed{seed}', f'c_router/seed{seed}', f'z_gate/seed{seed}',
      f'banks/z_gate/seed{seed}', f'b_gates/seed{seed}',
  ]
  assert [str(folder.relative_to(out)) for _, folder, _ in ran] == [
      *of_seed(3), *of_seed(4)
  ]
  module, folder, arguments = ran[2]
  assert module == 'moe_peft' and arguments == [
      'bank', 'build', f'--base={BASE}', f'--out={folder}/bank', '--force',
      '--trust_gin',
      *(f'--from={name}={out}/{name}/seed3' for name in ('two', 'one')),
  ]
  files = [x for x in ran[4][2] if x.startswith('--gin_file')]
  assert files[-1] == f'--gin_file={folder}/bank/bank.gin'
  assert not any('bank.gin' in x for x in ran[0][2])
  rows = json.loads((out / 'results.json').read_text())
  assert len(rows) == 12

  # A bank that is there is used again, until an expert is trained again.
  del ran[:]
  (out / 'results.json').write_text(json.dumps(
      [row for row in rows if row['name'] != 'a_router']
  ))
  for seed in (3, 4):
    (out / f'a_router/seed{seed}/run.json').unlink()
  newer = (out / 'banks/two+one/seed4/bank/bank.json').stat().st_mtime + 1
  os.utime(out / 'one/seed4/run.json', (newer, newer))
  study.main(command)
  assert [str(folder.relative_to(out)) for _, folder, _ in ran] == [
      'a_router/seed3', 'banks/two+one/seed4', 'a_router/seed4'
  ]

  # Rows are enough, but an arm that is to run needs the runs of its experts.
  (out / 'one/seed3/run.json').unlink()
  study.main(command)
  (out / 'results.json').write_text(json.dumps(
      [row for row in rows if row['name'] != 'b_gates']
  ))
  (out / 'b_gates/seed3/run.json').unlink()
  (out / 'z_gate/seed3/run.json').unlink()
  del ran[:]
  with refusals.refused(out / 'z_gate/seed3', 'b_gates with seed 3', '--only'):
    study.main(command)
  assert not ran


def test_an_early_look_takes_the_experts_along(tmp_path, ran):
  """Also where runs list seeds in another order, or experts have more."""
  folder = tmp_path / 'files'
  for name, seeds, bank_of in (
      ('one', (1, 2, 3, 4, 5), None), ('arm', (5, 4, 3), ('one',)),
      ('other', (3, 4, 5), None),
  ):
    more = {'BANK_OF': bank_of} if bank_of else {}
    study_test.write_study(
        folder, name, SEEDS=seeds, INITIAL_CHECKPOINT_PATH=BASE, **more
    )
  (folder / 'claim.gin').write_text(
      "EARLY_LOOK = (2, 0.001)\nCONTRASTS = (('better', 'arm', 'other'),)\n"
  )
  out = tmp_path / 'out'
  study.main([str(folder), '--out', str(out)])
  order = [str(x.relative_to(out)) for _, x, _ in ran]
  at = lambda name: order.index(name)
  for seed in (3, 4):  # Before the look.
    assert at(f'one/seed{seed}') < at(f'arm/seed{seed}') < at('one/seed5')
  # All scores are equal, which ends both arms at the look.
  assert len([x for x in order if not x.startswith('banks')]) == 9


def test_banks_that_cannot_be_are_named_before_anything_runs(tmp_path, ran):
  folder = tmp_path / 'files'
  study_test.write_study(folder, 'one')
  command = [str(folder), '--out', str(tmp_path / 'out')]
  for bank_of, names in (
      (('one', 'three'), ['two.gin', 'three', 'one, two']),
      (('two',), ['two needs two']),
      ((), ['empty']),
      ('one', ['one']),
  ):
    study_test.write_study(
        folder, 'two', BANK_OF=bank_of, INITIAL_CHECKPOINT_PATH=BASE
    )
    with refusals.refused('BANK_OF', *names):
      study.main(command)
  study_test.write_study(folder, 'two', BANK_OF=('one',))
  with refusals.refused('TUNE', 'two.gin', 'ALPHA'):
    study.main([*command, '--tune', 'ALPHA=1.0,2.0'])
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'two.gin', 'BANK_OF'):
    study.main(command)
  assert not ran


def test_seeds_may_be_in_another_order_in_each_file(tmp_path):
  def runs(name, seeds, depth):
    c = configurations.Configuration(
        tmp_path / f'{name}.gin', tmp_path / name, seeds, [{}], {}, False,
        depth=depth,
    )
    return [c.run(seed, {}, 'test') for seed in seeds]

  stages = banks.stages([*runs('over', (0, 1), 1), *runs('expert', (1, 0), 0)])
  assert [[(r.configuration.name, r.seed) for r in x] for x in stages] == [
      [('expert', 0)], [('over', 0)], [('expert', 1)], [('over', 1)]
  ]


def test_a_bank_of_many_names_has_a_short_one(tmp_path):
  c = configurations.Configuration(
      tmp_path / 'a.gin', tmp_path / 'a', [0], [{}], {}, False,
      bank_of=[f'expert_number_{i}' for i in range(40)],
  )
  bank = c.run(0, {}, 'test').bank
  assert max(map(len, bank.parts)) <= 64 + len(tmp_path.name)
  assert len(c.run(0, {}, 'test').experts) == 40


def test_the_study_of_banks_is_whole(tmp_path):
  """Each expert and gate has its own task, and arms have all of them."""
  (loaded,) = loading.load(configurations.StudyOptions(
      'configs/study/bank', tmp_path, tmp_path
  )).values()
  by_name = {c.name: c for c in loaded}
  experts = by_name['average'].bank_of
  for task in experts:
    assert by_name[task].macros['MIXTURE_OR_TASK_NAME'] == task
    for kind in ('gate', 'index'):
      of_one = by_name[f'{kind}_{task}']
      assert of_one.bank_of == (task,) and of_one.depth == 1
      assert of_one.macros['MIXTURE_OR_TASK_NAME'] == task
  apart = 'gate_', 'index_'
  over = [c for c in loaded if c.depth and not c.name.startswith(apart)]
  assert {len(c.bank_of) for c in over} == {len(experts)}
  for name, kind in (('phatgoose', 'gate'), ('retrieval', 'index')):
    assert by_name[name].bank_of == tuple(f'{kind}_{x}' for x in experts)
  assert by_name['oracle'].macros['EXAMPLE_IDS'] == str(experts)
  assert len({tuple(c.declared_seeds) for c in loaded}) == 1
  assert len(banks.stages([
      c.run(seed, {}, 'test') for c in loaded for seed in (0, 1)
  ])) == 6

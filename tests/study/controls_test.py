# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which runs of a study get scores with their routing replaced."""

from pathlib import Path

from moe_peft.runs import controls_file
from moe_peft.study import configurations
from moe_peft.study import controls
from moe_peft.study import processes
from moe_peft.study import records

ROW = {'trainable': 4, 'base': {'t': 1.0}, 'adapted': {'t': 2.0}}


def test_runs_that_route_and_have_none_are_scored(tmp_path, monkeypatch):
  kept = records.Records(tmp_path / 'results')
  for seed in (0, 1, 2):
    kept.add_row({'name': 'one', 'seed': seed, **ROW})
  kept.add_controls('one', 0, {'shuffled': {'t': 0.5}})
  configuration = configurations.Configuration(
      Path('one.gin'), tmp_path / 'one', (0, 1, 2, 3), [{}], {}, False
  )
  folder = tmp_path / 'one' / 'seed1'  # That of seed 2 has no router.
  folder.mkdir(parents=True)
  (folder / 'routing.json').touch()
  asked = []

  def ablated(commands, jobs, done, module, what):
    del jobs, what
    for index, (where, arguments) in enumerate(commands):
      asked.append((where, module, arguments))
      scores = {'trained': {'t': 2.0}, 'shuffled': {'t': 1.5}}
      controls_file.Controls(
          {'t': 'f1'}, scores, 3, 'test', {'t': 8}
      ).write(where)
      done(index)

  monkeypatch.setattr(processes, 'run_all', ablated)
  options = configurations.StudyOptions('folder', tmp_path, tmp_path)
  for _ in range(2):  # Nothing is left for the second time.
    controls.measure([configuration], kept, options)
  assert asked == [(folder, 'moe_peft', [
      'ablate', str(folder), '--routing', '--split=test'
  ])]
  found = [row.get('controls') for row in records.Records(kept.folder).rows]
  assert found == [{'shuffled': {'t': 0.5}}, {'shuffled': {'t': 1.5}}, None]

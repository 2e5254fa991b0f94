# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is read of single experts, and what the page makes of it."""

import dataclasses
import json
import re

import gin
import numpy as np
import pytest

from moe_peft import errors
from moe_peft.report import budget_section
from moe_peft.report import page
from moe_peft.report import tokens_section
from moe_peft.runs import config_file
from moe_peft.runs import run as run_lib

SITE = 'encoder/layers_0/attention/query'


def test_drift_of_snapshots(run_dir):
  experts = run_lib.read(run_dir).experts
  np.testing.assert_array_equal(experts.steps, [0, 20, 40])
  # From an equal share of four to one expert: three quarters have moved.
  np.testing.assert_allclose(experts.moved[SITE], [0, 0.75, 0.75])
  np.testing.assert_allclose(experts.stepped[SITE], [0, 0.75, 0])
  assert experts.rows[0].pieces['encoder'] == ('a', 'b', '⟨end⟩')


def test_padding_does_not_drift(run_dir):
  """Only what lies beyond the pieces changes."""
  file = run_dir / 'routing' / 'step_0.npz'
  arrays = dict(np.load(run_dir / 'routing' / 'step_20.npz'))
  for weights in arrays.values():
    weights[:, 3:] = 0.25
  np.savez(file, **arrays)
  np.testing.assert_allclose(run_lib.read(run_dir).experts.moved[SITE], 0)


def test_log_and_scores(run_dir):
  experts = run_lib.read(run_dir).experts
  np.testing.assert_array_equal(experts.log_steps, [20, 40])
  np.testing.assert_allclose(experts.load[SITE], [[0.3, 0.3, 0.3, 0.1]] * 2)
  np.testing.assert_allclose(experts.left_behind[SITE], 0.125)
  np.testing.assert_allclose(experts.ablation.scores()[SITE], [0, 0.25, 0, 0])
  assert experts.similarity[SITE][0, 1] == 0.5


def test_a_collapsed_router_is_told(run_dir):
  path = run_dir / 'metrics' / 'routers.jsonl'
  means = {'load': [0.97, 0.01, 0.01, 0.01], 'selected': 4, 'left_behind': 0}
  path.write_text(json.dumps({'step': 20, 'sites': {SITE: means}}) + '\n')
  (notice,) = run_lib.read(run_dir).notices
  assert SITE in notice and 'has collapsed' in notice and '1.2 of 4' in notice


def test_an_older_run_has_none_of_it(run_dir):
  for name in ('similarity.json', 'ablation.json', 'metrics/routers.jsonl'):
    (run_dir / name).unlink()
  for file in (run_dir / 'routing').iterdir():
    file.unlink()
  routing = json.loads((run_dir / 'routing.json').read_text())
  del routing['chance'], routing['left_behind']
  (run_dir / 'routing.json').write_text(json.dumps(routing))
  text = page.write_report([run_dir], run_dir / 'r.html').read_text()
  assert 'No router was logged' in text
  assert 'no snapshot of its routers' in text
  assert f'moe_peft.cli.ablate {run_dir}' in text


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('similarity.json', '{"sites": [{"path": "a"}], "cosine": [[1, 2]]}'),
        ('ablation.json', '{"tasks": ["a"], "loss": [1]}'),
        ('metrics/routers.jsonl', '{"step": 1, "sites": {"a": {"load": 1}}}'),
        ('routing/rows.json', '{"rows": [1]}'),
        ('routing/step_20.npz', 'PK no archive'),
    ],
)
def test_a_corrupt_file_is_named(run_dir, name, text):
  (run_dir / name).write_text(text)
  with pytest.raises(errors.UserError, match=name):
    run_lib.read(run_dir)


def test_page(run_dir, tmp_path):
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  for words in (
      'Routers over time', 'Drift from step 0 to step 40', 'By chance',
      'Tokens left behind', 'None at evaluation.', 'Leave one expert out',
      'Experts that are needed most', '+0.250', 'How alike the experts are',
  ):
    assert words in text, words
  # All of the weight is at expert 2; the row's text is escaped.
  assert '<span class="x2 l3">ab⟨end⟩<sub>2</sub></span>' in text
  assert '⟨start⟩&lt;i&gt;' in text


def test_tokens_that_differ_are_told_apart():
  weights = np.array([[0.5, 0.5], [0.4, 0.6], [0.05, 0.95], [0, 0], [1, 0]])
  line = tokens_section._line('abcde', weights)
  assert re.findall(r'<span(.*?)>(.)', line) == [
      (' class="x0 l1"', 'a'), (' class="x1 l2"', 'b'), (' class="x1 l3"', 'c'),
      ('', 'd'), (' class="x0 l3"', 'e'),
  ]


def _runs(make_run, scores, **config):
  runs = []
  for i, score in enumerate(scores):
    name = f'{config.get("method", "molora")}/seed{i}'
    run = run_lib.read(make_run(name, seed=i, **config))
    run = dataclasses.replace(run, scores=tuple(
        dataclasses.replace(s, adapted=score) for s in run.scores
    ))
    text = f'METHOD = {config.get("method")!r}\nSEED = {i}\nALPHA = 4\n'
    runs.append(dataclasses.replace(run, config=text))
  return runs


def test_runs_of_one_method_are_one_line(make_run):
  lora = _runs(make_run, [60, 62], method='lora', routed=False)
  mov = _runs(make_run, [70, 71, 69], method='mov', routed=False)
  smear = _runs(make_run, [63, 60], method='smear', routed=False)
  groups = budget_section.group(lora + mov + smear)
  assert [(g.name, len(g.runs)) for g in groups] == [
      ('lora', 2), ('mov', 3), ('smear', 2)
  ]
  text = budget_section.budget(lora + mov + smear)
  lines = {
      name: re.search(rf'<tr><th scope="row">{name}<.*?</tr>', text, re.DOTALL)
      for name in ('lora', 'mov', 'smear')
  }
  assert '61.00' in lines['lora'][0] and '± 1.41' in lines['lora'][0]
  # Nine points are beyond the spread, half a point is not.
  assert '▲' in lines['mov'][0] and '▼' not in lines['mov'][0]
  assert not {'▲', '▼'} & set(lines['smear'][0] + lines['lora'][0])
  # What differs is shown, what is the same is not.
  assert 'METHOD' in lines['mov'][0] and 'ALPHA' not in text


def _config(model_dir, seed, rank=4):
  """A run's config.gin, as gin writes it."""
  lines = [f'MODEL_DIR = {model_dir!r}', f'SEED = {seed}', f'RANK = {rank}',
           "SITES = '.*/(query|key|value|out|wi_0|wi_1|wo)/of/many/more/names'",
           f'LENGTHS = {dict.fromkeys(["of_inputs", "of_targets"], 10**30)}']
  gin.clear_config()
  gin.parse_config(lines)
  return gin.config_str()


def test_lines_that_gin_wraps_do_not_part_seeds(make_run):
  long = '/runs/' + 'x' * 100
  texts = [_config('/runs/a', 0), _config(f'{long}/b', 1), _config(long, 2, 8)]
  assert 'MODEL_DIR = \\\n' in texts[1] and 'LENGTHS = \\\n' in texts[0]
  runs = [
      dataclasses.replace(run_lib.read(make_run(f'run{i}')), config=text)
      for i, text in enumerate(texts)
  ]
  seeds, other = budget_section.group(runs)
  assert seeds.runs == tuple(runs[:2]) and other.runs == (runs[2],)
  assert seeds.macros['MODEL_DIR'] == "'/runs/a'"
  assert other.macros['MODEL_DIR'] == repr(long) and other.macros['RANK'] == '8'
  assert '\n' not in seeds.macros['LENGTHS']


def test_a_configuration_keeps_references_as_they_are_written(tmp_path):
  text = 'A = [@b.c(), @x/d, %E]\ns/b.c.rank = %A\n'
  bound = config_file.bindings(text, tmp_path)
  assert bound == {'A': '[@b.c(), @x/d, %E]', 's/b.c.rank': '%A'}
  assert config_file.macros(bound) == {'A': bound['A']}
  with pytest.raises(errors.UserError, match='is not gin'):
    config_file.bindings('A = (1,', tmp_path)


def test_constant_answers_stand_beside(run_dir, make_run):
  path = run_dir / 'results.json'
  results = json.loads(path.read_text())
  metric = results['primary_metric']['stress']
  results['constant_answer'] = {'stress': {metric: 37.5, 'other': 1.0}}
  path.write_text(json.dumps(results))
  runs = [run_lib.read(run_dir), run_lib.read(make_run('other'))]
  assert runs[0].constant_answer == {'stress': 37.5}
  text = budget_section.budget(runs)
  line = re.search('best constant answer.*?</tr>', text, re.DOTALL)[0]
  assert '37.50' in line


def test_held_out_tasks_have_a_mean_of_their_own(make_run):
  runs = [run_lib.read(make_run(name)) for name in ('a', 'b')]
  scores = [('t', 1.0), ('u', 4.0), ('v', 10.0), ('w', 30.0)]
  runs = [
      dataclasses.replace(
          run,
          scores=tuple(run_lib.Score(t, 'm', 0.0, x, True) for t, x in scores),
          info={**run.info, 'held_out_tasks': ['v', 'w']},
      )
      for run in runs
  ]
  text = budget_section.budget(runs)
  heads = re.findall('<th scope="col"[^>]*>(.*?)</th>', text)
  cells = re.findall('<td[^>]*>(.*?)</td>', text.split('<tr')[-1])
  shown = dict(zip(heads[1:], cells, strict=True))
  # (1 + 4) / 2 and (10 + 30) / 2.
  assert shown['Mean over tasks'].startswith('2.5')
  assert shown['Held-out mean'].startswith('20')


def test_lower_is_better_turns_the_mark(make_run):
  good = budget_section._cell([1.0, 1.1], [2.0, 2.1], 'loss', False)
  assert '▲' in good
  assert '▼' in budget_section._cell([2.0, 2.1], [1.0, 1.1], 'loss', False)

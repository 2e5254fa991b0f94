# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page: what it holds, that it stands alone, and what it survives."""

import html.parser
import json
import os
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from moe_peft.cli import report as report_command
from moe_peft.report import figure
from moe_peft.report import page
from moe_peft.report import plots
from moe_peft.report import scores
from moe_peft.runs import metrics_files
from moe_peft.runs import run as run_lib
from tests import refusals

_VOID = {'meta', 'br', 'link', 'img', 'input', 'hr'}


class _Page(html.parser.HTMLParser):
  """Collects text, ids and addresses; checks that tags are balanced."""

  def __init__(self, text):
    super().__init__()
    self.words, self.ids, self.addresses, self.tags = [], [], [], []
    self._open = []
    self.feed(text)
    assert not self._open
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self._note(attrs)
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self._note(attrs)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open[-1:] != ['style']:
      self.words.append(data)

  def _note(self, attrs):
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in ('href', 'src', 'xlink:href', 'srcset', 'action', 'data'):
        self.addresses.append(value)


def _page(run_dirs, out):
  text = page.write_report(run_dirs, out).read_text(encoding='utf-8')
  return text, _Page(text)


@pytest.mark.slow
def test_page_holds_what_it_must(run_dir, tmp_path):
  _, page = _page([run_dir], tmp_path / 'r.html')
  for words in (
      'molora on tiny_t5', '2.5 % of', '1 min 15 s', 'jax 0.10.2',
      'run files of version 1', 'First, best and last values',
      'past_tense', 'exact_match', '12.25', '61.75', '+49.50',
      'Mean over tasks', '128', 'Training loss', 'Learning rate',
      'Tokens per second', 'Router entropy', 'Load-balancing loss',
      'attention/query', 'mlp/wo', 'encoder', 'decoder', 'layer 1',
      'uniform 1/4 = 0.25', 'Mutual information', 'nats', 'Dead experts',
      'encoder/layers_1/mlp/wo', '1 of 4', 'BATCH_SIZE = 16',
      '1 of 32 experts are dead', 'mean normalized entropy is 0.75',
  ):
    assert words in page.text, words


def test_page_stands_alone(run_dir, make_run, tmp_path):
  text, page = _page([run_dir, make_run('b')], tmp_path / 'r.html')
  assert 'http:' not in text and 'https:' not in text
  assert '@import' not in text and 'url(//' not in text
  assert not {'script', 'link', 'iframe', 'object'} & set(page.tags)
  assert len(re.findall('role="img" aria-label="[^"]', text)) == (
      text.count('role="img"')
  )
  assert all(a.startswith(('#', 'data:')) for a in page.addresses)
  assert {a[1:] for a in page.addresses if a[0] == '#'} <= set(page.ids)
  assert set(re.findall(r'url\(#([^)]*)\)', text)) <= set(page.ids)


@pytest.mark.slow
def test_drawings_follow_the_colors_of_the_page(run_dir, tmp_path):
  text, _ = _page([run_dir], tmp_path / 'r.html')
  assert text == page.page([run_lib.read(run_dir)])  # Nothing is random.
  svg = ''.join(re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL))
  assert 'var(--ink)' in svg and 'var(--series-0)' in svg
  assert '#0102' not in svg and '#0103' not in svg
  assert 'prefers-color-scheme:dark' in text and '@media print' in text


@pytest.mark.slow
def test_several_runs_are_compared(make_run, tmp_path):
  runs = [
      make_run('molora_run'),
      make_run('lora_run', routed=False, method='lora', seed=1),
      make_run('mov_run', method='mov', seed=2),
  ]
  text, page = _page(runs, tmp_path / 'r.html')
  assert '3 runs compared' in page.text
  assert 'Without a router: lora_run' in page.text
  assert page.text.count('Resolved gin configuration of') == 3
  # A line of each run in the panel of the loss, of the routed ones in the
  # panel of the entropy.
  loss = re.search(r'Training loss.*?</figure>', text, re.DOTALL)[0]
  assert [f'var(--series-{i})' in loss for i in range(4)] == [1, 1, 1, 0]
  entropy = re.search(r'Router entropy<.*?</figure>', text, re.DOTALL)[0]
  assert [f'var(--series-{i})' in entropy for i in range(4)] == [1, 0, 1, 0]


def test_without_routing(make_run, tmp_path):
  _, page = _page([make_run('lora', routed=False)], tmp_path / 'r.html')
  assert 'No router to look at' in page.text
  assert 'Mutual information' not in page.text


def test_killed_run(run_dir, tmp_path):
  for name in (
      'run.json', 'results.json', 'routing.json', 'metrics/eval.jsonl'
  ):
    (run_dir / name).unlink()
  train = run_dir / 'metrics' / 'train.jsonl'
  train.write_text(train.read_text()[:-12])
  _, page = _page([run_dir], tmp_path / 'r.html')
  assert 'skipped unreadable line 40' in page.text
  assert 'No results yet' in page.text
  assert 'was not evaluated while training' in page.text


def test_run_that_has_just_begun(tmp_path):
  (tmp_path / 'run.json').write_text('{}')
  _, page = _page([tmp_path], tmp_path / 'r.html')
  assert 'No training metrics were written' in page.text


@pytest.mark.parametrize(
    'config, expected',
    [
        ('from moe_peft.methods import mov\n', 'mov'),
        ('import moe_peft.methods.lora\n', 'lora'),
        ('# from moe_peft.methods import mov\n', 'run'),
        ('', 'run'),
    ],
)
def test_method_that_run_json_does_not_name(run_dir, config, expected):
  (run_dir / 'run.json').write_text('{"steps": 3}')
  (run_dir / 'config.gin').write_text(config)
  assert scores.method(run_lib.read(run_dir)) == expected


@pytest.mark.parametrize(
    'base, expected',
    [
        ('gs://bucket/t5_1_1_large/checkpoint_1000000', 'checkpoint_1000000'),
        ({'path': '/x/tiny_t5.safetensors', 'parameters': 3}, 'tiny_t5'),
        ({'path': '/x/smol/model.safetensors'}, 'smol'),
        ('bases/t5.1.1', 't5.1.1'),
        ({'path': None, 'parameters': 0}, 'a random base'),
    ],
)
def test_name_of_the_base(run_dir, base, expected):
  info = {'method': 'gin/methods/mov.gin', 'base': base}
  (run_dir / 'run.json').write_text(json.dumps(info))
  assert scores.title([run_lib.read(run_dir)]) == f'mov on {expected}'


@pytest.mark.slow
def test_nan_everywhere(run_dir, tmp_path):
  with open(run_dir / 'metrics' / 'train.jsonl', 'w') as f:
    for step in range(1, 400):
      f.write(f'{{"step": {step}, "loss": NaN, "accuracy": null}}\n')
  path = run_dir / 'results.json'
  path.write_text(re.sub(r'(?<="adapted": )[\d.]+', 'NaN', path.read_text()))
  path = run_dir / 'routing.json'
  routing = json.loads(path.read_text())
  routing['load'] = [[[None] * 4] * 8] * 3
  routing['entropy'] = [[None] * 8] * 3
  path.write_text(json.dumps(routing))
  _, page = _page([run_dir], tmp_path / 'r.html')
  assert 'loss is not a finite number at 399 of 399' in page.text
  assert 'no finite value' in page.text
  assert not re.search(r'\bnan\b', page.text, flags=re.IGNORECASE)


def test_everything_from_the_run_is_escaped(run_dir, tmp_path):
  bad = '<script>alert("x")</script>&$\\alpha_{$'
  for name in ('run.json', 'results.json', 'routing.json'):
    path = run_dir / name
    value = json.loads(path.read_text())
    replaced = json.dumps(value).replace('past_tense', json.dumps(bad)[1:-1])
    replaced = replaced.replace('mlp/wo', json.dumps(bad)[1:-1])
    path.write_text(replaced.replace('tiny_t5', json.dumps(bad)[1:-1]))
  for name in ('config.gin', 'metrics/eval.jsonl', 'metrics/train.jsonl'):
    path = run_dir / name
    text = path.read_text().replace('SEED', bad)
    text = text.replace('past_tense', json.dumps(bad)[1:-1])
    path.write_text(text.replace('auxiliary_loss', json.dumps(bad)[1:-1]))
  text, page = _page([run_dir], tmp_path / 'r.html')
  assert '<script' not in text
  assert page.text.count('<script>alert("x")</script>&$') > 5


def test_settings_of_matplotlib_stay():
  before = dict(matplotlib.rcParams)
  curve = metrics_files.Curve(np.arange(2), np.zeros(2))
  assert 'aria-label="a &lt;b&gt;"' in plots.curves({0: curve}, 'a <b>')
  assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize('out', ['.', 'absent/r.html'])
def test_unwritable_place(run_dir, tmp_path, monkeypatch, out):
  monkeypatch.setattr(page, 'page', lambda runs: 'page')
  with refusals.refused('--out', tmp_path / out):
    page.write_report([run_dir], tmp_path / out)


def test_failed_report_leaves_the_old_page(run_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(page, 'page', lambda runs: 'page')
  out = page.write_report([run_dir], tmp_path / 'r.html')

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with refusals.refused('--out', 'No space left'):
    page.write_report([run_dir], out)
  assert out.read_text() == 'page'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['r.html', 'run']


def test_too_many_runs(run_dir, tmp_path):
  with refusals.refused('RUN', '21'):
    page.write_report([run_dir] * 21, tmp_path / 'r.html')


@pytest.mark.slow
def test_command_writes_into_the_run(run_dir, capsys):
  assert not report_command.main([str(run_dir)])
  assert capsys.readouterr().out.strip() == str(run_dir / 'report.html')
  assert (run_dir / 'report.html').is_file()


def test_command_error_is_one_line(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'moe_peft', 'report', str(tmp_path / 'absent')],
      capture_output=True, text=True,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and 'absent' in line


def test_help_imports_nothing_slow():
  code = (
      'import sys\nfrom moe_peft.cli import report\n'
      'try:\n  report.main(["-h"])\n'
      'except SystemExit:\n  pass\n'
      'sys.exit(str({"numpy", "jax", "matplotlib"} & set(sys.modules)))'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stderr.strip() == 'set()'


def test_thin_keeps_means_and_gaps():
  values = np.arange(1000.0)
  values[500] = np.nan
  steps, thinned = plots.thin(
      metrics_files.Curve(np.arange(1000), values), limit=100
  )
  assert len(steps) == len(thinned) == 100
  np.testing.assert_allclose(thinned[0], np.arange(10).mean())
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(thinned)), [50])


@pytest.mark.parametrize(
    'value, expected',
    [(0.0, '0.000'), (12.345, '12.35'), (-0.5, '−0.500'), (1e-5, '1.0e-05')],
)
def test_numbers(value, expected):
  assert page.number(value) == expected


def test_the_best_of_a_column_is_bold_and_turning_points_are_told(make_run):
  runs = [run_lib.read(make_run(name, routed=False)) for name in 'ab']
  columns = {('qa', 'f1'): False, ('qa', 'exact_match'): True}
  assert set(scores.best(runs, columns).values()) == {55.5, 61.75}
  curve = metrics_files.Curve(
      np.arange(4), np.array([3.0, np.nan, 1.0, 2.0])
  )
  assert scores.turning_points(curve, lower=True) == (3, 1, 2, 2)
  assert scores.turning_points(curve, lower=False) == (3, 3, 0, 2)


def test_labels_keep_both_ends():
  assert figure.label('short') == 'short'
  long = figure.label('encoder_decoder_attention/value', 20)
  assert len(long) == 20
  assert long.startswith('encoder') and long.endswith('/value')


@pytest.mark.slow
def test_runs_beyond_the_colors_differ_in_dash():
  styles = {figure.series_style(i) for i in range(page.MAX_RUNS)}
  assert len(styles) == page.MAX_RUNS

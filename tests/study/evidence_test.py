# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers of documents are those of `results/`."""

import json
from pathlib import Path
import re
import shutil
import statistics

import pytest

from moe_peft.cli import evidence as command
from moe_peft.study import claims
from moe_peft.study import evidence
from moe_peft.study import tables
from tests import refusals

ROOT = Path(__file__).parents[2]
STUDIES = ('words', 'wide', 'ablations', 'narrow', 'bank')


def read(study):
  """Rows of each method."""
  rows = {}
  text = (ROOT / 'results' / study / 'results.json').read_text()
  found = [{'held_out': [], **row} for row in json.loads(text)]
  for row in tables.compared(found):
    rows.setdefault(row['name'], []).append(row)
  return rows


def mean(study, method, without=()):
  return statistics.fmean(map(claims.mean(without), read(study)[method]))


def test_the_page_is_what_its_command_makes():
  """After a change of results/, run the command that the page names."""
  made = evidence.page(
      ROOT / 'results', 'lora', ['syllables'], ROOT / 'docs'
  )
  assert (ROOT / 'docs' / 'evidence.md').read_text() == made


@pytest.mark.parametrize('document', ['README.md', 'docs/studies.md'])
def test_every_mean_of_a_document_is_in_the_results(document):
  """Of single tasks and of means; a typing error is none of them."""
  known = set()
  for study in STUDIES:
    for rows in read(study).values():
      of_row = lambda row: {
          **row['adapted'], **tables.means(row['adapted'], row['held_out'])
      }
      for column in of_row(rows[0]):
        known.add(tables.cell([of_row(row)[column] for row in rows]))
  text = (ROOT / document).read_text()
  found = set(re.findall(r'\d+\.\d ± \d+\.\d', text))
  assert found and found <= known


def test_the_differences_of_the_wide_table_are_those_of_its_rows():
  """Each line of the document's table ends with its distance from LoRA."""
  text = (ROOT / 'docs' / 'studies.md').read_text()
  section = text.split('## Wide')[1].split('## Ablations')[0]
  written = re.findall(r'^\|.*\| (\d+\.\d) ± \d+\.\d \| \**([+-]\d+\.\d)',
                       section, re.M)
  lora = mean('wide', 'lora')
  differences = sorted(
      (f'{mean("wide", m):.1f}', f'{mean("wide", m) - lora:+.1f}')
      for m in read('wide') if m != 'lora'
  )
  assert sorted(written) == differences


def test_the_table_of_the_microscope_is_that_of_its_rows():
  """And so is what is said of it."""
  text = (ROOT / 'docs' / 'studies.md').read_text()
  section = text.split('## Routers under')[1].split('## Narrow')[0]
  written = re.findall(r'^\| Mo.*', section, re.M)
  names = ('molora_sentence', 'molora', 'molora_top2', 'mola')
  scores = {}
  for name, line in zip(names, written, strict=True):
    rows = read('routing')[name]
    assert len(rows) == 3
    scores[name] = [
        statistics.fmean(
            statistics.fmean(x for t, x in of.items() if t != 'syllables')
            for of in column
        )
        for column in zip(
            *([row['adapted'], *row['controls'].values()] for row in rows),
            strict=True,
        )
    ]
    assert line.split(' | ')[1:] == [
        *(f'{x:.1f}' for x in scores[name][:-1]), f'{scores[name][-1]:.1f} |'
    ]
  within = {name: round(x[0] - x[2]) for name, x in scores.items()}
  between = {name: round(x[2] - x[3]) for name, x in scores.items()}
  said = ' '.join(section.split())
  by_sequence = within.pop('molora_sentence'), between.pop('molora_sentence')
  for words in (
      f'lose {min(within.values())} to {max(within.values())} points',
      f'{min(between.values())} to {max(between.values())} points more',
      f'{by_sequence[0]} points within tasks, and {by_sequence[1]} more',
  ):
    assert words in said, words


def test_the_table_of_the_bank_is_that_of_its_rows():
  text = (ROOT / 'docs' / 'studies.md').read_text().split('## A bank')[1]
  scores = {
      name: [statistics.fmean(row['adapted'].values()) for row in rows]
      for name, rows in read('bank').items()
  }
  means = {name: statistics.fmean(found) for name, found in scores.items()}
  routed = [
      'lora', 'oracle', 'retrieval', 'learned', 'xlora', 'phatgoose', 'arrow',
      'average', 'random', 'sum',
  ]
  alone = max(read('bank')['lora'][0]['adapted'], key=means.get)
  written = re.findall(r'^\|.*\| (\d+\.\d ± \d+\.\d) \|$', text, re.M)
  assert written == [
      f'{means[name]:.1f} ± {statistics.stdev(scores[name]):.1f}'
      for name in (*routed, alone)
  ]
  for other in ('lora', 'oracle'):
    assert round(means[other] - means['learned']) == 5
    assert round(means[other] - means['xlora']) == 13
  assert 0 < means['oracle'] - means['retrieval'] < 1
  assert all(len(found) == 5 for found in scores.values())


def test_the_table_of_the_bank_on_smollm2_is_that_of_its_rows():
  text = (ROOT / 'docs' / 'studies.md').read_text().split('### On SmolLM2')[1]
  means = {
      name: statistics.fmean(rows[0]['adapted'].values())
      for name, rows in read('bank_smollm2').items()
  }
  rows = re.findall(r'^\|.*\| (\d+\.\d) \|$', text, re.M)
  names = (
      'lora', 'oracle', 'retrieval', 'phatgoose', 'learned', 'xlora', 'arrow',
      'random', 'average',
  )
  alone = max(('adverb', 'comparative', 'lemma', 'past_tense'), key=means.get)
  assert rows == [f'{means[name]:.1f}' for name in (*names, alone)]
  assert means['lora'] - means['retrieval'] <= 3.5


def test_the_table_of_languages_is_that_of_its_rows():
  text = (ROOT / 'docs' / 'studies.md').read_text().split('## Languages')[1]
  rows = re.findall(r'^\| (?:Mo)?LoRA.*', text.split('## A bank')[0], re.M)
  names = (
      'lora_scale_3', 'molora', 'molora_sentence', 'lora', 'molora_top2',
      'molora_scale_3', 'lora_scale_8',
  )
  for name, row in zip(names, rows, strict=True):
    (run,) = read('languages')[name]
    unseen = set(run['held_out'])

    def mean(kinds, of_unseen, run=run, unseen=unseen):
      return statistics.fmean(
          score for task, score in run['adapted'].items()
          if task.startswith(kinds) and (task in unseen) == of_unseen
      )

    kinds = ('lemma', 'date', 'plural')
    found = [mean(kind, False) for kind in (*kinds, kinds)]
    found += [mean(kind, True) for kind in ('lemma', 'plural')]
    assert re.findall(r'(\d+\.\d) (?=\|)', row.split('|', 3)[3]) == [
        f'{score:.1f}' for score in found
    ]


def test_what_the_readme_says_of_routing_by_sequence():
  """The reading of the wide study, next to its figures."""
  text = ' '.join((ROOT / 'README.md').read_text().split())
  gap = lambda other, without: (
      mean('wide', 'molora_sentence', without) - mean('wide', other, without)
  )
  without = ('syllables',)
  claim = 'claims/02_token'
  # The claim ended at its look; another one has trained more seeds of an arm.
  first = lambda arm: statistics.fmean(
      claims.mean(without)(row) for row in read(claim)[arm] if row['seed'] < 8
  )
  below = lambda other: first('molora_sentence') - first(other)
  for words in (
      f'without `syllables` it is {gap("lora", without):.1f} points over LoRA',
      f'and {gap("molora", without):.1f} over MoLoRA by token',
      'no more than reading the task\'s name',
  ):
    assert words in text
  page = (ROOT / 'docs' / 'studies.md').read_text()
  assert f'**{gap("lora", ()):+.1f}**' in page
  for words in (
      f'it is {below("molora"):.1f} points above routing by token',
      f'is {below("molora_id"):.1f} points below routing by sequence',
      f'is {below("lora_id"):.1f} points below routing by sequence',
      f'and {below("molora") - below("lora_id"):.1f} above routing by token',
  ):
    assert words in ' '.join(page.split())


def test_what_is_said_of_the_claims():
  said = {
      path: ' '.join((ROOT / path).read_text().split())
      for path in ('README.md', 'docs/studies.md')
  }
  table = (ROOT / 'results' / 'claims' / 'table.md').read_text()
  outcomes = re.findall(r'^\| \*\*.* \| \*\*(\w+)\*\* \|', table, re.M)
  assert sorted(outcomes) == ['contradicted'] * 3 + ['undecided'] * 9
  assert 'nine are undecided so far' in said['README.md']
  assert '**So far three are decided**' in said['docs/studies.md']
  gap = lambda claim, one, other: mean(claim, one, ('syllables',)) - mean(
      claim, other, ('syllables',)
  )
  soft = lambda other: gap('claims/01_soft', 'molora', other)
  shared = lambda one: gap('claims/05_shared_a', one, 'molora')
  random, contrast = 'claims/08_random', 'claims/04_contrast'
  without = 'moelora_no_contrast'
  for words in (
      f'is {gap(random, "molora_top2", "molora_top2_frozen"):.1f} points below',
      f'nearly uniform, {gap(random, "molora", "molora_frozen"):.1f} below',
      f'soft routing and top-2 differ by {soft("molora_top2"):.1f} (',
      f'soft routing and top-1 by {soft("molora_top1"):.1f} (',
      f'renormalized is {soft("molora_top2_raw"):.1f} below',
      f'gates, it is {soft("molora_top2_raw_scaled"):.1f} below',
      f'parameters, it is {-shared("shared_a_rank_2"):.1f} below',
      f'of them, {shared("shared_a"):.1f} above',
      f'12 seeds, it is {gap(contrast, without, "moelora"):.1f} worse',
      f'much {gap(contrast, without, "moelora_contrast_10"):.1f} worse',
  ):
    assert words in said['docs/studies.md'], words


def test_a_page_needs_results(tmp_path):
  for folder in (tmp_path, tmp_path / 'nowhere'):
    with refusals.refused(folder, 'no results'):
      command.main([str(folder), '--out', str(tmp_path / 'page.md')])
  assert not (tmp_path / 'page.md').exists()


def test_folders_of_studies_are_on_the_page_and_empty_ones_are_not(tmp_path):
  for name in ('bank/routers', 'alone'):
    shutil.copytree(ROOT / 'results' / 'words', tmp_path / name)
  (tmp_path / 'bank' / 'begun').mkdir()
  (tmp_path / 'bank' / 'begun' / 'results.json').write_text('[]')
  (tmp_path / 'alone' / 'claim.md').write_text('| claim |\n')
  page = tmp_path / 'pages' / 'page.md'
  command.main([str(tmp_path), '--out', str(page)])
  text = page.read_text()
  assert re.findall('^## (.*)', text, re.M) == ['alone', 'bank/routers']
  assert '| claim |' in text.partition('## bank')[0]


def test_what_is_left_out_leaves_something(tmp_path):
  """A study of that task alone has one mean, and no trace."""
  row = {'name': 'lora', 'seed': 0, 'trainable': 1, 'held_out': ['u'],
         'base': {'t': 1.0, 'u': 1.0}, 'adapted': {'t': 2.0, 'u': 3.0}}
  (tmp_path / 'one').mkdir()
  (tmp_path / 'one' / 'results.json').write_text(json.dumps([row]))
  text = evidence.page(tmp_path, 'lora', ['t'], tmp_path)
  assert '| lora | 1 |  | 1 | 2.0 |  |\n' in text and 'u' not in (
      text.split('| method')[1].split('\n')[0]
  )

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of where a binding was set."""

import functools

from moe_peft import gin_places

LEAF = """import nosuchmodule
A = 1
include 'inner.gin'
include 'of_a_package.gin'
x.y.f:
  a = %A
  b = 3
s/f.b = 4
"""


def test_the_last_binding_counts(tmp_path):
  (tmp_path / 'leaf.gin').write_text(LEAF)
  (tmp_path / 'inner.gin').write_text('\nA = 2\nf.c = 5')
  leaf, inner = (str(tmp_path / name) for name in ('leaf.gin', 'inner.gin'))
  find = {'inner.gin': inner}.get
  place = functools.partial(gin_places.place, [leaf], ['f.c = 6'], find)
  assert place('A', 'gin.macro', 'value') == f'It is set in {inner}, line 2.'
  assert place('', 'w.x.y.f', 'a') == f'It is set in {leaf}, line 6.'
  assert place('', 'w.x.y.f', 'b') == f'It is set in {leaf}, line 7.'
  assert place('s', 'w.x.y.f', 'b') == f'It is set in {leaf}, line 8.'
  assert place('', 'w.x.y.f', 'c') == 'It is set by --gin.f.c.'
  assert place('', 'w.x.y.g', 'a') == place('B', 'gin.macro', 'value') == ''

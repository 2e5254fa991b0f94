# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests under the lowest and the newest versions that `setup.py` allows.

    pipx run nox                              # both, under every Python here
    pipx run nox -s 'tests-3.11(lowest)' -- tests/core

The session `lowest` pins JAX, Flax, Optax and Orbax to the first version of
each range in `setup.py`; `newest` takes whatever pip finds. A Python that is
not on this machine is skipped.
"""

from pathlib import Path
import re

import nox

nox.options.error_on_missing_interpreters = False

_PINNED = ('jax', 'flax', 'optax', 'orbax-checkpoint')


def lowest() -> list[str]:
  """Requirements of the lowest versions, as `setup.py` states them."""
  setup = Path(__file__).with_name('setup.py').read_text(encoding='utf-8')
  found = [re.search(rf"'{name}>=([\d.]+),", setup) for name in _PINNED]
  versions = [match[1] for match in found]
  return [f'{x}=={y}' for x, y in zip(_PINNED, versions, strict=True)]


@nox.session(python=['3.11', '3.12', '3.13', '3.14'])
@nox.parametrize('versions', ['lowest', 'newest'], ids=['lowest', 'newest'])
def tests(session: nox.Session, versions: str) -> None:
  """Runs pytest with the given arguments; by default the quick tests."""
  pinned = lowest() if versions == 'lowest' else []
  session.install('-e', '.[test]', *pinned)
  session.run('pip', 'freeze', '--exclude-editable', silent=True)
  session.run('pytest', *session.posargs)

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of the sites at which a model has adapters."""

import re
from typing import Any


def order(site: str) -> list[Any]:
  """A sort key that puts `layers_2` before `layers_10`."""
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', site)]


def split(site: str) -> tuple[str, int, str]:
  """(`encoder`, 0, `mlp/wo`) of `encoder/layers_0/mlp/wo`.

  The layer is 0 for what is in none, as `decoder/logits_dense`.
  """
  stack, _, rest = site.partition('/')
  found = re.fullmatch(r'layers_(\d+)/(.+)', rest)
  return (stack, int(found[1]), found[2]) if found else (stack, 0, rest)


def describe(site: str, num_experts: int) -> dict[str, Any]:
  """A site as the files of a run name it.

  Args:
    site: Its path, as `encoder/layers_0/mlp/wo`.
    num_experts: How many experts it has.
  """
  stack, layer, name = split(site)
  return {
      'path': site, 'stack': stack, 'layer': layer, 'name': name,
      'num_experts': num_experts,
  }

# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""TPU slices by their names, and what their chips can do.

Names and shapes are those of Cloud TPU, as in MaxText's
`accelerator_to_spec_map.py`: `v4-64` and `v5p-64` count cores, two a chip;
`v5e-256` and `v6e-256` count chips. `host-8` is eight devices of this machine's
CPU, for which XLA compiles without libtpu.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from moe_peft import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip; figures are those of Cloud TPU's public system pages.

  Attributes:
    name: What libtpu calls it.
    device_kind: What JAX calls its devices.
    hbm_bytes: Memory that a program may use: what libtpu's compiler says when
      it refuses a program. Somewhat less than what is sold.
    peak_flops: bfloat16 operations a second.
    hbm_bandwidth: Bytes a second.
    ici_bandwidth: Bytes a second that a chip sends over all of its links to
      other chips.
    cores_counted: Cores of a chip that names of slices count.
  """

  name: str
  device_kind: str
  hbm_bytes: float
  peak_flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  cores_counted: int = 1


CHIPS = {
    'v4': Chip('v4', 'TPU v4', 30.75 * 2**30, 275e12, 1228e9, 300e9, 2),
    'v5e': Chip('v5e', 'TPU v5 lite', 15.75 * 2**30, 197e12, 819e9, 200e9),
    'v5p': Chip('v5', 'TPU v5', 95.74 * 2**30, 459e12, 2765e9, 600e9, 2),
    'v6e': Chip('v6e', 'TPU v6 lite', 31.25 * 2**30, 918e12, 1640e9, 448e9),
}

_ENVIRONMENT = {
    # Without these, libtpu asks the metadata server of a cloud, and warns.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    # Two processes may compile at the same time.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

# Shapes of slices, in chips.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
    '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8',
    '8x8x16', '8x16x16',
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    name: For example 'v5e-256'.
    chip: Its chips; None for devices of this machine's CPU.
    shape: How they are laid out, '16x16'.
  """

  name: str
  chip: Chip | None
  shape: str

  @property
  def num_chips(self) -> int:
    return math.prod(self._sides())

  def _sides(self) -> list[int]:
    return [int(side) for side in self.shape.split('x')]

  def devices(self) -> list[Any]:
    """The devices of the slice, to compile for; no TPU has to be there.

    Raises:
      errors.UserError: If libtpu is not installed, or if JAX has made fewer
        devices of the CPU before.
    """
    if self.chip is None:
      return _cpu_devices(self.num_chips)
    if importlib.util.find_spec('libtpu') is None:
      raise errors.UserError(
          'The compiler of TPUs is not installed (700 MB).', 'libtpu',
          "Run pip install -e '.[tpu]'.",
      )
    for variable, value in _ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
    sides = self._sides()
    if len(sides) == 3:
      # One device a chip; a torus where all sides are long enough to wrap.
      options = {
          'chip_config_name': 'megacore',
          'chips_per_host_bounds': (2, 2, 1),
          'wrap': (min(sides) >= 4,) * 3,
      }
    else:
      options = {
          'chips_per_host_bounds': (min(2, *sides),) * 2 + (1,),
          'wrap': tuple(side >= 16 for side in sides) + (False,),
      }
    return topologies.get_topology_desc(
        platform='tpu',
        topology_name=f'{self.chip.name}:{self.shape}',
        **options,
    ).devices


def _cpu_devices(number: int) -> list[Any]:
  """So many devices of the CPU."""
  if 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    try:
      jax.config.update('jax_num_cpu_devices', number)
    except RuntimeError:
      pass  # JAX has made its devices, perhaps enough of them.
  devices = jax.devices('cpu')
  if len(devices) < number:
    raise errors.UserError(
        f'JAX has made {len(devices)} devices of the CPU already.',
        f'--topology=host-{number}',
        'Give the largest first.',
    )
  return devices[:number]


def _all() -> dict[str, Topology]:
  known = {}
  for family, chip in CHIPS.items():
    for shape in _CUBES if family in ('v4', 'v5p') else _FLAT:
      chips = math.prod(int(side) for side in shape.split('x'))
      name = f'{family}-{chips * chip.cores_counted}'
      known[name] = Topology(name, chip, shape)
  return known


TOPOLOGIES = _all()


def find(name: str) -> Topology:
  """The slice of that name.

  Raises:
    errors.UserError: If there is none.
  """
  if name in TOPOLOGIES:
    return TOPOLOGIES[name]
  if host := re.fullmatch(r'host-([1-9]\d*)', name):
    return Topology(name, None, host[1])
  near = difflib.get_close_matches(name, TOPOLOGIES, n=3, cutoff=0.3)
  raise errors.UserError(
      f'{name} is none of the slices that are known.', '--topology',
      f'Choose for example {", ".join(near or TOPOLOGIES)}.',
  )

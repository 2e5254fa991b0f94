# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions (arXiv 2104.09864), and how they reach longer rows.

Frequencies are made with NumPy while a model is traced, so those of different
layers are rows of one array. `w` stands for the frequencies without scaling,
`w_i = theta ** (-2 i / size)`, `s` for the factor.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How the frequencies of a model differ from `w`.

  Attributes:
    kind: 'linear' (arXiv 2306.15595): w / s. 'dynamic': a larger theta for rows
      longer than `original_length`. 'llama3' (arXiv 2407.21783): w / s for
      waves longer than `original_length / low_freq_factor`, w for those shorter
      than `original_length / high_freq_factor`, between them a mean. 'yarn'
      (arXiv 2309.00071): the same by the turns that a wave makes within
      `original_length`. 'longrope' (arXiv 2402.13753): each w divided by a
      factor of its own.
    factor: s.
    original_length: Tokens of the rows that the model was trained with before
      it was scaled.
    low_freq_factor: Of 'llama3'.
    high_freq_factor: Of 'llama3'.
    beta_fast: Of 'yarn': waves that turn more often stay as they are.
    beta_slow: Of 'yarn': waves that turn less often are divided by s.
    truncate: Of 'yarn': whether both bounds are rounded away from each other.
    attention_factor: Of 'yarn' and 'longrope': multiplies cosine and sine, at
      every length. None: as published, a function of the factor.
    short_factors: Of 'longrope', for rows of up to `original_length` tokens.
    long_factors: Of 'longrope', for longer rows.
    length: Of 'dynamic' and 'longrope', whose frequencies depend on it: the
      tokens of the longest row of the job, prompt and answer together; 0: no
      more than `original_length`.
  """

  kind: str
  factor: float = 1.0
  original_length: int = 8192
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()
  length: int = 0

  @property
  def amplitude(self) -> float:
    """The factor of cosine and sine."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.factor <= 1.0:
      return 1.0
    if self.kind == 'yarn':
      return 0.1 * math.log(self.factor) + 1.0
    if self.kind == 'longrope':
      return math.sqrt(
          1 + math.log(self.factor) / math.log(self.original_length)
      )
    return 1.0

  def check_length(self, length: int) -> None:
    """Raises errors.UserError for a row that the frequencies are not for."""
    longest = max(self.length, self.original_length)
    if self.kind in ('dynamic', 'longrope') and length > longest:
      raise errors.UserError(
          f'Rows have {length} tokens, and rotary positions of the kind '
          f'{self.kind!r} are set up for at most {longest}.',
          where='rotary.Scaling.length',
          remedy='Bind it to the tokens of the longest row, prompt and answer '
          'together.',
      )


def frequencies(
    theta: float, size: int, scaling: Scaling | None = None
) -> np.ndarray:
  """Radians by which each pair of features turns from token to token.

  Args:
    theta: Base of the wave lengths.
    size: Features that are rotated, two a pair.
    scaling: None: w.

  Returns:
    `<float32>[size / 2]`.
  """
  if scaling is None:
    return _plain(theta, size).astype(np.float32)
  return KINDS[scaling.kind](scaling, theta, size).astype(np.float32)


def _plain(theta: float, size: int) -> np.ndarray:
  return theta ** (-2.0 * np.arange(size // 2) / size)


def _linear(scaling: Scaling, theta: float, size: int) -> np.ndarray:
  return _plain(theta, size) / scaling.factor


def _dynamic(scaling: Scaling, theta: float, size: int) -> np.ndarray:
  length = max(scaling.length, scaling.original_length)
  growth = scaling.factor * length / scaling.original_length
  growth -= scaling.factor - 1
  return _plain(theta * growth ** (size / (size - 2)), size)


def _llama3(scaling: Scaling, theta: float, size: int) -> np.ndarray:
  plain = _plain(theta, size)
  turns = scaling.original_length * plain / (2 * np.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  return _between(plain, scaling.factor, (turns - low) / (high - low))


def _yarn(scaling: Scaling, theta: float, size: int) -> np.ndarray:
  def index(turns):  # Of the wave that turns so often in the original length.
    wave = scaling.original_length / (turns * 2 * math.pi)
    return size * math.log(wave) / (2 * math.log(theta))

  first, last = index(scaling.beta_fast), index(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  ramp = (np.arange(size // 2) - first) / (last - first or 0.001)
  return _between(_plain(theta, size), scaling.factor, 1 - ramp)


def _between(plain: np.ndarray, factor: float, share: np.ndarray) -> np.ndarray:
  """`plain` where the share is 1, `plain / factor` where it is 0."""
  share = np.clip(share, 0, 1)
  return share * plain + (1 - share) * plain / factor


def _longrope(scaling: Scaling, theta: float, size: int) -> np.ndarray:
  long = scaling.length > scaling.original_length
  factors = scaling.long_factors if long else scaling.short_factors
  return _plain(theta, size) / np.asarray(factors)


KINDS: Mapping[str, Callable[[Scaling, float, int], np.ndarray]] = {
    'linear': _linear,
    'dynamic': _dynamic,
    'llama3': _llama3,
    'yarn': _yarn,
    'longrope': _longrope,
}


def check_scaling(scaling: Scaling, size: int) -> None:
  """Raises errors.UserError that names the first wrong field of `scaling`."""
  if scaling.kind not in KINDS:
    raise errors.UserError(
        f'It must be one of {", ".join(KINDS)}, not {scaling.kind!r}.',
        'rotary.Scaling.kind',
    )
  for name in ('factor', 'original_length'):
    if getattr(scaling, name) <= 0:
      raise errors.UserError(
          f'It must be above 0, not {getattr(scaling, name)}.',
          f'rotary.Scaling.{name}',
      )
  for name in ('short_factors', 'long_factors'):
    count = len(getattr(scaling, name))
    if scaling.kind == 'longrope' and count != size // 2:
      raise errors.UserError(
          f'There must be {size // 2}, one a pair of rotated features, not '
          f'{count}.', f'rotary.Scaling.{name}',
      )


def rotate(
    inputs: jax.Array,
    positions: jax.Array,
    frequencies: jax.Array,
    amplitude: jax.Array | float = 1.0,
) -> jax.Array:
  """Rotates pairs of features by angles that grow with the position.

  Of the features that are rotated, i is paired with i + half of them, as in
  transformers; the paper, and GGUF files, pair 2i with 2i + 1. The two differ
  by a permutation of the rows of the query and key kernels.

  Args:
    inputs: `[batch, length, heads, head_dim]`, queries or keys.
    positions: `<int32>[batch or 1, length]`.
    frequencies: `<float32>[pairs]`, radians from token to token; 0: the pair
      does not turn. Features beyond twice the pairs pass through.
    amplitude: Multiplies cosine and sine.

  Returns:
    The same shape and type; the arithmetic is float32.
  """
  pairs = frequencies.shape[-1]
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude
  first, second, rest = jnp.split(
      inputs.astype(jnp.float32), (pairs, 2 * pairs), axis=-1
  )
  rotated = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
  )
  return rotated.astype(inputs.dtype)

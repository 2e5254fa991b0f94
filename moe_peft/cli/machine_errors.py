# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What to say where a device has no memory left, or a disk refuses.

Any command may end so, and what helps is the same for all of them.
"""

import errno
import sys

from moe_peft import errors

# How XLA begins to say that memory is not enough.
_NO_MEMORY = 'RESOURCE_EXHAUSTED'
# Errors of a disk that takes no more, and of files that cannot be opened.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_CLOSED = {
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE,
}


def explain(error: BaseException) -> errors.UserError | None:
  """The user's error for a device or disk that fails; None for others."""
  return _of_device(error) or _of_disk(error)


def _of_device(error: BaseException) -> errors.UserError | None:
  """The error for a device whose memory is not enough."""
  jax = sys.modules.get('jax')  # It is not imported for this.
  if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
    return None
  _, known, said = str(error).partition(f'{_NO_MEMORY}: ')
  if not known:
    return None
  first = said.partition('\n')[0]
  return errors.UserError(
      f'A device has not enough memory: {first[:200]}',
      remedy='For training set NUM_MICROBATCHES, a smaller BATCH_SIZE or '
      "REMAT_POLICY = 'auto'; for scores and answers a smaller "
      "EVAL_BATCH_SIZE; for both BASE_DTYPE = 'bfloat16', 'int8' or 'nf4', or "
      'more devices with NUM_MODEL_PARTITIONS.',
  )


def _of_disk(error: BaseException) -> errors.UserError | None:
  """A file, or the output, that the system does not open or write."""
  if not isinstance(error, OSError) or error.errno not in _FULL | _CLOSED:
    return None
  full = error.errno in _FULL
  return errors.UserError(
      f'{error.strerror}.',
      error.filename or ('output' if full else 'a file'),
      'Make room, or write elsewhere.' if full else '',
  )

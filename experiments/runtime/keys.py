# SPDX-License-Identifier: Apache-2.0
"""Where every random number of a run derives from: (seed, stage, step)."""

import zlib

import jax
import numpy as np


def stage_key(seed: int, stage: str) -> jax.Array:
  """Key of a stage, by its name: stages never share random numbers."""
  return jax.random.fold_in(
    jax.random.key(seed), np.uint32(zlib.crc32(stage.encode()))
  )


def example_keys(
  seed: int, stage: str, num: int, *, first: int = 0
) -> jax.Array:
  """Keys of examples first ... first + num - 1 of a stage without steps."""
  key = stage_key(seed, stage)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(
    np.arange(first, first + num)
  )

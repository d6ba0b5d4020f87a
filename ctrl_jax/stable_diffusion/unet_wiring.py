# SPDX-License-Identifier: Apache-2.0
"""How the levels of a U-Net hang together.

    x ──── down_blocks.0 ───── skips ───── up_blocks.n ──── output
             down_blocks.1 ─── skips ─── up_blocks.n-1
                 ...                       ...
               down_blocks.n ─ skips ─ up_blocks.0
                        └─ mid_block ─┘

Every level on the way down leaves its states behind, x the first of them, and
every level on the way up takes as many, the last first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ctrl_jax.stable_diffusion.unet_levels import Down, Middle, Up

# (level counted from the top, layers of its transformers or 0) -> the makers of
# its blocks.
Parts = Callable[[int, int], dict[str, Any]]


class Depths(NamedTuple):
  """Layers of the transformers of each level; 0 where it has none."""

  downs: Sequence[int]  # on the way down, from the top
  middle: int
  ups: Sequence[int]  # on the way up, from the lowest


def through(
  x: jax.Array,
  *conditions: jax.Array,
  parts: Parts,
  depths: Depths,
  layers: int,
  padding: tuple[int, int] = (1, 1),
  dtype: Any,
) -> jax.Array:
  """All levels, as modules of the one whose compact method calls this.

  Args:
    x: [b, h, w, c].
    *conditions: embedding and, if the network has one, context.
    parts: makes the parts of a level.
    depths: which levels attend, and in how many layers.
    layers: residual blocks of a level on the way down; one more on the way up.
    padding: of the halvings; see `blocks.Downsample`.
    dtype: of the computation.

  Returns:
    [b, h, w, _], of the size of x.
  """
  skips = [x]
  for i, depth in enumerate(depths.downs):
    level = Down(
      **parts(i, depth),
      layers=layers,
      downsample=i < len(depths.downs) - 1,
      dtype=dtype,
      padding=padding,
      name=f"down_blocks.{i}",
    )
    x, new = level(x, *conditions)
    skips += new
  x = Middle(**parts(-1, depths.middle), name="mid_block")(x, *conditions)
  number = 1 + layers
  for i, depth in enumerate(depths.ups):
    here, skips = skips[: -number - 1 : -1], skips[:-number]
    # What the next level up goes on from has the size to return to.
    size = skips[-1].shape[1:3] if skips else ()
    up = Up(**parts(-1 - i, depth), dtype=dtype, name=f"up_blocks.{i}")
    x = up(x, here, size, *conditions)
  return x

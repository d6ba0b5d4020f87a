# SPDX-License-Identifier: Apache-2.0
r"""Whether a model samples anew, or draws its training examples again.

A certificate holds a tuned sampler against the pre-trained law p_pre. Where
that was learned from few examples it may be those examples, and no gap tells.
A sample x is a copy if the training example that is nearest to it, x_(1), is
much nearer than the next one, x_(2) (Yoon et al., ICML workshop on structured
probabilistic inference, 2023; Gu et al., arXiv 2310.02664, with the same 1/3):

    ||x - x_(1)||  <  ||x - x_(2)|| / 3.                                  (1)

It has no scale, and needs no example that the model has not seen. A sample that
is smooth, and therefore near to many examples, is no copy.

Some samples of a model that copies nothing are copies by (1). In examples of
one density around x the volume nearer than x_(1) is uniformly distributed in
that nearer than x_(2), as of any Poisson process, so their share is

    P((1))  =  3^-d                                                       (2)

in d dimensions, or as many as the data have: 0.11 in a plane, and none in
pictures. An example among the others is as often as near, so the share of these
is what to hold that of samples against.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ctrl_jax.metrics import squared_distances

RATIO = 3.0  # of the two distances of (1)
BLOCK = 4096  # examples at a time
CANDIDATES = 32  # of these, whose distances are computed exactly


def is_copy(
  x: Float[ArrayLike, "n d"],
  examples: Float[ArrayLike, "m d"],
  *,
  among: bool = False,
) -> Bool[np.ndarray, "n"]:
  """Which rows of x are copies of one of the examples, by (1).

  Args:
    x: samples of a model; one that is not finite is no copy.
    examples: that the model was trained on, no two of them equal: two that are
      hide what copies them. Few of them are on the device at a time.
    among: x are some of the examples, and each is compared with the others.

  Raises:
    ValueError: there are not two examples to compare with.
  """
  x, examples = np.asarray(x), np.asarray(examples)
  if len(examples) < 2 + among:
    raise ValueError(
      f"{len(examples)} examples: needed are two to compare a sample with"
    )
  starts = range(0, len(examples), BLOCK)
  parts = [_nearest(x, examples[i : i + BLOCK]) for i in starts]
  # An example is the nearest to itself.
  nearest = np.sort(np.concatenate(parts, axis=1), axis=1)[:, among:]
  copied: np.ndarray = RATIO**2 * nearest[:, 0] < nearest[:, 1]
  return copied


@jax.jit
def _nearest(
  x: Float[Array, "n d"], examples: Float[Array, "m d"]
) -> Float[Array, "n k"]:
  """Squared distances to the three nearest examples, or to all of fewer."""
  squares = squared_distances(x, examples)
  # As differences: what is nearest is lost in a difference of squares.
  _, rows = jax.lax.top_k(-squares, min(CANDIDATES, len(examples)))
  exact = jnp.sum((x[:, None] - examples[rows]) ** 2, axis=-1)
  return jnp.sort(exact, axis=1)[:, :3]

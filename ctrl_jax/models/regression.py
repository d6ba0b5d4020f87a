# SPDX-License-Identifier: Apache-2.0
r"""p(y | x) for a real y: a network of two outputs, and whether it is true.

Of y in units of its deviation, a network gives a mean mu and a raw number r:

    log p(y | x) = log N(y; mu(x), s^2 sigma(x)^2)            nats,        (1)
    sigma(x) = LEAST + softplus(r(x)).

The likelihood alone would have the mean follow best what is easy, because all
else is called noise before it is learned (arXiv 2203.09168). So the mean is
fitted by least squares, and the deviation by the likelihood given that mean,

    loss = (y - mu)^2 / 2 + (y - [mu])^2 / (2 sigma^2) + log sigma,        (2)

where no gradient passes through [mu]. What a network has seen it misses by less
than anything else, so one scale is fitted on examples held out, by maximum
likelihood, as a temperature is for labels:

    s^2 = mean (y - mu)^2 / sigma^2.                                       (3)

Whether it is right then is told by coverage: of further examples, a share q is
to lie in the central interval that has the probability q by (1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

LEAST = 1e-3  # of sigma: no measurement is taken for more exact
Vector = Float[Array, "n"] | Float[np.ndarray, "n"]
Pairs = Float[Array, "n 2"] | Float[np.ndarray, "n 2"]


def moments(output: Pairs) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
  """mu and sigma of (1), of a network's output."""
  both = jnp.asarray(output)
  return both[:, 0], LEAST + jax.nn.softplus(both[:, 1])


def loss(output: Pairs, y: Vector) -> Float[Array, ""]:
  """Mean of (2), y in units of its deviation."""
  mean, deviation = moments(output)
  miss = (y - jax.lax.stop_gradient(mean)) / deviation
  return jnp.mean(0.5 * (y - mean) ** 2 + 0.5 * miss**2 + jnp.log(deviation))


def log_density(
  mean: Vector, deviation: Vector, y: Vector
) -> Float[Array, "n"]:
  """log N(y; mean, deviation^2), nats."""
  mean, deviation, y = map(jnp.asarray, (mean, deviation, y))
  constant = 0.5 * jnp.log(2 * jnp.pi)
  return -0.5 * ((y - mean) / deviation) ** 2 - jnp.log(deviation) - constant


def fit_scale(mean: Vector, deviation: Vector, y: Vector) -> float:
  """s of (3), the likeliest; at least LEAST, should all be met exactly."""
  misses = (np.asarray(y, np.float64) - mean) / deviation
  return max(float(np.sqrt(np.mean(misses**2))), LEAST)


def coverage(
  mean: Vector, deviation: Vector, y: Vector, *, level: float
) -> float:
  """Share of y in the central interval of this probability.

  Args:
    mean: of each example.
    deviation: of each, s included.
    y: of each.
    level: in (0, 1).
  """
  reach = scipy.special.ndtri(0.5 + level / 2)
  return float(np.mean(np.abs(np.asarray(y) - mean) <= reach * deviation))

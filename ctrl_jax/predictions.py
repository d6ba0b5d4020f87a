# SPDX-License-Identifier: Apache-2.0
r"""Networks that predict something else, as networks that predict noise.

As x_t = alpha x_0 + std eps, any two of x_t, x_0, eps determine the third, and
so does x_t with a combination of the others. Networks are trained to predict

    eps                               noise,
    x_0                               data,
    v = alpha eps - std x_0           arXiv 2202.00512,                   (1)
    u = eps - x_0                     the velocity of a flow whose
                                      alpha = 1 - t, std = t (`flow`).    (2)

Each function here makes eps of such a prediction at (x_t, t). To tune such a
network, put the function into the network of `Pretrained`:

    def network(params, x, t, c, control):
      return Output(eps_from_v(sde, model(params, x, t, c), x, t))
"""

from typing import Any

import jax

from ctrl_jax.sde import SDE, Time


def eps_from_v(sde: SDE, v: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
  """eps of v, equation (1); for alpha^2 + std^2 = 1 it is alpha v + std x."""
  alpha, std = sde.alpha(t), sde.std(t)
  return (alpha * v + std * x) / (alpha**2 + std**2)


def eps_from_x0(
  sde: SDE, x0: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
  """eps = (x - alpha x_0) / std, of a prediction of the data."""
  return (x - sde.alpha(t) * x0) / sde.std(t)


def eps_from_velocity(
  sde: SDE, u: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
  """eps of u = eps - x_0, equation (2): x + (1 - t) u of a flow."""
  alpha, std = sde.alpha(t), sde.std(t)
  return (x + alpha * u) / (alpha + std)


def velocity_weight(sde: SDE, t: Time) -> Any:
  """||u' - u||^2 of two velocities for each ||eps' - eps||^2 of their noises.

  eps of u has the slope alpha / (alpha + std). So flow matching, whose loss is
  the first, is denoising with the weight 1 / (1 - t)^2 of a flow.
  """
  return (1 + sde.std(t) / sde.alpha(t)) ** 2

# SPDX-License-Identifier: Apache-2.0
"""Problems whose every answer is known: Gaussians and Gaussian mixtures.

The pre-trained model and the classifier are exact, so what is left between the
tuned sampler and its target is control alone. Everything is drawn from
config.problem.seed and scaled so that x has variance 1; a mixture has mean 0.
"""

import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import linear_quadratic, rewards
from ctrl_jax.linear_quadratic import Law
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE
from ctrl_jax.types import Params
from experiments.problems import requests
from experiments.problems.factors import Factor, every_y
from experiments.problems.problem import (
  Problem,
  Truth,
  make_kernel,
  make_sde,
)


def pretrained(
  prior: GaussianMixture, sde: SDE, *, num_conditions: int
) -> Pretrained:
  """The exact model of a mixture as a network, without parameters."""

  def network(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array | None,
    control: jax.Array | None = None,
  ) -> Output:
    return Output(prior.eps(x, t, c, sde))

  names = tuple(str(c) for c in range(num_conditions))
  return Pretrained(
    network=network,
    params={},
    sde=sde,
    sample_shape=prior.means.shape[1:],
    conditions=names if num_conditions > 1 else (),
  )


def gaussian(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """x ~ N(mean, covariance); y = direction.x + noise, a real number."""
  drawn, dims = config.problem, config.problem.dims
  rng = np.random.default_rng(drawn.seed)
  factor = rng.normal(size=(dims, 2 * dims))
  covariance = factor @ factor.T
  covariance *= dims / np.trace(covariance)
  mean = 0.3 * rng.normal(size=dims)
  direction = rng.normal(size=dims)
  direction /= np.linalg.norm(direction)
  noise = drawn.likelihood_std
  prior = GaussianMixture(np.ones((1, 1)), mean[None], covariance[None])
  centre = float(direction @ mean)
  low, high = centre - drawn.control_range, centre + drawn.control_range
  controls = np.linspace(low, high, drawn.num_controls)
  wide = np.linspace(low, high, 1024)

  sde = make_sde(config.sde)
  kernel = make_kernel(config.kernel, sde)
  steps = linear_quadratic.chain(kernel, sde, prior)
  likelihood = {
    "direction": direction,
    "noise": noise,
    "gamma": config.reward.gamma,
  }
  law = linear_quadratic.end_law(steps)
  along = jnp.asarray(direction, jnp.float32)

  def reward_fn(x, c, y):
    error = (y - x @ along) / noise
    return -0.5 * error**2 - 0.5 * math.log(2 * math.pi * noise**2)

  measures = "direction . x, of which y is a noisy measurement"
  target = Law(mean, covariance)
  return Problem(
    pretrained=pretrained(prior, sde, num_conditions=1),
    kernel=kernel,
    factors=(Factor(name=measures, num_labels=0, reward_fn=reward_fn),),
    num_conditions=1,
    controls=controls.astype(np.float32),
    control_names=tuple(f"y = {value:.2f}" for value in controls),
    # Controls all over their range, with their exact log Z.
    law=requests.fixed(wide, linear_quadratic.tilt(law, wide, **likelihood)[1]),
    property_name=measures,
    measure=lambda x: x @ along,
    truth=Truth(
      prior,
      linear_quadratic.solve(steps, controls, **likelihood),
      linear_quadratic.tilt(target, controls, **likelihood)[0],
    ),
  )


def _rotations(rng: np.random.Generator, num: int, dims: int) -> np.ndarray:
  """Random orthogonal matrices [num, dims, dims]."""
  return np.linalg.qr(rng.normal(size=(num, dims, dims)))[0]


def draw_mixture(config: ConfigDict) -> GaussianMixture:
  """The prior of config.problem: mean 0 and variance 1, averaged over c.

  Modes are Gaussians of any orientation, whose standard deviations along their
  axes are 0.15 to 0.35 of the means' own.
  """
  rng = np.random.default_rng(config.seed)
  modes, dims = config.num_modes, config.dims
  means = rng.normal(size=(modes, dims))
  widths = rng.uniform(0.15, 0.35, size=(modes, dims))
  turn = _rotations(rng, modes, dims)
  covariances = (turn * widths[:, None] ** 2) @ turn.transpose(0, 2, 1)
  weights = rng.dirichlet(np.full(modes, 4.0), size=config.num_conditions)
  pooled = weights.mean(0)
  means = means - pooled @ means
  second = np.trace(covariances, axis1=1, axis2=2) + (means**2).sum(1)
  variance = pooled @ second / dims
  return GaussianMixture(
    weights, means / np.sqrt(variance), covariances / variance
  )


def draw_logits(
  rng: np.random.Generator, prior: GaussianMixture, *, num: int, slope: float
) -> Callable[[jax.Array], jax.Array]:
  """A linear softmax classifier, x [B, d] -> logits [B, num].

  Each class has a random direction of slope about `slope` nats per unit of x,
  and takes over near a random mode, so that all classes occur.
  """
  dims = prior.means.shape[1]
  directions = slope * rng.normal(size=(num, dims)) / np.sqrt(dims)
  anchors = prior.means[rng.integers(len(prior.means), size=num)]
  offsets = -(directions * anchors).sum(1)
  table = jnp.asarray(directions.T, jnp.float32)
  shift = jnp.asarray(offsets, jnp.float32)
  return lambda x: x @ table + shift[None]


def mixture(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """A Gaussian mixture; y is one label, or two independent ones."""
  drawn = config.problem
  prior = draw_mixture(drawn)
  rng = np.random.default_rng([drawn.seed, 1])
  sizes = [drawn.num_controls]
  if drawn.second_factor:
    sizes.append(drawn.second_factor)
  logits = [
    draw_logits(rng, prior, num=size, slope=drawn.sharpness) for size in sizes
  ]
  sde = make_sde(config.sde)
  return Problem(
    pretrained=pretrained(prior, sde, num_conditions=drawn.num_conditions),
    kernel=make_kernel(config.kernel, sde),
    factors=tuple(
      Factor(name="", num_labels=size, reward_fn=rewards.classifier(f))
      for f, size in zip(logits, sizes, strict=True)
    ),
    num_conditions=drawn.num_conditions,
    **every_y(sizes),
    truth=Truth(prior),
  )

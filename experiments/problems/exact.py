# SPDX-License-Identifier: Apache-2.0
"""Problems whose every answer is known: Gaussians and Gaussian mixtures.

The pre-trained model and the classifier are exact, so what is left between the
tuned sampler and its target is control alone. Everything is drawn from
config.problem.seed and scaled so that x has variance 1; a mixture has mean 0.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import linear_quadratic, rewards
from ctrl_jax.linear_quadratic import Law, Solution
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.types import EpsFn, RewardFn
from experiments.problems.problem import Problem, make_kernel, make_sde


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(Problem):
  """A problem that needs no training but that of the control."""

  prior: GaussianMixture
  reward_fn: RewardFn
  probabilities: Callable[[jax.Array], jax.Array] | None  # p(y | x) [N, Y]

  def reference_fn(self, c: jax.Array | None) -> EpsFn:
    """Noise prediction of the pre-trained model."""
    return lambda x, t: self.prior.eps(x, t, c, self.sde)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Exact):
  """A Gaussian prior and a real control; see `ctrl_jax.linear_quadratic`."""

  solution: Solution  # of the evaluated controls, at the kernel's K
  limit: Law  # the target of infinitely many steps
  training_controls: np.ndarray  # [N]
  training_log_evidence: np.ndarray  # [N]

  def requests(self, log_evidence: np.ndarray) -> dict[str, np.ndarray]:
    """Controls all over their range, with their exact log Z."""
    return {
      "c": np.zeros(len(self.training_controls), np.int32),
      "y": self.training_controls.astype(np.float32),
      "log_evidence": self.training_log_evidence.astype(np.float32),
    }


def gaussian(config: ConfigDict, workdir: pathlib.Path) -> Gaussian:
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

  return Gaussian(
    sde=sde,
    kernel=kernel,
    sample_shape=(dims,),
    num_conditions=1,
    controls=controls.astype(np.float32),
    control_names=tuple(f"y = {value:.2f}" for value in controls),
    property_name="direction . x, of which y is a noisy measurement",
    measure=lambda x: x @ along,
    bound=None,
    edges=np.zeros(0),
    prior=prior,
    reward_fn=reward_fn,
    probabilities=None,
    solution=linear_quadratic.solve(steps, controls, **likelihood),
    limit=linear_quadratic.tilt(Law(mean, covariance), controls, **likelihood)[
      0
    ],
    training_controls=wide,
    training_log_evidence=linear_quadratic.tilt(law, wide, **likelihood)[1],
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


def mixture(config: ConfigDict, workdir: pathlib.Path) -> Exact:
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
  reward_fn = rewards.factors([rewards.classifier(f) for f in logits], sizes)
  labels = np.arange(math.prod(sizes), dtype=np.int32)
  parts = np.stack(np.unravel_index(labels, sizes), axis=1)

  def probabilities(x):
    columns = [reward_fn(x, None, jnp.full(len(x), y)) for y in labels]
    return jnp.exp(jnp.stack(columns, axis=1))

  sde = make_sde(config.sde)
  return Exact(
    sde=sde,
    kernel=make_kernel(config.kernel, sde),
    sample_shape=(drawn.dims,),
    num_conditions=drawn.num_conditions,
    controls=labels,
    control_names=tuple(f"y = {', '.join(map(str, row))}" for row in parts),
    property_name="",
    measure=None,
    bound=None,
    edges=np.zeros(0),
    prior=prior,
    reward_fn=reward_fn,
    probabilities=probabilities,
  )

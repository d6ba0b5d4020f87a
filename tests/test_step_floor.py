# SPDX-License-Identifier: Apache-2.0
"""The floor of the gap: what theory says of it without computing it."""

import numpy as np
import pytest

from ctrl_jax import kernels, linear_quadratic
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VP
from experiments.studies import step_floor


@pytest.fixture
def quadratic(monkeypatch):
  """log p quadratic in u: every optimal step is Gaussian."""

  def use(curvature):
    monkeypatch.setattr(
      step_floor,
      "log_likelihood",
      lambda y: -0.5 * curvature * (step_floor.GRID - 0.5) ** 2,
    )

  return use


def kernel(steps):
  return kernels.ddim(VP(), kernels.time_grid(steps, power=1.75))


def test_linear_reward_costs_nothing(monkeypatch):
  """The optimal step is then a shifted one, which the policy can take."""
  monkeypatch.setattr(
    step_floor, "log_likelihood", lambda y: 0.3 * step_floor.GRID
  )
  log_z, gap = step_floor.floor(kernel(25), VP(), 0)
  # The chain is linear, u' = (a + b std / (alpha^2 S^2 + std^2)) u + s z, hence
  # u_K ~ N(0, v) and log E exp(0.3 u_K) = 0.3^2 v / 2.
  v = 1.0
  for t, a, b, s in zip(*kernel(25).columns, strict=True):
    alpha, std = VP().alpha(t), VP().std(t)
    slope = std / ((alpha * step_floor.SPREAD) ** 2 + std**2)
    v = (a + b * slope) ** 2 * v + s**2
  assert np.isclose(log_z, 0.045 * v, rtol=0.01)
  assert abs(gap) < 3e-4


@pytest.mark.parametrize(("curvature", "steps"), [(1.0, 25), (25.0, 50)])
def test_floor_of_a_quadratic_reward_is_that_of_the_closed_form(
  quadratic, curvature, steps
):
  quadratic(curvature)
  _, gap = step_floor.floor(kernel(steps), VP(), 0)
  variance = np.array([[[step_floor.SPREAD**2]]])
  prior = GaussianMixture(np.ones((1, 1)), np.zeros((1, 1)), variance)
  exact = linear_quadratic.solve(
    linear_quadratic.chain(kernel(steps), VP(), prior),
    np.array([0.5]),
    direction=np.ones(1),
    noise=curvature**-0.5,
    gamma=1.0,
  )
  # Where noise may be as narrow as it should be, nothing is left.
  _, squeezed = step_floor.floor(kernel(steps), VP(), 0, step_floor.RATIOS)
  assert squeezed < 0.1 * gap
  assert gap == pytest.approx(
    (exact.log_evidence - exact.objective)[0],
    abs=5e-4,
    rel=0.02,  # what the grid of u costs
  )

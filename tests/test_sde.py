# SPDX-License-Identifier: Apache-2.0
"""Forward processes against their own definition, by automatic derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.sde import SDE, VE, VP, Tabulated, reverse_drift

# Stable Diffusion's "scaled linear" betas.
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
TABLE = Tabulated(alpha_bar=tuple(np.cumprod(1 - BETAS).tolist()))
PROCESSES = [
  pytest.param(VP(), id="vp"),
  pytest.param(VP(beta_min=0.5, beta_max=3.0), id="slow-vp"),
  pytest.param(VE(), id="ve"),
  pytest.param(TABLE, id="tabulated"),
]
# Between the table's knots, where it has derivatives.
MIDPOINTS = (np.arange(0, 1000, 37) + 0.5) / 1000


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("sde", PROCESSES)
def test_drift_and_diffusion_are_those_of_the_marginals(sde, float64):
  t = jnp.asarray(MIDPOINTS)
  derivative = lambda f: jax.vmap(jax.grad(f))(t)
  slope = derivative(lambda t: jnp.log(sde.alpha(t)))
  np.testing.assert_allclose(sde.drift(t), slope, rtol=1e-9, atol=1e-12)
  growth = derivative(lambda t: sde.std(t) ** 2)
  squared = growth - 2 * slope * sde.std(t) ** 2
  np.testing.assert_allclose(sde.diffusion(t) ** 2, squared, rtol=1e-9)


@pytest.mark.parametrize("sde", [VP(), TABLE], ids=["vp", "tabulated"])
def test_variance_is_preserved_down_to_the_last_digit(sde):
  t = np.linspace(0, 1, 501)
  np.testing.assert_allclose(sde.alpha(t) ** 2 + sde.std(t) ** 2, 1, rtol=1e-15)
  assert sde.std(0.0) == 0 and sde.alpha(0.0) == 1


def test_std_keeps_its_digits_near_zero():
  # 1 - exp(-b t) = b t to a relative 1e-13 at b t = 1e-13, where the
  # subtraction itself would be left with three digits.
  np.testing.assert_allclose(
    VP(beta_min=0.1).std(np.float64(1e-12)), 1e-13**0.5, rtol=1e-9
  )


@pytest.mark.parametrize("sde", PROCESSES)
def test_a_simulated_forward_process_reaches_the_marginal(sde):
  n, x0, start, end, steps = 10_000, 1.7, 0.02, 0.32, 300
  rng = np.random.default_rng(0)
  h = (end - start) / steps
  x = sde.alpha(start) * x0 + sde.std(start) * rng.normal(size=n)
  # Coefficients from the middle of each step: the bias is of second order.
  for t in start + h * (np.arange(steps) + 0.5):
    noise = sde.diffusion(t) * np.sqrt(h) * rng.normal(size=n)
    x = x + h * sde.drift(t) * x + noise
  std = sde.std(end)
  assert abs(x.mean() - sde.alpha(end) * x0) < 3.5 * std / n**0.5
  # The variance of n normal draws has relative standard error sqrt(2 / n).
  assert abs(x.var() / std**2 - 1) < 3.5 * (2 / n) ** 0.5


@pytest.mark.parametrize("sde", PROCESSES)
def test_numpy_and_floats_are_computed_in_float64(sde):
  assert isinstance(sde, SDE)
  for f in (sde.alpha, sde.std, sde.drift, sde.diffusion):
    assert f(np.array([0.25, 0.5])).dtype == np.float64
    assert np.asarray(f(0.25)).dtype == np.float64
    traced = jax.jit(f)(jnp.float32(0.25))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, f(0.25), rtol=1e-4)


def test_table_equals_a_cumulative_product():
  knots = np.arange(1, 1001) / 1000
  np.testing.assert_allclose(
    TABLE.alpha(knots) ** 2, np.cumprod(1 - BETAS), rtol=1e-12
  )
  t = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
  np.testing.assert_allclose(
    TABLE.alpha(t) ** 2, np.cumprod(1 - BETAS), rtol=1e-4
  )


def test_table_drift_at_a_knot_is_that_of_the_step_that_ends_there():
  # Step i multiplies alpha_bar by 1 - beta_i within 1/1000 of diffusion time:
  # 2 F / 1000 = log(1 - beta_i), also for a t rounded to float32.
  knots = np.arange(1, 1001) / 1000
  expected = 500 * np.log1p(-BETAS)
  np.testing.assert_allclose(TABLE.drift(knots), expected, rtol=1e-9)
  rounded = jax.jit(TABLE.drift)(jnp.asarray(knots, jnp.float32))
  np.testing.assert_allclose(rounded, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "table",
  [(), (1.0,), (1.2, 0.5), (0.5, 0.6), (0.5, 0.5), (0.5, 0.0), (0.5, np.nan)],
)
def test_tables_that_do_not_decrease_within_0_and_1_are_refused(table):
  with pytest.raises(ValueError, match="alpha_bar must decrease"):
    Tabulated(alpha_bar=table)


@pytest.mark.parametrize("sde", PROCESSES)
def test_reverse_drift_carries_the_marginals_backwards(sde, float64):
  # Run backwards with drift r(x) = r1 x + r0, mean and variance obey
  # m' = E r(x) and v' = 2 r1 v - g^2 in increasing t; they must be the
  # derivatives of the forward marginals of N(m0, v0).
  m0, v0 = 0.8, 0.3
  mean = lambda t: sde.alpha(t) * m0
  variance = lambda t: sde.alpha(t) ** 2 * v0 + sde.std(t) ** 2
  x = jnp.array([0.0, 1.0])
  for t in jnp.asarray(MIDPOINTS[::5]):
    eps = sde.std(t) * (x - mean(t)) / variance(t)
    r0, r_at_1 = reverse_drift(sde, x, t, eps)
    growth = 2 * (r_at_1 - r0) * variance(t) - sde.diffusion(t) ** 2
    np.testing.assert_allclose(
      (r_at_1 - r0) * mean(t) + r0, jax.grad(mean)(t), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
      growth, jax.grad(variance)(t), rtol=1e-9, atol=1e-9
    )

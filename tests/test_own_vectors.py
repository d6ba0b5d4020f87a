# SPDX-License-Identifier: Apache-2.0
"""The model of vectors that a run trains, before it is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.sde import VE, VP
from experiments.configs import own as own_config
from experiments.problems.own import vectors

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("sde", [VP(beta_min=0.1, beta_max=20.0), VE()])
def test_a_fresh_model_of_vectors_is_exact_for_unit_gaussians(sde):
  units = vectors.measure(np.float32(100 + 10 * RNG.normal(size=(60, 3))))
  config = own_config.get_config("smoke").model
  model = vectors.untrained(config, units, sde)
  model = model.with_params(model.init(jax.random.key(0)))
  x, t = jnp.float32(RNG.normal(size=(5, 3))), jnp.linspace(0.1, 1, 5)
  alpha, std = sde.alpha(t)[:, None], sde.std(t)[:, None]
  # x_t = alpha u + std eps, all Gaussian: E[eps | x_t] by linear regression.
  expected = std * x / (alpha**2 + std**2)
  eps = model.eps(model.params, x, t, None)
  np.testing.assert_allclose(eps, expected, rtol=1e-5)
  same = model.eps(model.params, x, t[1], None)  # one time for all
  np.testing.assert_allclose(same[1], eps[1], rtol=1e-6)

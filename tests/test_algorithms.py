# SPDX-License-Identifier: Apache-2.0
"""The optimisers of a control."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import algorithms
from experiments.configs import base


def _first_step(optimizer: str, gradient: jax.Array) -> np.ndarray:
  config = base.get_config().control
  config.update(optimizer=optimizer, warmup_steps=1, head_learning_rate=1.0)
  transform = algorithms.control_optimizer(config)
  params = {"head": {"kernel": jnp.zeros_like(gradient)}}
  state = transform.init(params)
  for _ in range(2):  # the rate of the first is 0
    update, state = transform.update(
      {"head": {"kernel": gradient}}, state, params
    )
  return np.asarray(update["head"]["kernel"], np.float64)


def test_muon_moves_as_far_along_every_singular_direction():
  rng = np.random.default_rng(0)
  left, _ = np.linalg.qr(rng.standard_normal((12, 4)))
  right, _ = np.linalg.qr(rng.standard_normal((4, 4)))
  sizes = np.array([30.0, 3.0, 1.0, 0.5])
  gradient = jnp.asarray(left * sizes @ right.T, jnp.float32)
  found = {
    name: np.abs(np.diag(left.T @ _first_step(name, gradient) @ right))
    for name in ("adam", "muon")
  }
  assert found["muon"].max() < 2 * found["muon"].min()
  assert found["adam"].max() > 4 * found["adam"].min()

# SPDX-License-Identifier: Apache-2.0
"""States keep the dtype of their starts, in every function that scans steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import sampling, transitions
from ctrl_jax.guidance import reconstruction, smc, value
from ctrl_jax.objectives import adjoint_matching
from ctrl_jax.sampling import Predictions
from tests import gaussian_control as gc
from tests import linear_gaussian as lg
from tests import toy_chain as chain

DTYPES = pytest.mark.parametrize(
  ("dtype", "x64", "nats"),
  [
    (jnp.bfloat16, False, jnp.float32),
    (jnp.float32, True, jnp.float32),
    (jnp.float64, True, jnp.float64),
  ],
)


@DTYPES
def test_rollout(dtype, x64, nats):
  keys = lg.keys(3)
  start = chain.start(keys)
  known = sampling.rollout(
    keys, start, chain.KERNEL, chain.policy(), reference_fn=chain.reference
  )
  with jax.enable_x64(x64):
    out = sampling.rollout(
      keys,
      start.astype(dtype),
      chain.KERNEL,
      chain.policy(),
      reference_fn=chain.reference,
      backprop_steps=2,
      keep_path=True,
    )
    assert out.x.dtype == out.path.x.dtype == out.path.noise.dtype == dtype
    assert out.log_ratio.dtype == out.step_kl.dtype == nats
    density = transitions.log_density(
      out.path, out.x, chain.KERNEL, chain.policy()
    )
    assert density.dtype == nats
  # bfloat16 has 8 bits; the chains of float64 have noise of their own.
  if dtype != jnp.float64:
    atol = 0.05 if dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(
      np.asarray(out.x, np.float32), known.x, atol=atol
    )
    np.testing.assert_allclose(out.kl, known.kl, rtol=4 * atol)


@DTYPES
def test_guidance_and_stored_paths(dtype, x64, nats):
  kernel, n = gc.make_kernel(3), 4

  @jax.jit
  def run(keys, y):
    def pair(x, t):
      eps = gc.reference(x, t)
      return Predictions(eps + 0.1 * jnp.sin(x), eps)

    start = sampling.initial_noise(keys, (2,), kernel).astype(dtype)
    twist = reconstruction.twist_fn(gc.reward, gc.SDE, None, y, strength=0.5)
    particles = smc.sample(
      keys,
      start,
      kernel,
      pair,
      gc.reward,
      None,
      y,
      gamma=1.0,
      twist_fn=twist,
    )
    decoded = value.sample(
      keys,
      start,
      kernel,
      gc.reference,
      gc.reward,
      gc.SDE,
      None,
      y,
      gamma=1.0,
      num_candidates=2,
    )
    path = sampling.rollout(keys, start, kernel, pair, keep_path=True).path
    adjoint = adjoint_matching.lean_adjoint(path.x, start, kernel, pair)
    states = (particles.x, decoded.x, adjoint)
    cost = transitions.regress(path.x, adjoint, kernel, pair)
    found = transitions.compare(path, kernel, pair)
    return states, (cost, found.step_kl, found.log_ratio, particles.ess)

  with jax.enable_x64(x64):
    states, sums = run(lg.keys(n), jnp.full(n, 1.0))
  assert {a.dtype for a in states} == {jnp.dtype(dtype)}
  assert {a.dtype for a in sums} == {jnp.dtype(nats)}
  np.testing.assert_allclose(sums[2], 0, atol=1e-6)  # of its own paths

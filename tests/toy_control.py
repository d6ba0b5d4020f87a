# SPDX-License-Identifier: Apache-2.0
"""A small policy that is written out here, to test what uses policies.

The prior is N(0, 1) in one dimension, whose exact noise prediction is std x
for a variance-preserving process; the control is a small MLP beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import kernels
from ctrl_jax.models.mlp import MLP
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from ctrl_jax.sde import VP
from tests import linear_gaussian as lg

SDE = VP()
SHAPE = (1,)
TARGETS = (-2.0, 0.5, 2.0)  # what y = 0, 1, 2 asks for
LIKELIHOODS = tuple(lg.Likelihood(target, 1.0) for target in TARGETS)


def make_kernel(num_steps):
  """DDIM with full noise; its last step is deterministic."""
  return kernels.ddim(SDE, kernels.time_grid(num_steps), eta=1.0)


def reference(kernel):
  """The exact prediction of the prior, as numbers."""
  return lg.exact(SDE, kernel.times, mean=0.0, variance=1.0)


def reward(x, c, y):
  """log N(target_y; x, 1), nats, [batch]."""
  square = (jnp.asarray(TARGETS, x.dtype)[y] - x[:, 0]) ** 2
  return -0.5 * (square + jnp.log(2 * jnp.pi))


def make_policy(hidden=(32,)):
  """The prior's prediction plus std(t) times an MLP that starts at zero."""
  network = MLP(hidden, 1, zero_output=True)

  def features(x, t, y):
    time = jnp.stack([t, jnp.sin(4 * t), jnp.cos(4 * t)]).astype(x.dtype)
    label = jax.nn.one_hot(y, len(TARGETS), dtype=x.dtype)
    return jnp.concatenate(
      [x, jnp.broadcast_to(time, (len(x), 3)), label], axis=1
    )

  def init(key):
    return network.init(key, jnp.zeros((1, 4 + len(TARGETS))))

  def pair_fn(control, c, y):
    def pair(x, t):
      change = network.apply(control, features(x, t, y))
      return Predictions(SDE.std(t) * (x + change), SDE.std(t) * x)

    return pair

  return Policy(init, pair_fn)


def perturbed(tree, *, size=0.3, seed=9):
  """A tree with independent normal changes of every leaf."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(
    structure,
    [
      leaf + size * jax.random.normal(key, leaf.shape, leaf.dtype)
      for key, leaf in zip(keys, leaves, strict=True)
    ],
  )


def make_batch(n):
  """A batch for `objectives.ctrl`: labels in turn, log Z not known."""
  y = jnp.arange(n) % len(TARGETS)
  return {"c": jnp.zeros(n, jnp.int32), "y": y, "log_evidence": jnp.zeros(n)}


def log_evidence(kernel, *, gamma=1.0):
  """Exact log Z of every y at this number of steps."""
  mean, var = (m[-1] for m in lg.moments(kernel, reference(kernel)))
  return np.array(
    [lg.log_evidence(p, mean, var, gamma=gamma) for p in LIKELIHOODS]
  )


def steps(kernel):
  """A policy with a shift and a slope of its own for every step."""

  def pair_fn(control, c, y):
    def pair(x, t):
      k = jnp.argmin(jnp.abs(jnp.asarray(kernel.times, jnp.float32) - t))
      change = control["shift"][k] + control["slope"][k] * x
      reference = SDE.std(t) * x
      return Predictions(reference + change, reference)

    return pair

  zeros = jnp.zeros(kernel.num_steps)
  return Policy(lambda key: {"shift": zeros, "slope": zeros}, pair_fn)

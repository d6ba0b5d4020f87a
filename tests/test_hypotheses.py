# SPDX-License-Identifier: Apache-2.0
"""Errors that labels leave open: their law, and what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import alternatives, hypotheses

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LABELS = 60  # as many as make 32 draws of each 1,920


def _uniform(x, num=LABELS, held=0.3):
  """Hypotheses about a classifier that says nothing of labels that do not."""
  log_p = np.full((len(x), num), -np.log(num))
  labels = RNG.integers(num, size=len(x))
  out = np.arange(len(x)) < held * len(x)
  return hypotheses.of_labels(KEY, x, log_p, labels, out)


def test_errors_have_the_law_of_the_process_given_the_labels():
  """Against the covariance in closed form, by linear algebra alone."""
  x = RNG.normal(size=(40, 2))
  found = _uniform(x)
  u = np.concatenate([x[:3], RNG.normal(size=(5, 2)), [[6.0, 6.0]]])
  a, length = float(found.amplitude), float(found.length)

  def k(v, w):
    s = np.sqrt(3 * ((v[:, None] - w[None]) ** 2).sum(-1)) / length
    return a**2 * (1 + s) * np.exp(-s)

  p = 1 / LABELS
  inner = k(x, x) + np.eye(len(x)) / (p * (1 - p))
  want = k(u, u) - k(u, x) @ np.linalg.solve(inner, k(x, u))
  errors = np.asarray(found.errors(jnp.asarray(u, jnp.float32)))
  flat = errors.reshape(len(u), -1)
  got = flat @ flat.T / flat.shape[1]
  # A covariance of n draws has the error sqrt((v w + c^2) / n); the sum of
  # 512 waves that all draws share errs by 1 / sqrt(512) of a^2 besides.
  wide = np.diag(want)
  noise = np.sqrt((np.outer(wide, wide) + want**2) / flat.shape[1])
  assert (np.abs(got - want) < 4 * (noise + a**2 / 512**0.5)).all()
  assert wide[-1] > 0.98 * a**2  # far from every label


def test_many_labels_settle_what_none_leaves_open():
  near = 0.3 * RNG.normal(size=(400, 2))
  log_p = np.log(np.full((400, 2), 0.5))
  y = RNG.integers(2, size=400)
  held = np.arange(400) < 80
  found = hypotheses.of_labels(KEY, near, log_p, y, held)
  points = jnp.array([[0.0, 0.0], [8.0, 0.0]])
  spread = np.asarray(found.errors(points)).std(axis=(1, 2))
  assert spread[0] < 0.35 * spread[1]


@pytest.mark.parametrize(("share", "least", "most"), [(0.1, 0, 2), (1, 4, 6)])
def test_amplitude_is_what_held_out_labels_leave_open(share, least, most):
  """Labels that are as said refute wide errors; ones that are not, narrow."""
  # In 50 dimensions, where those trained on are far from those held out.
  x = RNG.normal(size=(500, 50))
  y = (RNG.random(500) < share).astype(int)
  held = np.arange(500) < 250
  said = np.log(np.tile([0.9, 0.1], (500, 1)))
  found = hypotheses.of_labels(KEY, x, said, y, held)
  assert least <= found.amplitude <= most


def test_real_values_are_doubted_in_their_deviations():
  """Of a mean that misses as its deviation says, and far from any label."""
  x = RNG.normal(size=(300, 1))
  held = np.arange(300) < 100
  found = hypotheses.of_reals(KEY, x, RNG.normal(size=300), held)
  points = jnp.array([[0.0], [50.0]])
  others = alternatives.of_regression(
    found, lambda x: (x, (2 * x[:, 0], jnp.full(len(x), 3.0)))
  )
  log_p = np.asarray(others(points, jnp.array([0.0, 100.0])))
  best = -np.log(3 * np.sqrt(2 * np.pi))
  assert log_p.max() <= best + 1e-5
  assert best - log_p[0].mean() < 0.2 < best - log_p[1].mean()


def test_classifiers_are_laws_and_have_derivatives():
  x = RNG.normal(size=(30, 3)).astype(np.float32)
  logits = lambda x: jax.nn.log_softmax(jnp.asarray(x) @ jnp.eye(3, 4))
  y, held = RNG.integers(4, size=30), np.arange(30) % 3 == 0
  others = alternatives.among_classifiers(
    KEY, lambda x: (x, logits(x)), x, y, held, chunk=8
  )
  table = [others(jnp.asarray(x), jnp.full(30, label)) for label in range(4)]
  np.testing.assert_allclose(np.exp(table).sum(0), 1, rtol=1e-4)
  pair = alternatives.of_factors([others, others], (4, 4))
  both = pair(jnp.asarray(x), jnp.full(30, 7))  # labels 1 and 3
  np.testing.assert_allclose(both, table[1] + table[3], rtol=1e-4)
  careful = alternatives.careful(
    lambda x, c, y: logits(x)[jnp.arange(len(x)), y], others, 2.0
  )
  ones = jnp.ones(30, int)
  taken = logits(x)[:, 1] - careful(jnp.asarray(x), None, ones)
  np.testing.assert_allclose(taken, 2 * table[1].std(1), rtol=1e-3)
  slope = jax.grad(lambda x: careful(x, None, ones).sum())(jnp.asarray(x))
  assert np.isfinite(slope).all() and np.abs(slope).max() < 1e3


def test_labels_learned_from_refute_nothing():
  """A classifier that has seen all is judged by what others said of some."""
  x = RNG.normal(size=(60, 20)).astype(np.float32)
  y, held = RNG.integers(2, size=60), np.arange(60) < 20
  sure = jnp.where(jnp.arange(2)[None] == y[:, None], -1e-3, jnp.log(1e-3))

  def look(x):  # knows the example by its first coordinate
    row = jnp.abs(x[:, :1] - x_known[None, :, 0]).argmin(1)
    return x, jax.nn.log_softmax(sure)[row]

  x_known, points = jnp.asarray(x), jnp.asarray(4 * RNG.normal(size=(50, 20)))
  wrong = np.log(np.where(np.arange(2)[None] == y[:, None], 0.05, 0.95))
  spread = [
    np.asarray(others(points, jnp.zeros(50, int))).std(1).mean()
    for others in (
      alternatives.among_classifiers(
        KEY, look, x, y, held, chunk=60, unseen=unseen
      )
      for unseen in (None, wrong, np.where(held[:, None], wrong, np.nan))
    )
  ]
  assert spread[1] > 1.5 * spread[0]
  assert spread[2] == spread[1]  # of those held out alone


def test_more_examples_than_are_conditioned_on():
  held = np.arange(hypotheses.MOST + 100) % 5 == 0
  rows = hypotheses.some(KEY, held)
  assert len({*rows.tolist()}) == len(rows) == hypotheses.MOST
  assert abs(held[rows].mean() - held.mean()) < 0.01
  np.testing.assert_array_equal(hypotheses.some(KEY, held[:50]), np.arange(50))

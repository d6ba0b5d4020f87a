# SPDX-License-Identifier: Apache-2.0
"""Certificates of samplers whose gap is known, and how they read."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax import certification, doubt, evidence
from ctrl_jax.metrics import Estimate
from ctrl_jax.trust import Trust
from tests.toy_tuning import gaussian, quick, side


def rare(x, c, y):
  """Logits 0, and 12 (x_1 - 3.5) of y = 1, which one sample in 4,000 shows."""
  logits = jnp.stack([0 * x[:, 0], 12 * (x[:, 0] - 3.5)], axis=1)
  return jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[
    :, 0
  ]


@pytest.fixture(scope="module")
def tuned():
  return quick(gaussian(), rare, num_updates=150, batch_size=64, num_steps=30)


def certified(tuned, **sizes):
  settings = dict(num=400, num_reference=1000, num_bridge=2000) | sizes
  return tuned.certificate(jax.random.key(1), **settings)


@pytest.mark.slow
def test_log_z_of_a_rare_label_is_found_by_a_bridge(tuned):
  found = certified(tuned)
  # The chain's own variance, short of 1 for having few steps.
  sde, variance = tuned.pretrained.sde, 1.0
  for t, a, b, s in zip(*tuned.kernel.columns, strict=True):
    variance = (a + b * sde.std(t)) ** 2 * variance + s**2
  grid = np.linspace(-8, 8, 100_001)
  density = np.exp(-0.5 * grid**2 / variance) / math.sqrt(
    2 * math.pi * variance
  )
  p = 1 / (1 + np.exp(-12 * (grid - 3.5)))
  exact = math.log((density * p).sum() * (grid[1] - grid[0]))
  mean, stderr = (float(a[0, 1]) for a in found.log_z.table)
  assert found.log_z.trust.known.all() and not found.is_bound
  assert abs(mean - exact) < 4 * stderr + 0.05
  assert "≥" not in str(found)


@pytest.mark.slow
def test_what_nothing_knows_is_a_lower_bound_and_says_so(tuned):
  found = certified(tuned, num_bridge=8)
  assert found.is_bound
  assert found.log_z.trust.known.tolist() == [[True, False]]
  assert str(found).startswith("gap ≥ ")
  assert "log Z is a lower bound of 1 in 2" in str(found)


def test_cells_are_strata():
  log_w = jnp.array([[[1.0, 100.0]], [[3.0, 104.0]]])
  found = certification._pooled(log_w)
  np.testing.assert_allclose(found.mean, 52)
  np.testing.assert_allclose(found.stderr, math.hypot(1, 2) / 2)


@pytest.mark.parametrize(
  ("mean", "stderr", "text"),
  [
    (0.02249, 0.0111, "0.022 ± 0.011"),
    (13.37, 1.24, "13.4 ± 1.2"),
    (437.3, 21.0, "437 ± 21"),
    (0.1, 0.0, "0.1000 ± 0.0000"),
    (math.inf, math.nan, "inf"),
  ],
)
def test_two_digits_of_the_error(mean, stderr, text):
  assert certification.in_digits(Estimate(mean, stderr)) == text


@pytest.mark.parametrize(
  ("before", "text"),
  [
    (2.0, "2.0"),
    (0.957, "0.96"),
    (0.0412, "0.041"),
    (43.8, "44"),
    (132.4, "132"),
    (0.0, "0"),
  ],
)
def test_two_digits_of_the_gap_before(before, text):
  assert certification._rounded(before) == text


def test_weights_of_a_heavy_tail_have_no_ess_to_show():
  certificate = certification.Certificate(
    *(Estimate(0.022, 0.011) for _ in range(4)), 0.957
  )
  known = Trust(np.ones((1, 2)), np.zeros((1, 2)), np.ones((1, 2), bool))
  log_z = evidence.LogZ(Estimate(0.0, 0.0), known, 0.0)
  found = certification.Certified(certificate, 1.3, log_z, Estimate(0, 0), 0.1)
  assert str(found) == (
    "gap 0.022 ± 0.011 nats, ESS 96 %, gap of the pre-trained model 1.3"
  )
  heavy = dataclasses.replace(found, pareto_k=0.9)
  assert "ESS not to be trusted (Pareto k 0.90)" in str(heavy)


def test_chunks_are_padded_and_put_together(monkeypatch):
  monkeypatch.setattr(evidence, "CHUNK", 4)
  sizes = []

  def double(a):
    sizes.append(len(a))
    return 2 * a

  found = evidence.in_chunks(double, np.arange(10))
  np.testing.assert_array_equal(found, 2 * np.arange(10))
  assert sizes == [4, 4, 4]


def test_reference_samples_that_diverge_are_evidence_of_nothing():
  model = gaussian()
  start = jnp.array([0.5, 0.0])

  def reward(x, c, y):
    return side()(x, c, y)

  kernel = quick(model, reward).kernel
  lost = dataclasses.replace(
    model,
    network=lambda params, x, t, c, control: jax.tree.map(
      lambda eps: jnp.where(x[:, :1] > start[0], jnp.nan, eps),
      model.network(params, x, t, c, control),
    ),
  )
  _, log_p = evidence.reference(
    lost,
    lambda x, c, y: jnp.where(jnp.isnan(x[:, 0]), 0.0, -1.0 - y),
    kernel,
    np.arange(2, dtype=np.int32),
    jax.random.key(0),
    num=200,
  )
  assert set(log_p[..., 0].ravel().tolist()) == {-1.0, -np.inf}


@pytest.mark.long
def test_doubt_of_few_labels_holds_where_they_are_the_truth():
  """The gap to the target of the law that drew them, by that law itself."""
  x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
  p = np.exp(side()(x, None, jnp.ones(60)))
  y = (np.random.default_rng(1).random(60) < p).astype(int)
  fitted = ctrl_jax.fit_labels(x, y, key=jax.random.key(0), num_updates=200)
  tuned = quick(
    gaussian(), fitted, num_controls=None, num_updates=60, batch_size=64
  )
  few = dict(num=1000, num_reference=4000, num_bridge=80)
  found = tuned.certificate(jax.random.key(1), **few)
  true = certification.certify(
    tuned.sampler._replace(reward_fn=side()),
    tuned.controls,
    jax.random.key(1),
    **few,
  )
  gap, excess = found.certificate.gap, doubt.pooled(found.doubts)
  assert gap.mean + excess.mean > true.certificate.gap.mean
  # Equation (1) of `doubt`, with the truth for the other classifier.
  told = tuned.certificate(jax.random.key(1), **few)
  exact = dataclasses.replace(
    tuned, others_fn=lambda x, y: side()(x, None, y)[:, None]
  ).certificate(jax.random.key(1), **few)
  more = true.gaps.mean - told.gaps.mean
  assert (more > 0).any()
  np.testing.assert_allclose(
    np.asarray(exact.doubts.mean), np.maximum(more, 0), atol=0.02
  )
  assert "not believing the classifier up to" in str(found)
  assert "believing" not in str(true)

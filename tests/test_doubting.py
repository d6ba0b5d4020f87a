# SPDX-License-Identifier: Apache-2.0
"""The doubt of a run's figures, and what is told of it."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from experiments.configs import effects, mixture
from experiments.measures import doubting, doubts, evidence
from experiments.measures.evaluation import Chains, Reference
from experiments.problems import exact

GAMMA, N, M = 2.0, 300, 40


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
  config = mixture.get_config("three_conditions")
  return exact.mixture(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(problem):
  """Samples of c at (c, 0), and a policy's at (c, y): nobody's, but in order.

  log p of y is x_1 y / 4, and the other classifiers have other slopes.
  """
  rng = np.random.default_rng(0)
  c = np.arange(3)
  samples = rng.normal(size=(N, 3, 2)) + np.stack([c, 0 * c], 1)
  index = np.arange(9 * M)
  at = np.stack([index // 3 % 3, index % 3], axis=1)
  x = (rng.normal(size=(9 * M, 2)) + at).astype(np.float32)
  log_p = samples[:, :, :1] * np.arange(3) / 4
  found = evidence.of_samples(problem, log_p.astype(np.float32), GAMMA)
  reference = Reference(samples.astype(np.float32), log_p, found)
  own = (x[:, 0] * at[:, 1] / 4).astype(np.float32)
  return reference, Chains(x, None, own, own, own[:, None])


def _others(*slopes):
  return lambda x, y: x[:, :1] * y[:, None] * jnp.array([slopes]) / 4


def _measure(problem, run, others):
  return doubting.measure(problem, others, *run, gamma=GAMMA, chunk=100)


def test_doubt_is_the_larger_of_two_excesses(problem, run):
  """By sums in float64 over the samples of every (c, y) by itself."""
  reference, chains = run
  found = _measure(problem, run, _others(1.5, 0.2))
  y = np.arange(3)
  x = chains.x.astype(np.float64)[:, 0].reshape(M, 3, 3)
  z = reference.samples[:, :, :1].astype(np.float64)
  each = []
  for slope in (1.5, 0.2):
    visited = GAMMA * ((1 - slope) * x * y / 4).mean(0)
    true, own = (logsumexp(GAMMA * a * z * y / 4, axis=0) for a in (slope, 1))
    each.append(visited + true - own)
  want = np.maximum(np.maximum(*each), 0)
  np.testing.assert_allclose(found.table.mean, want, atol=1e-4)
  np.testing.assert_allclose(found.mean.mean, want.mean(), atol=1e-4)
  assert want[:, 1:].min() > 0 and not want[:, 0].any()


def test_the_same_classifier_is_not_doubted(problem, run):
  found = _measure(problem, run, _others(1.0, 1.0))
  assert not np.asarray(found.table.mean).any()


def test_samples_to_label_have_their_c_and_y(problem, run, tmp_path):
  """And are of those whose first coordinate decides: far from 0."""
  reference, chains = run
  found = _measure(problem, run, _others(2.0, 1.0, 0.0))
  asked = found.to_label
  assert len(asked.samples) == doubting.TO_LABEL
  for x, c, y in zip(asked.samples, asked.c, asked.y, strict=True):
    if y >= 0:
      row = np.flatnonzero((chains.x == x).all(1))
      assert [c, y] == [row // 3 % 3, row % 3]
    else:
      assert ((reference.samples[:, c] == x).all(1)).any()
  assert np.abs(asked.samples[:3, 0]).min() > np.abs(chains.x[:, 0]).mean()
  doubts.write_csv(tmp_path / "to_label.csv", found, problem.control_names)
  text = (tmp_path / "to_label.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  assert [row["rank"] for row in rows] == [*map(str, range(1, 21))]
  names = [f"y = {row['y']}" for row in rows if row["y"]]
  assert {*names} <= {*problem.control_names}
  arrays = doubts.arrays_of(found, problem)
  np.testing.assert_array_equal(arrays["to_label"], asked.samples)
  np.testing.assert_array_equal(
    arrays["doubt_table"], np.asarray(found.table.mean).T
  )
  told = doubts.results(found, {"mean": 0.25})
  assert told["gap_and_doubt"] == pytest.approx(0.25 + told["mean"])


def test_what_diverged_is_not_to_be_labelled(problem, run):
  reference, chains = run
  x = chains.x.copy()
  x[::2] = np.nan
  lost = chains._replace(
    x=x, log_likelihood=np.where(np.isnan(x[:, 0]), np.nan, chains[2])
  )
  found = _measure(problem, (reference, lost), _others(2.0, 0.5))
  assert np.isfinite(found.to_label.samples).all()
  assert np.isfinite(np.asarray(found.table.mean)).all()


def test_a_law_that_is_known_cannot_be_doubted():
  config, default = mixture.get_config(), mixture.get_config()
  config.reward.doubt = 1.0
  with pytest.raises(ValueError, match="reward.doubt has no effect without"):
    effects.check(config, default)

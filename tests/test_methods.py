# SPDX-License-Identifier: Apache-2.0
"""Gaps of methods: the errors that they state, whatever luck they share."""

import numpy as np
import pytest

from experiments.configs import mixture
from experiments.measures import evidence, methods
from experiments.measures.evaluation import Reference
from experiments.problems import exact
from experiments.problems.problem import Problem

GAMMA, ROWS = 1.5, 240


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
  config = mixture.get_config("smoke")
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def reference(rng):
  """log p(y | x) of samples of two c, which all three y judge."""
  logits = rng.standard_normal((ROWS, 2, 1)) * np.array([-1.0, 0.2, 1.0])
  return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def policy(rng, found, log_p):
  """Paths of its own, of J = -1."""
  objective = -1 + 0.1 * rng.standard_normal((80, 2, 3))
  return methods.gap(found, objective)


def pretrained(rng, found, log_p):
  return methods.gap(found, GAMMA * log_p, of_reference=True)


def best_of_four(rng, found, log_p):
  best = log_p.reshape(-1, 4, 2, 3).max(1)
  return methods.gap(found, GAMMA * best, of_reference=True)


@pytest.mark.parametrize("method", [policy, pretrained, best_of_four])
def test_the_gap_has_the_error_that_it_states(problem, method):
  rng, found = np.random.default_rng(0), []
  for _ in range(250):
    log_p = reference(rng)
    log_z = evidence.of_samples(problem, log_p, GAMMA)
    found.append([float(v) for v in method(rng, log_z, log_p)])
  gaps, errors = np.array(found).T
  # A standard deviation of 250 draws is good to 4.5 %.
  assert np.sqrt((errors**2).mean()) == pytest.approx(gaps.std(), rel=0.16)


def test_where_both_share_their_luck_it_is_counted_once(problem):
  """log p is the same for all: log Z and J have one sample between them."""
  log_p = np.random.default_rng(1).normal(-1, 0.01, (ROWS, 2, 1))
  log_p = np.broadcast_to(log_p, (ROWS, 2, 3))
  found = evidence.of_samples(problem, log_p, 1.0)
  shared = methods.gap(found, log_p, of_reference=True)
  apart = methods.gap(found, log_p)
  assert float(shared.stderr) < 0.05 * float(apart.stderr)


def test_what_is_chosen_ends_where_the_reference_ends(problem):
  """The likeliest of each three; of 11 samples the first two are left out."""
  log_p = -np.abs(np.arange(11.0) % 3 - 1)[:, None, None] - np.arange(3.0)
  x = np.arange(11.0)[:, None, None] + np.zeros((11, 1, 2))
  found = evidence.of_samples(problem, log_p, GAMMA)
  chosen = methods.likeliest(
    problem,
    Reference(x.astype(np.float32), log_p.astype(np.float32), found),
    gamma=GAMMA,
    n=3,
  )
  assert chosen.cells.samples[:, 0, 0, 0].tolist() == [4, 7, 10]
  kl = np.log(3) - 2 / 3
  best = -GAMMA * np.arange(3.0).mean()
  gap = float(found.mean.mean) - (best - kl)
  assert float(chosen.gap.mean) == pytest.approx(gap, abs=1e-5)

# SPDX-License-Identifier: Apache-2.0
"""Chains of the (c, y) whose log Z samples do not know, and what is drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import bridge, parallel
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from experiments.configs import mixture
from experiments.measures import bridging, drawings, evaluation, evidence
from experiments.measures.evaluation import Chains, Reference
from experiments.problems import exact
from experiments.problems.problem import Problem

C, Y, STEPS = 2, 3, 4


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
  config = mixture.get_config("smoke")
  config.problem.num_conditions, config.kernel.num_steps = C, STEPS
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def pushed(problem: Problem) -> Policy:
  """A control that moves every prediction by the same."""

  def pair_fn(control: Any, c: jax.Array, y: jax.Array) -> Any:
    reference = problem.reference_fn(c)

    def pair(x: jax.Array, t: jax.Array) -> Predictions:
      eps = reference(x, t)
      return Predictions(eps + control, eps)

    return pair

  return Policy(lambda key: jnp.float32(0.3), pair_fn)


def crossings(problem: Problem, cells: np.ndarray) -> evidence.Crossings:
  return bridging.crossings(
    problem,
    pushed(problem),
    jnp.float32(0.3),
    lambda x, c, y: -1.0 - c - 10.0 * y + 0 * x[:, 0],
    cells=cells,
    gamma=2.0,
    num=26,
    seed=0,
    chunk=40,
    mesh=parallel.make_mesh(jax.devices()[:1]),
  )


def test_chains_of_doubtful_cells_are_of_every_share(problem):
  """Of the cells that are asked for, of their y, as many of each share."""
  cells = np.array([[False, True, False], [True, False, True]])
  found = crossings(problem, cells)
  assert found.log_weights.shape == (len(bridge.SHARES), 6, 3)
  labels = np.array([-11.0, -2.0, -22.0])  # (0, 1), (1, 0), (1, 2)
  np.testing.assert_allclose(found.log_likelihood, labels + 0 * found[2])
  # The noise of a cell is its own, whichever others are doubtful.
  alone = crossings(problem, cells & np.array([[False], [True]]))
  np.testing.assert_allclose(
    alone.log_weights, found.log_weights[:, :, 1:], rtol=1e-5, atol=1e-4
  )
  # A constant control of a fixed cost: u is p^gamma over densities of mean 1.
  flat = found.log_weights.reshape(-1, 3) - 2 * labels
  assert flat.std() > 0.05
  error = np.exp(flat).std(0) / len(flat) ** 0.5
  assert (np.abs(np.exp(flat).mean(0) - 1) < 4 * error).all()


def chains_of(log_p, log_ratio):
  flat = [np.ravel(a).astype(np.float32) for a in (log_p, log_ratio)]
  rows = len(flat[0])
  return Chains(np.zeros((rows, 2)), None, *flat, np.ones((rows, STEPS)))


def test_paths_that_diverged_weigh_nothing(problem):
  log_p = np.full((2, C, Y), -1.0)
  log_ratio = np.zeros((2, C, Y))
  log_p[0, 0, 0], log_ratio[1, 1, 2] = np.nan, np.inf
  found = bridging.log_weights(problem, chains_of(log_p, log_ratio), 3.0)
  assert found[0, 0, 0] == found[1, 1, 2] == -np.inf
  assert (np.delete(found.ravel(), [0, 11]) == -3).all()


def test_what_is_drawn_of_every_request(problem):
  """Tables have a row a y; a gap is what log Z has more than log w."""
  table = -np.arange(6.0).reshape(C, Y)
  log_p = np.broadcast_to(table, (40, C, Y))
  known = np.array([[True, True, False], [True, True, True]])
  found = evidence.of_samples(problem, log_p, 1.0)
  found = found._replace(trust=found.trust._replace(known=known))
  reference = Reference(np.zeros((40, C, 2)), log_p, found)
  chains = chains_of(log_p - 0.5, 0 * log_p)
  drawn = drawings.arrays_of({}, problem, reference, chains, gamma=1.0, seed=0)
  np.testing.assert_allclose(
    drawn["gap_table"], np.full((Y, C), 0.5), atol=1e-5
  )
  np.testing.assert_allclose(drawn["log_evidence_table"], table.T, atol=1e-5)
  np.testing.assert_allclose(drawn["effective_table"], 40, rtol=1e-5)
  assert drawn["bound_table"].tolist() == [[False, False]] * 2 + [[True, False]]


def test_labels_are_balanced_and_in_order(problem):
  """y fastest, then c, as tables [n, C, Y] are read."""
  c, y = evaluation.cell_labels(14, problem)
  assert c.tolist() == [0, 0, 0, 1, 1, 1] * 2
  assert y.tolist() == [0, 1, 2] * 4

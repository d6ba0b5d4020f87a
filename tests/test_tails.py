# SPDX-License-Identifier: Apache-2.0
"""A classifier mixed with ignorance, and how much of it labels ask for."""

import shutil
import sys

import numpy as np
import pytest

from experiments.studies import tails
from tests import toy_runs
from tests.toy_processes import finish, start

LABELS = 4


def _observed(eps, *, seed=0, n=20_000):
  """log p of every label [n, 4], and labels drawn from it mixed by eps."""
  rng = np.random.default_rng(seed)
  logits = 6 * rng.normal(size=(n, LABELS))
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  total = ((1 - eps) * p + eps / LABELS).cumsum(-1)
  y = (rng.uniform(size=(n, 1)) > total[:, :-1]).sum(-1)
  return np.log(p), y


def test_a_mixture_adds_up_to_1_and_is_never_below_its_share():
  log_p, _ = _observed(0.0, n=50)
  mixed = np.exp(tails.mixed(log_p, LABELS, 0.2))
  np.testing.assert_allclose(mixed.sum(-1), 1, rtol=1e-12)
  assert mixed.min() >= 0.05
  np.testing.assert_array_equal(tails.mixed(log_p, LABELS, 0.0), log_p)


@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_the_share_that_labels_were_drawn_with_is_found(eps):
  log_p, y = _observed(eps)
  asked = log_p[np.arange(len(y)), y]
  found = tails.fit(asked, LABELS)
  # By the information of n labels, within four standard errors.
  slope = (1 / LABELS - np.exp(asked)) / np.exp(tails.mixed(asked, LABELS, eps))
  assert abs(found - eps) < 4 / (slope**2).sum() ** 0.5


def test_a_classifier_that_is_not_sure_enough_keeps_its_tails():
  log_p, y = _observed(0.0)
  flat = np.log(0.8 * np.exp(log_p) + 0.2 / LABELS)
  assert tails.fit(flat[np.arange(len(y)), y], LABELS) == 0


def test_samples_that_diverged_are_left_out_and_the_fit_is_named():
  log_p, y = _observed(0.05, n=4000)
  log_p, y = log_p.reshape(2000, 2, LABELS), y.reshape(2000, 2)
  y[:3] = -1
  lines = tails.table(log_p, y, gamma=1.0).splitlines()
  (fitted,) = (line for line in lines if "(fitted)" in line)
  eps = float(fitted.split()[1])
  kept = np.take_along_axis(log_p[3:], y[3:, :, None], -1)
  assert eps == pytest.approx(tails.fit(kept.ravel(), LABELS), rel=0.01)
  assert len(lines) == 2 + 2 + len(tails.SHARES)


@pytest.mark.slow
def test_the_table_of_a_run(tmp_path, tmp_path_factory):
  run = tmp_path / "run"
  shutil.copytree(toy_runs.finished("digits", tmp_path_factory)[0], run)
  command = [sys.executable, "-m", "experiments.studies.tails"]
  ((out, error, code),) = finish([start([*command, f"--workdir={run}"])])
  assert code == 0, error
  assert "(fitted)" in out and out.startswith("| eps | -log p' |")

# SPDX-License-Identifier: Apache-2.0
"""Labels that are all learned from, and calibrate too."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import parallel
from ctrl_jax.models.classifier import Classifier
from experiments.problems import classifiers, folding
from experiments.problems.networks import Fitted
from experiments.runtime.logs import Log


def test_what_is_said_of_an_example_is_by_a_network_that_did_without_it():
  labels = np.random.default_rng(0).integers(3, size=100)
  rows = np.random.default_rng(1).permutation(100)[:31]
  learned: dict[str, np.ndarray] = {}

  def fit(some: np.ndarray, stage: str) -> Fitted:
    learned[stage] = some
    # Of every row: its number, and whether it was learned from.
    return Fitted({}, lambda r: np.stack([r, np.isin(r, some)], 1), lambda x: x)

  found = folding.without(fit, labels, rows, 4, stage="toy", seed=0)
  np.testing.assert_array_equal(found.logits[:, 0], rows)
  assert not found.logits[:, 1].any()
  assert len(learned) == 4 and all(name.startswith("toy_") for name in learned)
  times = np.bincount(np.concatenate([*learned.values()]), minlength=100)
  assert set(times[rows].tolist()) == {3}
  first = np.setdiff1d(rows, learned["toy_without_1"])
  assert set(rows[found.held].tolist()) == set(first.tolist())


def test_few_labels_that_are_all_predicted_right_leave_a_doubt():
  labels = np.arange(9) % 2
  logits = 3.0 * np.eye(2)[labels]
  # n q = (1 - 2 q) / 2, the derivative by the margin, so q = 1 / (2 (n + 1)).
  heat = classifiers.calibrated(logits, labels)
  assert 1 / (1 + np.exp(3 / heat)) == pytest.approx(1 / 20, rel=1e-3)
  # One wrong in ten, by the same margin: the likelihood's own maximum.
  logits, labels = np.concatenate([logits, logits[:1]]), np.append(labels, 1)
  heat = classifiers.calibrated(logits, labels)
  assert 1 / (1 + np.exp(3 / heat)) == pytest.approx(1 / 10, rel=1e-3)


@pytest.mark.slow
def test_labels_learned_by_heart_are_not_believed(tmp_path: pathlib.Path):
  """All are learned from, and the temperature is not theirs."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(90, 4, 4, 1)).astype(np.float32)
  labels = rng.integers(2, size=90).astype(np.int32)  # of which x says nothing
  train, calibration, test = np.split(np.arange(90), [30, 40])
  with Log(tmp_path) as log:
    predictor = classifiers.train(
      images,
      labels,
      Classifier(2, (64,)),
      folds=5,
      train=train,
      calibration=calibration,
      test=test,
      stage="classifier",
      optimizer=optax.adam(1e-2),
      seed=0,
      batch_size=40,
      num_steps=100,
      log_every=100,
      save_every=100,
      workdir=tmp_path,
      mesh=parallel.make_mesh(jax.devices()[:1]),
      log=log,
    )
  said = np.asarray(predictor.logits_fn(jnp.asarray(images[:40])))
  np.testing.assert_array_equal(said.argmax(1), labels[:40])
  assert predictor.unseen is not None and predictor.unseen.held.sum() == 8
  right = (predictor.unseen.logits.argmax(1) == labels[:40]).mean()
  assert right < 0.5 + 3 * (0.25 / 40) ** 0.5
  assert predictor.metrics["temperature"] > 3
  assert predictor.metrics["nll"] < 0.8 < predictor.metrics["nll_before"]

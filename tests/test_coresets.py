# SPDX-License-Identifier: Apache-2.0
"""Selections whose densities, shares and variances are known."""

import numpy as np
import pytest
import scipy.stats

from ctrl_jax import coresets

CLASSES = np.repeat(np.arange(3), (40, 100, 60))


def features(seed=0, dims=3):
  """Gaussian examples, of a mean and a scale for each class."""
  rng = np.random.default_rng(seed)
  return rng.normal(CLASSES[:, None], 1 + CLASSES[:, None], (200, dims))


@pytest.mark.parametrize("rule", coresets.RULES)
@pytest.mark.parametrize("fraction", [0.05, 0.33, 1.0])
def test_every_class_keeps_its_share(rule, fraction):
  kept = coresets.quotas(CLASSES, fraction)
  rows = coresets.RULES[rule](features(), CLASSES, kept, 0)
  assert len(np.unique(rows)) == len(rows) and (np.diff(rows) > 0).all()
  found = np.bincount(CLASSES[rows], minlength=3)
  np.testing.assert_array_equal(found, kept)
  np.testing.assert_allclose(
    found, fraction * np.array([40, 100, 60]), atol=0.5
  )
  again = coresets.RULES[rule](features(), CLASSES, kept, 0)
  np.testing.assert_array_equal(again, rows)


def test_a_class_of_which_nothing_is_left_is_an_error():
  with pytest.raises(ValueError, match=r"0\.01 of the 40 examples of class 0"):
    coresets.quotas(CLASSES, 0.01)
  for fraction in (0.0, 1.1, float("nan")):
    with pytest.raises(ValueError, match="must lie in"):
      coresets.quotas(CLASSES, fraction)


def test_densities_are_those_of_scipy():
  x = features()
  found = coresets.log_densities(x, CLASSES)
  for label in range(3):
    mine = x[label == CLASSES]
    covariance = np.cov(mine.T, bias=True)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3)
    law = scipy.stats.multivariate_normal(mine.mean(0), covariance)
    np.testing.assert_allclose(found[label == CLASSES], law.logpdf(mine))


def test_equal_examples_have_one_density():
  classes = np.zeros(5, int)
  found = coresets.log_densities(np.ones((5, 2)), classes)
  assert np.isfinite(found).all() and len(np.unique(found)) == 1


def test_the_densest_are_nearest_to_the_middle_of_their_class():
  x = features(dims=1)
  rows = coresets.densest(x, CLASSES, coresets.quotas(CLASSES, 0.5), 0)
  for label in range(3):
    mine = label == CLASSES
    far = np.abs(x[:, 0] - x[mine].mean())
    kept = np.isin(np.arange(200), rows)
    assert far[mine & kept].max() < far[mine & ~kept].min()


def test_strata_of_points_far_apart_are_these():
  rng = np.random.default_rng(0)
  # k-means from random examples may start with two in one group: of three
  # seeds one at least does not.
  group = np.repeat(np.arange(2), 30)
  x = 100.0 * group[:, None] + rng.normal(size=(60, 2))
  for seed in range(3):
    found = coresets.strata(x, 2, seed)
    assert len({*zip(group, found, strict=True)}) == 2


def test_every_stratum_keeps_its_share():
  # Of four examples that are told apart there are four strata.
  group = np.repeat(np.arange(4), (10, 20, 30, 40))
  classes = np.zeros(100, int)
  kept = coresets.quotas(classes, 0.34)
  for seed in range(5):
    rows = coresets.stratified(np.eye(4)[group], classes, kept, seed)
    shares = np.bincount(group[rows])
    np.testing.assert_allclose(shares, 0.34 * np.bincount(group), atol=0.999)


def test_stratified_means_are_unbiased_and_steadier_than_random_ones():
  x, kept = features(dims=2), coresets.quotas(CLASSES, 0.2)
  mine = CLASSES == 1
  means = {
    rule: np.stack(
      [
        x[rows[CLASSES[rows] == 1]].mean(0)
        for rows in (
          coresets.RULES[rule](x, CLASSES, kept, seed) for seed in range(60)
        )
      ]
    )
    for rule in ("random", "stratified")
  }
  stratified = means["stratified"]
  error = stratified.std(0, ddof=1) / 60**0.5
  # z = 4 of the two coordinates.
  assert (np.abs(stratified.mean(0) - x[mine].mean(0)) < 4 * error).all()
  assert (stratified.var(0) < 0.5 * means["random"].var(0)).all()


def test_principal_components_keep_distances_and_the_largest_variance():
  rng = np.random.default_rng(0)
  low = rng.normal(size=(30, 2)) * [5, 1]
  turned = np.linalg.qr(rng.normal(size=(12, 12)))[0][:2]
  x = (low @ turned).reshape(30, 3, 4) + 7
  found = coresets.principal_components(x, 2)
  distances = lambda a: np.linalg.norm(a[:, None] - a[None], axis=-1)
  np.testing.assert_allclose(distances(found), distances(low), atol=1e-8)
  one = coresets.principal_components(x, 1)
  # The trace of the covariance's largest eigenvalue.
  top = np.linalg.eigvalsh(np.cov(low.T)).max()
  np.testing.assert_allclose(one.var(ddof=1), top, rtol=1e-6)


def test_few_examples_or_pixels_are_components_by_themselves():
  x = np.array([[1.0], [4.0]])
  np.testing.assert_allclose(coresets.principal_components(x), [[-1.5], [1.5]])

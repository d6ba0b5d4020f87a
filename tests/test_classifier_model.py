# SPDX-License-Identifier: Apache-2.0
"""Classifier, temperature and calibration on sets with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.datasets import oracles
from ctrl_jax.models import classifier


def _synthetic(n, *, temperature, seed):
  """Logits whose labels follow softmax(logits / temperature) exactly."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(n, 4)) * 3
  # Gumbel-max: argmax of logits / T + Gumbel noise has that law.
  labels = (logits / temperature + rng.gumbel(size=(n, 4))).argmax(1)
  return logits, labels


def _probabilities(confidence, n):
  """Class 0 with the given confidence, the rest shared by classes 1 to 3."""
  rest = (1 - confidence) / 3
  return np.tile([confidence, rest, rest, rest], (n, 1))


def test_features_are_standardised_inputs_of_the_network():
  images = jax.random.normal(jax.random.key(0), (50, 4, 4, 1)) + 0.3
  features = (oracles.ink, oracles.slant)
  shift, scale = classifier.standardisation(features, images)
  network = classifier.Classifier(
    3, hidden=(5,), features=features, shift=shift, scale=scale
  )
  params = network.init(jax.random.key(1), images)
  kernel = params["params"]["MLP_0"]["Dense_0"]["kernel"]
  assert kernel.shape == (16 + 2, 5)

  # Without hidden layers the logits read the inputs off: weight 1 on a
  # feature gives its standardised values, of mean 0 and deviation 1.
  linear = network.clone(hidden=())
  for row in (16, 17):
    weights = jnp.zeros((18, 3)).at[row, 0].set(1.0)
    dense = {"kernel": weights, "bias": jnp.zeros(3)}
    logits = linear.apply({"params": {"MLP_0": {"Dense_0": dense}}}, images)
    np.testing.assert_allclose(logits[:, 0].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(logits[:, 0].std(), 1, rtol=1e-5)


def test_features_without_their_scales_are_refused():
  network = classifier.Classifier(3, features=(oracles.ink,))
  with pytest.raises(ValueError, match="zip"):
    network.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))
  with pytest.raises(ValueError, match="constant"):
    classifier.standardisation((oracles.ink,), jnp.ones((3, 2, 2, 1)))


def test_features_of_several_numbers_and_no_pixels():
  images = jax.random.normal(jax.random.key(0), (50, 4, 4, 1))
  columns = lambda x: x[:, :3, 0, 0] * jnp.array([[1.0, 5.0, 0.1]]) + 7
  features = (oracles.ink, columns)
  shift, scale = classifier.standardisation(features, images)
  network = classifier.Classifier(4, (), features, shift, scale, pixels=False)
  # The identity: logits are what the network sees.
  dense = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
  seen = network.apply({"params": {"MLP_0": {"Dense_0": dense}}}, images)
  np.testing.assert_allclose(seen.mean(0), np.zeros(4), atol=1e-4)
  np.testing.assert_allclose(seen.std(0), np.ones(4), rtol=1e-4)
  with pytest.raises(ValueError, match="pixels or a feature"):
    classifier.Classifier(4, pixels=False).init(jax.random.key(0), images)


def test_steps_of_one_quantity_have_one_function_of_x():
  """And it does as much from each label to the next, whatever x."""
  images = jax.random.normal(jax.random.key(0), (50, 4, 4, 1))
  network = classifier.Classifier(5, hidden=(7,), ordered=True)
  params = network.init(jax.random.key(1), images)
  offsets = jnp.array([0.3, -1.0, 2.0, 0.0, 0.5])
  params = {"params": params["params"] | {"bias": offsets}}
  table = classifier.log_probs(network.apply(params, images))
  rise = jnp.diff(table, axis=1) - jnp.diff(offsets)[None]
  assert rise[:, 0].std() > 0.1
  np.testing.assert_allclose(rise, np.tile(rise[:, :1], 4), atol=1e-5)
  # So the likeliest of labels with equal offsets is the first or the last.
  flat = {"params": params["params"] | {"bias": jnp.zeros(5)}}
  best = np.asarray(network.apply(flat, images)).argmax(1)
  assert set(best.tolist()) == {0, 4}


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_gradients_are_finite_at_constant_images(value):
  network = classifier.Classifier(
    4,
    features=(oracles.ink, oracles.slant),
    shift=(-0.4, 0.0),
    scale=(0.07, 0.12),
  )
  image = jnp.full((1, 8, 8, 1), value)
  params = network.init(jax.random.key(0), image)
  log_prob = lambda x: classifier.log_probs(network.apply(params, x))[0, 1]
  gradient = jax.grad(log_prob)(image)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_log_probs_are_normalised_and_flat_when_hot():
  logits, _ = _synthetic(10, temperature=1.0, seed=0)
  for temperature in (0.1, 1.0, 7.0):
    total = jnp.exp(classifier.log_probs(logits, temperature)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)
  hot = classifier.log_probs(logits, 1e6)
  np.testing.assert_allclose(hot, -np.log(4), atol=1e-4)
  # log(3 / (3 + 1)): odds of 3 to 1.
  odds = classifier.log_probs(np.array([[2 * np.log(3.0), 0.0]]), 2.0)
  np.testing.assert_allclose(odds[0], np.log([0.75, 0.25]), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_fit_recovers_the_temperature_within_3_standard_errors(temperature):
  n = 20_000
  logits, labels = _synthetic(n, temperature=temperature, seed=1)
  fitted = classifier.fit_temperature(logits, labels)
  # Fisher information about u = log T of one example: the variance, under
  # p(y | x), of the scaled logit, by d log p_y / du = -(l_y - E l) / T.
  p = np.exp(classifier.log_probs(logits, temperature))
  scaled = logits / temperature
  variance = (p * scaled**2).sum(1) - (p * scaled).sum(1) ** 2
  stderr = 1 / np.sqrt(variance.sum())
  assert abs(np.log(fitted / temperature)) < 3 * stderr
  assert stderr < 0.05  # or the test would be empty


def test_fit_is_next_to_a_bound_where_the_likelihood_has_no_maximum():
  logits = np.eye(4) * 2
  right = classifier.fit_temperature(logits, np.arange(4))
  wrong = classifier.fit_temperature(logits, (np.arange(4) + 1) % 4)
  assert right < 0.06 and wrong > 19


def test_nll_of_uniform_predictions_is_log_of_the_number_of_classes():
  log_p = classifier.log_probs(np.zeros((5, 4)))
  nll = classifier.negative_log_likelihood(log_p, np.arange(5) % 4)
  np.testing.assert_allclose(nll, np.log(4), rtol=1e-6)


def test_perfect_calibration_has_a_small_error():
  n = 20_000
  logits, labels = _synthetic(n, temperature=1.0, seed=3)
  p = np.exp(classifier.log_probs(logits))
  # Each bin's gap has a standard error of at most sqrt(1/4 / n_b), so the ECE
  # is at most three times sum_b (n_b / n) / (2 sqrt(n_b)) <= sqrt(15 / 4n).
  assert classifier.calibration_error(p, labels) < 3 * np.sqrt(15 / (4 * n))


def test_overconfidence_has_the_error_it_was_made_with():
  n = 10_000
  labels = (np.random.default_rng(4).random(n) > 0.7).astype(int)  # 70% are 0
  error = classifier.calibration_error(_probabilities(0.9, n), labels)
  stderr = np.sqrt(0.7 * 0.3 / n)
  assert abs(error - 0.2) < 3 * stderr


def test_errors_of_opposite_sign_do_not_cancel_between_bins():
  # One of four is sure and right half the time, the rest unsure and right.
  p = np.concatenate([_probabilities(1.0, 100), _probabilities(0.4, 300)])
  labels = np.concatenate([np.arange(100) % 2, np.zeros(300, int)])
  error = classifier.calibration_error(p, labels)
  np.testing.assert_allclose(error, 0.25 * 0.5 + 0.75 * 0.6)


def test_reliability_bins():
  p = np.array([[1.0, 0.0], [0.5, 0.5], [0.45, 0.55], [0.1, 0.9]])
  bins = classifier.reliability(p, np.array([0, 0, 0, 1]), num_bins=2)
  # 0.5 is the upper edge of the first bin; the other three are in the second.
  np.testing.assert_array_equal(bins.counts, [1, 3])
  np.testing.assert_allclose(bins.confidence, [0.5, (1 + 0.55 + 0.9) / 3])
  np.testing.assert_allclose(bins.accuracy, [1, 2 / 3])
  empty = classifier.reliability(p[:1], np.array([0]), num_bins=4)
  np.testing.assert_array_equal(np.isnan(empty.accuracy), [1, 1, 1, 0])


def test_reliability_refuses_what_are_not_probabilities():
  for bad in (np.log(_probabilities(0.9, 3)), np.ones((3, 4))):
    with pytest.raises(ValueError, match="sum 1"):
      classifier.calibration_error(bad, np.zeros(3, int))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_temperature_is_that_of_the_rows_that_have_one(bad):
  logits, labels = _synthetic(2000, temperature=2.0, seed=6)
  expected = classifier.fit_temperature(logits[2:], labels[2:])
  logits[0, labels[0]] = bad
  labels[1] = -1  # of what an oracle could not measure
  known = classifier.defined(logits, labels)
  np.testing.assert_array_equal(known, np.arange(2000) >= 2)
  found = classifier.fit_temperature(logits, labels)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # A class that is ruled out is no error.
  logits[0] = [-np.inf, 0, 1, 2]
  labels[0] = 1
  assert classifier.defined(logits, labels)[0]
  assert np.isnan(classifier.negative_log_likelihood(logits[1:2], labels[1:2]))
  with pytest.raises(ValueError, match="none of the 1 examples"):
    classifier.fit_temperature(logits[1:2], labels[1:2])

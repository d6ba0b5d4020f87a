# SPDX-License-Identifier: Apache-2.0
"""Labels that nobody gave: the plan, its loss, and clusters that are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax import flow, policy, sde, self_labels
from ctrl_jax.models.prototypes import Prototypes
from ctrl_jax.pretrained import Pretrained

KEY = jax.random.key(0)
DIMS = 6


def _model(**changes):
  """A model that shows x_t itself, as one token."""
  process = sde.VP()
  return Pretrained(
    **{
      "network": lambda params, x, t, c, control: policy.Output(x),
      "params": {},
      "sde": process,
      "sample_shape": (DIMS,),
      "features": lambda params, x, t: x[:, None],
    }
    | changes
  )


def _planted(n=900, seed=0):
  """x around three centres, and which; the third has twice as many."""
  rng = np.random.default_rng(seed)
  y = np.minimum(rng.integers(4, size=n), 2)
  centres = 2 * np.eye(3, DIMS)
  x = centres[y] + 0.15 * rng.normal(size=(n, DIMS))
  return x.astype(np.float32), y


def test_the_plan_of_two_by_two_is_known():
  a, b, c, d = 0.7, 0.1, -0.3, 0.2
  q = self_labels.sinkhorn(
    jnp.array([[a, b], [c, d]]), epsilon=0.5, iterations=100
  )
  # diag(r) exp(l / epsilon) diag(s) leaves the odds ratio of the table as it
  # is; of sums of one that is (q / (1 - q))^2.
  odds = np.exp((a + d - b - c) / 0.5) ** 0.5
  np.testing.assert_allclose(q[0, 0], odds / (1 + odds), rtol=1e-5)
  np.testing.assert_allclose(q, q.T, rtol=1e-5)


def test_every_example_has_one_and_every_prototype_as_many():
  logits = jnp.array([[1.0, 0.3, 0, 0, 0]]) + 0.3 * jax.random.normal(
    KEY, (40, 5)
  )
  sums = {n: self_labels.sinkhorn(logits, iterations=n) for n in (1, 3, 300)}
  for q in sums.values():
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
  off = {n: float(jnp.abs(q.sum(0) - 8).max()) for n, q in sums.items()}
  assert off[300] < 0.01 < off[3] < off[1]


def test_the_plan_is_the_same_on_one_device_and_on_several():
  logits = 0.5 * jax.random.normal(KEY, (24, 5))
  shares = jax.vmap(
    lambda share: self_labels.sinkhorn(share, axis_name="batch"),
    axis_name="batch",
  )(logits.reshape(4, 6, 5))
  whole = self_labels.sinkhorn(logits)
  np.testing.assert_allclose(shares.reshape(24, 5), whole, rtol=1e-4)


def test_only_directions_count():
  network = Prototypes(3, hidden=(), dims=4)
  h = jax.random.normal(KEY, (5, 2, DIMS))
  params = network.init(KEY, h)
  cosines = network.apply(params, h)
  assert cosines.shape == (5, 2, 3) and jnp.abs(cosines).max() <= 1
  longer = jax.tree.map(lambda leaf: 3 * np.asarray(leaf), params)  # as kept
  np.testing.assert_allclose(network.apply(longer, h), cosines, rtol=1e-4)


def test_looks_are_told_by_each_other():
  sharp = jnp.tile(jnp.eye(4), (5, 1))  # 20 examples, which are sure
  agreeing = jnp.stack([sharp, sharp], axis=1)
  crossing = jnp.stack([sharp, jnp.roll(sharp, 1, axis=1)], axis=1)
  least = self_labels.loss(agreeing)
  # The odds of the others are e^(-1 / temperature), and of the wrong one as
  # many nats are lost.
  np.testing.assert_allclose(least, 3 * np.exp(-10), rtol=1e-2)
  np.testing.assert_allclose(self_labels.loss(crossing), 10, rtol=1e-3)
  alone = self_labels.loss(crossing[:, 1:])  # believes itself
  np.testing.assert_allclose(alone, least, rtol=1e-3)


def test_no_gradient_reaches_the_targets():
  logits = 0.1 * jax.random.normal(KEY, (12, 1, 3))
  q = self_labels.sinkhorn(logits[:, 0])

  def told(logits):  # what is learned where q are given
    log_p = jax.nn.log_softmax(logits[:, 0] / self_labels.TEMPERATURE)
    return -(q * log_p).sum(1).mean()

  np.testing.assert_allclose(
    jax.grad(self_labels.loss)(logits), jax.grad(told)(logits), atol=1e-6
  )


def test_targets_are_labels_as_often_as_they_are_probable():
  q = np.array([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
  found = self_labels.labels_of(q, 4)
  assert found.tolist() == [[0, 2, 2, 2], [1, 1, 1, 1]]


def test_clusters_are_matched_whatever_they_are_called():
  first = np.random.default_rng(0).integers(4, size=200)
  names = np.array([2, 0, 3, 1])
  second = names[first]
  second[:10] = 0  # some differ
  np.testing.assert_array_equal(self_labels.matched(first, second, 4), names)


@pytest.mark.parametrize("process", [sde.VP(), sde.VE(), flow.Flow()])
def test_noise_is_that_of_a_time(process):
  t = self_labels.time_of(process, 0.3)
  np.testing.assert_allclose(process.std(t) / process.alpha(t), 0.3, rtol=1e-6)


def test_too_little_noise_is_told():
  with pytest.raises(ValueError, match=r"noise is 0\.001: it is from 0\.01 on"):
    self_labels.time_of(sde.VE(std_min=0.01), 0.001)


def test_a_look_is_the_mean_over_noise_and_over_regions():
  x = jax.random.normal(KEY, (3, DIMS))
  eps = jax.random.normal(jax.random.key(1), (1, DIMS))
  model = _model()
  h = self_labels.look(model, x, jnp.concatenate([eps, -eps]), noise=0.5)
  alpha = model.sde.alpha(self_labels.time_of(model.sde, 0.5))
  np.testing.assert_allclose(h, alpha * x, rtol=1e-5)

  def picture(params, x, t):  # 7 x 7 tokens, of which the first says x
    grid = jnp.zeros((len(x), 7, 7, DIMS))
    return grid.at[:, 0, 0].set(x)

  tokens = self_labels.look(
    _model(features=picture), x, jnp.stack([eps[0], -eps[0]]), noise=0.5
  )
  assert tokens.shape == (3, 16 * DIMS)
  np.testing.assert_allclose(tokens[:, :DIMS], alpha * x / 4, rtol=1e-5)
  assert not tokens[:, DIMS:].any()


@pytest.mark.slow
def test_planted_clusters_are_found_and_asked_for():
  x, y = _planted()
  fitted = ctrl_jax.fit_self_labels(
    _model(), x, num=3, key=KEY, num_updates=300
  )
  assert fitted.names == ("cluster 0", "cluster 1", "cluster 2")
  assert fitted.others_fn is None and fitted.metrics["accuracy"] > 0.8

  def log_p(x):
    each = [fitted.reward_fn(x, None, jnp.full(len(x), k)) for k in range(3)]
    return jnp.stack(each, axis=1)

  fresh, known = _planted(seed=1)
  found = log_p(jnp.asarray(fresh))
  np.testing.assert_allclose(jnp.exp(found).sum(1), 1, rtol=1e-4)
  own = self_labels.matched(known, np.asarray(found.argmax(1)), 3)
  assert np.mean(own[known] == found.argmax(1)) > 0.97
  uphill = jax.grad(lambda x: log_p(x)[:, own[0]].sum())(jnp.asarray(fresh))
  away = known != 0
  toward = (uphill[:, 0] - uphill[:, 1:3].max(1))[away]
  assert np.mean(toward > 0) > 0.9  # where the first centre is


@pytest.mark.slow
def test_no_cluster_takes_all_where_there_are_none():
  x = np.random.default_rng(0).normal(size=(800, DIMS)).astype(np.float32)
  fitted = ctrl_jax.fit_self_labels(
    _model(), x, num=4, key=KEY, num_updates=200
  )
  x = jnp.asarray(x)
  each = [fitted.reward_fn(x, None, jnp.full(800, k)) for k in range(4)]
  shares = np.bincount(np.argmax(each, axis=0), minlength=4) / 800
  assert shares.min() > 0.1 and shares.max() < 0.5


@pytest.mark.parametrize(
  ("changes", "settings", "said"),
  [
    ({"features": None}, {}, "the model has no features of its data"),
    ({"decode": lambda x: x}, {}, "or its samples are decoded"),
    ({"sample_shape": (4,)}, {}, r"x has shape \[60, 6\], samples \[4\]"),
    ({}, {"num": 1}, "num is 1 of 60 examples"),
    ({}, {"num": 7}, "num is 7 of 60 examples, .* 10 examples for each"),
  ],
)
def test_what_cannot_be_clustered_is_told(changes, settings, said):
  x, _ = _planted(60)
  with pytest.raises(ValueError, match=said):
    ctrl_jax.fit_self_labels(
      _model(**changes), x, **{"num": 3, "key": KEY} | settings
    )

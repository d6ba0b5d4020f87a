# SPDX-License-Identifier: Apache-2.0
"""A model that finds its own conditions: invariants, and kinds that are there.

Statistical test: agreement of clusters with planted kinds, where chance has a
half and the bar is 0.95 of 256 examples, 14 deviations away.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import (
  learner,
  policy,
  sde,
  self_guided,
  self_guided_training,
  self_labels,
)
from ctrl_jax.objectives import denoising
from ctrl_jax.pretrained import Pretrained
from experiments.problems import given_model
from experiments.problems.own import vectors
from experiments.runtime import flags

# How Python 3.11's ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
KEY = jax.random.key(0)
NUM, DIMS = 2, 4


class Mlp(nn.Module):
  """Predicts the noise of vectors; every x and t by itself."""

  @nn.compact
  def __call__(self, x, t, control):
    """Returns eps [b, DIMS]."""
    t = jnp.broadcast_to(jnp.reshape(t, (-1, 1)), (len(x), 1))
    h = nn.Dense(64)(jnp.concatenate([x, t], axis=1))
    h = nn.Dense(64)(jnp.tanh(h + nn.Dense(64, use_bias=False)(control)))
    return nn.Dense(DIMS)(jnp.tanh(h))


def _predict(params, x, t, c, control):
  control = jnp.zeros((len(x), 8)) if control is None else control
  return policy.Output(Mlp().apply(params, x, t, control))


PLAIN = Pretrained(
  network=_predict,
  params=None,
  sde=sde.VP(),
  sample_shape=(DIMS,),
  control_dim=8,
  features=lambda params, x, t: x[:, None],  # one token: what is seen
  init=lambda key: Mlp().init(
    key, jnp.zeros((1, DIMS)), 0.0, jnp.zeros((1, 8))
  ),
)


def examples(n, seed=0):
  """x of two kinds, around (1, 1, 1, 1) and its negative, and which."""
  rng = np.random.default_rng(seed)
  kind = rng.integers(2, size=n)
  x = (2 * kind - 1)[:, None] + 0.1 * rng.normal(size=(n, DIMS))
  return jnp.asarray(x, jnp.float32), kind


def trained(model, num_steps, *, begin, batch=32, rate=3e-3):
  """The state after updates on batches of examples."""
  made = self_guided_training.make_learner(
    model, optax.adam(rate), begin=begin, axis_name=None
  )
  update, state = jax.jit(made.update), made.init(model.init(KEY))
  for step in range(num_steps):
    keys = jax.random.split(jax.random.fold_in(KEY, step), batch)
    state, metrics = update(state, keys, {"x": examples(batch, step)[0]})
  return state, metrics


def test_told_nothing_the_network_learns_as_it_does_without():
  model = self_guided.conditioned(PLAIN, NUM)
  state, _ = trained(model, 3, begin=10)
  plain = learner.make_learner(
    denoising.make_loss(PLAIN.eps, PLAIN.sde), optax.adam(3e-3), axis_name=None
  )
  expected = plain.init(model.init(KEY)["network"])
  for step in range(3):
    keys = jax.random.split(jax.random.fold_in(KEY, step), 32)
    batch = {"x": examples(32, step)[0], "c": jnp.zeros(32, jnp.int32)}
    expected, _ = jax.jit(plain.update)(expected, keys, batch)
  for found, of_plain in (
    (state.params, expected.params),
    (state.ema_params, expected.ema_params),
  ):
    for a, b in zip(
      jax.tree.leaves(found["network"]), jax.tree.leaves(of_plain), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  # Nothing was told through it.
  np.testing.assert_array_equal(state.params["map"], model.init(KEY)["map"])


def test_an_update_is_the_same_on_any_devices():
  model = self_guided.conditioned(PLAIN, NUM)
  keys, x = jax.random.split(KEY, 16), examples(16, 9)[0]
  whole = self_guided_training.make_learner(
    model, optax.sgd(0.1), begin=0, axis_name=None
  )
  parts = self_guided_training.make_learner(
    model, optax.sgd(0.1), begin=0, axis_name="devices"
  )
  start = whole.init(model.init(KEY))
  expected, _ = whole.update(start, keys, {"x": x})
  found, _ = jax.vmap(parts.update, in_axes=(None, 0, 0), axis_name="devices")(
    start, keys.reshape(2, 8), {"x": x.reshape(2, 8, DIMS)}
  )
  for a, b in zip(
    jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True
  ):
    np.testing.assert_allclose(a[0], b, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(a[1], b, rtol=2e-4, atol=2e-5)


def test_a_cluster_is_told_by_the_mean_of_what_its_examples_are():
  model = self_guided.conditioned(PLAIN, NUM)
  params = model.init(KEY)
  rng = np.random.default_rng(1)
  means = rng.normal(size=(NUM, self_guided.DIMS)).astype(np.float32)
  share = np.array([0.25, 0.75], np.float32)
  params["moments"] |= {"told": jnp.asarray(share[:, None] * means)}
  params["moments"] |= {"share": jnp.asarray(share)}
  x, t = examples(3)[0], jnp.float32(0.3)
  found = model.eps(params, x, t, jnp.array([1, 0, -1]))
  control = np.stack([means[1], means[0], 0 * means[0]]) @ params["map"]
  expected = PLAIN.network(params["network"], x, t, None, control).eps
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  untold = PLAIN.network(params["network"], x, t, None, None).eps
  for strength in (0.0, 1.0, 2.5):
    e = jnp.asarray(means[np.array([1, 0, 0])])
    guided = self_guided.guided(model, params, e, strength=strength)
    np.testing.assert_allclose(
      guided(x, t)[:2],
      (untold + strength * (expected - untold))[:2],
      rtol=1e-4,
      atol=1e-5,
    )


def test_adapters_change_the_network_alone():
  model = self_guided.conditioned(PLAIN, NUM)
  params = model.init(KEY)
  chosen = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if model.select(
      jax.tree_util.keystr(path, simple=True, separator="/"), leaf
    )
  }
  assert "network/params/Dense_0/kernel" in chosen
  assert not any(name.startswith(("clusters", "map")) for name in chosen)


@pytest.mark.slow
def test_kinds_that_are_there_are_found_and_help():
  model = self_guided.conditioned(PLAIN, NUM)
  state, _ = trained(model, 600, begin=200)
  x, kind = examples(256, 1234)
  params = state.ema_params
  e, cosines = self_guided.embed(model, params, x, jnp.zeros((1, DIMS)))
  np.testing.assert_allclose(jnp.linalg.norm(e, axis=1), 1, rtol=1e-5)
  cluster = np.asarray(cosines).argmax(1)
  agreement = np.mean(cluster == kind)
  assert max(agreement, 1 - agreement) >= 0.95
  for k, centre in enumerate(self_guided.centres(params)):
    np.testing.assert_allclose(centre, e[cluster == k].mean(0), atol=0.1)
  # So much noise leaves open which kind x_t is of.
  t = 0.6
  noise = jax.random.normal(KEY, x.shape)
  x_t = model.sde.alpha(t) * x + model.sde.std(t) * noise

  def error(c):
    found = model.eps(params, x_t, jnp.float32(t), jnp.asarray(c))
    return np.mean((found - noise) ** 2)

  nothing = error(np.full(256, -1))
  assert error(cluster) < 0.7 * nothing < 0.7 * error(1 - cluster)


def test_models_that_cannot_tell_themselves_are_refused():
  for change, message in (
    ({"features": None}, "with features and a control"),
    ({"control_dim": 0}, "with features and a control"),
    ({"conditions": ("a", "b")}, "conditions already"),
  ):
    with pytest.raises(ValueError, match=message):
      self_guided.conditioned(dataclasses.replace(PLAIN, **change), NUM)


def test_the_level_of_noise_is_that_of_some_time():
  assert 0 < self_labels.time_of(PLAIN.sde, self_guided.NOISE) < 1


def _config(*words):
  settings = [f"--config.{word}" for word in ("prior.clusters=3", *words)]
  file = "--config=experiments/configs/own.py:smoke"
  return flags.parse(["run", file, *settings])[0]


def test_a_model_of_ones_own_pictures_has_clusters_as_conditions():
  shape, process = (8, 8, 1), sde.VP()
  made = given_model.untrained(_config("model.patch=2"), shape, process, None)
  assert made.conditions == ("cluster 0", "cluster 1", "cluster 2")
  units = vectors.measure(np.eye(4, dtype=np.float32))
  with pytest.raises(ValueError, match=r"prior\.clusters is 3.*tokens"):
    given_model.untrained(_config(), (4,), process, units)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("prior.clusters=1",), "prior.clusters is 1: use 0, or 2 and more"),
    (("model.path=some.module:model",), "prior.clusters has no effect"),
  ],
)
def test_clusters_that_cannot_be_are_refused(words, message):
  with pytest.raises(ValueError, match=message):
    _config(*words)


def test_problems_that_have_conditions_find_none():
  with pytest.raises(ValueError, match=r"prior\.clusters has no effect"):
    flags.parse(
      [
        "run",
        "--config=experiments/configs/digits.py",
        "--config.prior.clusters=3",
      ]
    )

# SPDX-License-Identifier: Apache-2.0
"""Diff-Instruct: its gradient in closed form, and that it learns a policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import distillation, generators, kernels, sampling, students
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import VP

SDE = VP()
POLICY = kernels.ddim(SDE, kernels.time_grid(16, power=2.0))
TIMES = generators.acting(POLICY)
MEAN = np.array([0.3, -0.5])
COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.4]])


def gaussian(mean, covariance):
  """(c, y) -> the noise prediction of a Gaussian."""
  law = GaussianMixture(np.ones((1, 1)), mean[None], covariance[None])
  return lambda c, y: lambda x, t: law.eps(x, t, None, SDE)


def integral_kl(generator):
  """IKL of x = A z + b from N(MEAN, COVARIANCE), with the weights of (4)."""
  alpha, std = SDE.alpha(TIMES), SDE.std(TIMES)
  wide = (std**2)[:, None, None] * np.eye(2)
  square = (alpha**2)[:, None, None]
  p = square * (generator["a"] @ generator["a"].T)[None] + wide
  q = square * COVARIANCE + wide
  shift = alpha[:, None] * (generator["b"] - MEAN)[None]
  inverse = np.linalg.inv(q)
  trace = jnp.einsum("kij,kji->k", inverse, p)
  far = jnp.einsum("ki,kij,kj->k", shift, inverse, shift)
  kl = 0.5 * (trace + far - jnp.linalg.slogdet(p)[1])
  return jnp.mean(std**2 / (alpha**2 + std**2) * kl)


def test_the_gradient_of_a_linear_generator_is_that_of_the_integral_kl():
  generator = {
    "a": jnp.array([[0.6, 0.2], [-0.1, 0.9]]),
    "b": jnp.array([-0.4, 0.5]),
  }
  own = gaussian(
    np.asarray(generator["b"]), np.asarray(generator["a"] @ generator["a"].T)
  )
  parts, num = 60, 1000

  def loss(generator, key):
    keys = jax.random.split(key, num)
    z = sampling.gaussian(keys, (2,), jnp.float32)
    x = z @ generator["a"].T + generator["b"][None]
    return distillation.surrogate(
      x,
      sampling.fold_in(keys, 1),
      jnp.asarray(TIMES, jnp.float32),
      SDE,
      own,
      gaussian(MEAN, COVARIANCE),
      (None, jnp.zeros(num)),
    )[0]

  slopes = jax.lax.map(
    lambda key: jax.grad(loss)(generator, key),
    jax.random.split(jax.random.key(0), parts),
  )
  expected = jax.grad(integral_kl)(generator)
  for name, found in slopes.items():
    error = found.std(0, ddof=1) / parts**0.5
    z = (found.mean(0) - expected[name]) / error
    assert float(jnp.abs(z).max()) < 4
    # So close that half of it, or none, would be seen.
    assert float(jnp.abs(expected[name]).max()) > 20 * float(error.max())


def shifted(c, y):
  """A policy that moves the prior N(0, I) to (y, 0), and narrows it."""
  rows = [gaussian(np.array([m, 0.0]), np.diag([0.25, 1.0])) for m in (-1, 1)]

  def eps(x, t):
    low, high = (row(None, None)(x, t) for row in rows)
    return jnp.where((y > 0)[:, None], high, low)

  return eps


RATE = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3, b1=0.5))


def learner_of(student, teacher=shifted, rate=RATE, **settings):
  return distillation.make_learner(
    student,
    teacher,
    SDE,
    generators.chain(SDE, TIMES, 1),
    TIMES,
    dict.fromkeys(distillation.PARTS, rate),
    sample_shape=(2,),
    axis_name=None,
    **settings,
  )


@pytest.fixture(scope="module")
def student():
  prior = GaussianMixture(np.ones((1, 1)), np.zeros((1, 2)), np.eye(2)[None])
  model = Pretrained(
    network=lambda params, x, t, c, control: Output(prior.eps(x, t, c, SDE)),
    params={},
    sde=SDE,
    sample_shape=(2,),
  )
  return students.make(model, num_controls=2, dims=32, num_layers=2)


def started(student, learner):
  start = student.init(jax.random.key(0))
  return learner.init(dict.fromkeys(distillation.PARTS, start))


def advance(learner, state, num, batch):
  y = jnp.arange(batch) % 2

  def update(state, _):
    key = jax.random.fold_in(jax.random.key(7), state.step)
    keys = jax.random.split(key, batch)
    return learner.update(state, keys, {"c": 0 * y, "y": y})

  return jax.jit(lambda state: jax.lax.scan(update, state, None, num))(state)


def test_the_auxiliary_network_learns_alone_at_first(student):
  learner = learner_of(student, warmup=2, auxiliary_steps=1)
  start = started(student, learner)
  update = jax.jit(learner.update)
  labels = {"c": jnp.zeros(8, int), "y": jnp.arange(8) % 2}

  def one(state):
    return update(state, jax.random.split(jax.random.key(1), 8), labels)[0]

  after = one(one(start))
  for part, moves in (("generator", False), ("auxiliary", True)):
    changed = jax.tree.map(
      lambda a, b: bool((a != b).any()), start.params[part], after.params[part]
    )
    assert any(jax.tree.leaves(changed)) == moves
  then = one(after)
  assert any(
    jax.tree.leaves(
      jax.tree.map(
        lambda a, b: bool((a != b).any()),
        after.params["generator"],
        then.params["generator"],
      )
    )
  )
  # A pace of 0 is a stand-still.
  held = one(after._replace(pace=jnp.zeros(())))
  jax.tree.map(np.testing.assert_array_equal, held.params, after.params)


def test_a_generator_that_is_paid_ascends_along_its_reward(student):
  # Nothing else moves it where the auxiliary network says what the policy does.
  same = lambda c, y: student.eps_fn(start.params["auxiliary"], c, y)
  settings = {"warmup": 0, "auxiliary_steps": 0, "reward": 0.1}
  keys = jax.random.split(jax.random.key(1), 64)
  labels = {"c": jnp.zeros(64, int), "y": jnp.arange(64) % 2}

  def moved(reward_fn):
    learner = learner_of(
      student, same, optax.sgd(1.0), reward_fn=reward_fn, **settings
    )
    after, told = learner.update(start, keys, labels)
    found = after.params["generator"], start.params["generator"]
    return jax.tree.map(lambda a, b: a - b, *found), told

  start = started(student, learner_of(student))
  held, told = moved(None)
  jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, 0), held)
  assert "log_likelihood" not in told
  change, told = moved(lambda x, c, y: 3 * x[:, 0] + 2 * y)
  twice, _ = moved(lambda x, c, y: 6 * x[:, 0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-4, atol=1e-7),
    change,
    twice,
  )

  def mean(params):
    eps_fn = student.eps_fn(params, None, labels["y"])
    chain = generators.chain(SDE, TIMES, 1)
    drawn = jax.vmap(lambda key: jax.random.split(key)[0])(keys)
    return generators.generate(eps_fn, drawn, chain, SDE, (2,))[-1][:, 0].mean()

  paid = jax.tree.map(jnp.add, start.params["generator"], change)
  assert mean(paid) > mean(start.params["generator"])


@pytest.mark.long
def test_a_generator_learns_where_a_policy_goes(student):
  learner = learner_of(student, warmup=50)
  state, _ = advance(learner, started(student, learner), 800, 128)
  y = jnp.arange(4000) % 2
  keys = jax.random.split(jax.random.key(3), 4000)
  eps_fn = student.eps_fn(state.ema_params["generator"], None, y)
  steps = generators.chain(SDE, TIMES, 1)
  x = generators.generate(eps_fn, keys, steps, SDE, (2,))[-1]
  for label, middle in ((0, -1.0), (1, 1.0)):
    mine = np.asarray(x[y == label])
    np.testing.assert_allclose(mine.mean(0), [middle, 0], atol=0.15)
    np.testing.assert_allclose(mine.std(0), [0.5, 1.0], rtol=0.15)

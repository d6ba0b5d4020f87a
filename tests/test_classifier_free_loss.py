# SPDX-License-Identifier: Apache-2.0
"""The loss of classifier-free guidance: what is dropped, and what is learned.

Data have two labels: a mixture of four Gaussians on a line, one for each (c, y)
with 0 and 1 as labels, so that with labels omitted they are mixtures of fewer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import policy
from ctrl_jax.guidance import classifier_free
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.models.mlp import MLP
from ctrl_jax.sampling import Predictions
from ctrl_jax.sde import VP, diffuse
from tests import linear_gaussian as lg

SDE = VP()
N = 6000
JOINT = np.array([[0.1, 0.4], [0.3, 0.2]])  # of (c, y): they are dependent
CENTRES = np.array([[-2.5, 0.5], [-0.5, 2.5]])
SPREAD = 0.5
PAIRS = [(c, y) for c in (0, 1, -1) for y in (0, 1, -1)]


def _weights():
  """Shares of the four Gaussians under each of PAIRS, [9, 4]."""
  rows = []
  for c, y in PAIRS:
    share = JOINT.copy()
    if c >= 0:
      share[1 - c] = 0
    if y >= 0:
      share[:, 1 - y] = 0
    rows.append(share.ravel() / share.sum())
  return np.array(rows)


LAW = GaussianMixture(
  _weights(), CENTRES.reshape(4, 1), np.full((4, 1, 1), SPREAD**2)
)


def _exact_eps(x, t, c, y):
  """Noise prediction of the data under labels that may be null."""
  return LAW.eps(x, t, 3 * (c % 3) + y % 3, SDE)


def _data(n, seed=5):
  rng = np.random.default_rng(seed)
  c, y = np.divmod(rng.choice(4, n, p=JOINT.ravel()), 2)
  x = CENTRES[c, y] + SPREAD * rng.standard_normal(n)
  return {"x": jnp.float32(x)[:, None], "c": jnp.array(c), "y": jnp.array(y)}


def _policy(eps):
  """A policy of this one function (params, x, t, c, y) -> eps."""

  def pair_fn(params, c, y):
    return lambda x, t: Predictions(eps(params, x, t, c, y), x)

  return policy.Policy(lambda key: {}, pair_fn)


def _per_example(loss_fn, params, batch):
  """Values or gradients of single examples; the loss is their mean."""
  n = len(batch["x"])
  one = lambda key, row: loss_fn(
    params, key[None], jax.tree.map(lambda a: a[None], row)
  )[0]
  return np.asarray(jax.jit(jax.vmap(one))(lg.keys(n), batch))


def _labels_seen(c, y, *, drop_c, drop_y):
  """Labels of each example after dropping, 2 being null."""

  def eps(params, x, t, c, y):
    # Of x_0 = 0 the noise is x / std: the code's square is left as the loss.
    return x / SDE.std(t) + (3.0 * (c % 3) + y % 3)[:, None]

  loss_fn = classifier_free.make_loss(
    _policy(eps), SDE, drop_c=drop_c, drop_y=drop_y, t_min=0.1
  )
  batch = {"x": jnp.zeros((len(c), 1)), "c": c, "y": y}
  found = np.sqrt(_per_example(loss_fn, {}, batch))
  codes = np.rint(found).astype(int)
  np.testing.assert_allclose(found, codes, atol=1e-4)
  return np.divmod(codes, 3)


def test_labels_are_dropped_independently_with_the_stated_probability():
  c, y = jnp.zeros(N, int), jnp.ones(N, int)
  seen_c, seen_y = _labels_seen(c, y, drop_c=0.3, drop_y=0.2)
  assert set(seen_c) == {0, 2} and set(seen_y) == {1, 2}
  no_c, no_y = seen_c == 2, seen_y == 2
  assert abs(lg.z_score(no_c, 0.3)) < 3.5
  assert abs(lg.z_score(no_y, 0.2)) < 3.5
  assert abs(lg.z_score(no_c & no_y, 0.06)) < 3.5
  # Nor have they anything to do with the time or the noise.
  t, eps, _ = diffuse(lg.keys(N), jnp.zeros((N, 1)), SDE, t_min=0.1)
  for other in (np.asarray(t) - 0.55, np.asarray(eps[:, 0])):
    assert abs(lg.z_score((no_c - 0.3) * other, 0.0)) < 3.5
    assert abs(lg.z_score((no_y - 0.2) * other, 0.0)) < 3.5


def test_nothing_is_dropped_at_zero_all_at_one_and_null_labels_stay():
  c, y = (jnp.array(column) for column in zip(*PAIRS, strict=True))
  kept = _labels_seen(c, y, drop_c=0.0, drop_y=0.0)
  np.testing.assert_array_equal(kept, (c % 3, y % 3))
  seen_c, seen_y = _labels_seen(c, y, drop_c=1.0, drop_y=0.0)
  assert np.all(seen_c == 2)
  np.testing.assert_array_equal(seen_y, y % 3)
  with pytest.raises(ValueError, match=r"drop_y must lie in \[0, 1\], got 1.5"):
    classifier_free.make_loss(_policy(_exact_eps), SDE, drop_y=1.5)


def test_loss_is_least_at_the_law_of_the_labels_that_are_left():
  def eps(params, x, t, c, y):
    return _exact_eps(x, t, c, y) + params[c, y][:, None]

  loss_fn = classifier_free.make_loss(_policy(eps), SDE, drop_c=0.4, drop_y=0.4)
  gradient = _per_example(
    jax.grad(loss_fn, has_aux=True), jnp.zeros((3, 3)), _data(N)
  )
  for c, y in PAIRS:
    seen = gradient[gradient[:, c, y] != 0, c, y]
    assert len(seen) > 0.4**2 * JOINT.min() * N  # by chance or by its label
    assert abs(lg.z_score(seen, 0.0)) < 3.5, (c, y)


def test_halves_of_a_batch_average_to_the_whole():
  def eps(params, x, t, c, y):
    return params * x + (c + 2.0 * y)[:, None] * t

  loss_fn = classifier_free.make_loss(_policy(eps), SDE, drop_c=0.5, drop_y=0.5)
  batch, keys = _data(8), lg.keys(8)
  loss, metrics = jax.jit(loss_fn)(jnp.float32(0.3), keys, batch)
  split = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), (keys, batch))
  halves, _ = jax.jit(jax.vmap(loss_fn, (None, 0, 0)))(jnp.float32(0.3), *split)
  np.testing.assert_allclose(np.mean(halves), loss, rtol=1e-6)
  assert halves[0] != halves[1] and metrics["loss"] == loss


def _constant(t):
  return jnp.ones(())


def _mlp_policy():
  """`policy.full` on a small network that knows no null class yet."""
  mlp = MLP((64, 64), 1)

  def network(params, x, t, c, control):
    time = jnp.stack([t, jnp.sin(4 * t), jnp.cos(4 * t), jnp.sin(12 * t)])
    parts = (
      x,
      jnp.broadcast_to(time, (len(x), 4)),
      jax.nn.one_hot(c, 2),  # of -1: zeros
      control,
    )
    features = jnp.concatenate(parts, axis=1)
    return policy.Output(SDE.std(t) * x + mlp.apply(params, features))

  start = mlp.init(jax.random.key(0), jnp.zeros((1, 9)))
  return policy.full(network, start, _constant, num_controls=2, dims=2)


def test_null_labels_train_weights_but_no_embedding():
  tested, n = _mlp_policy(), 8
  loss_fn = classifier_free.make_loss(tested, SDE, drop_c=0.0, drop_y=0.0)

  @jax.jit
  def rows_moved(c, y):
    """Sizes of the gradient: rows of y, rows of c, the weights of x."""
    batch = {**_data(n), "c": c, "y": y}
    control = tested.init(jax.random.key(2))
    gradient = jax.grad(loss_fn, has_aux=True)(control, lg.keys(n), batch)[0]
    first = gradient["change"]["params"]["Dense_0"]["kernel"]
    rows = jnp.abs(gradient["embedding"]), jnp.abs(first[5:7])
    return *(r.max(1) for r in rows), jnp.abs(first[0]).max()

  null = jnp.full(n, -1)
  of_y, of_c, weights = rows_moved(null, null.at[:3].set(1))
  assert of_y[1] > 1e-5 and of_y[0] == of_c.max() == 0 and weights > 1e-5
  of_y, of_c, weights = rows_moved(null.at[3:].set(0), null)
  assert of_c[0] > 1e-5 and of_c[1] == of_y.max() == 0 and weights > 1e-5


@pytest.mark.slow
def test_training_finds_the_law_of_every_subset_of_labels():
  tested, steps, batch_size = _mlp_policy(), 2000, 256
  loss_fn = classifier_free.make_loss(tested, SDE, drop_c=0.3, drop_y=0.3)
  optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
  data = _data(50_000)

  def step(carry, key):
    control, state = carry
    rows = jax.random.randint(key, (batch_size,), 0, len(data["x"]))
    batch = jax.tree.map(lambda a: a[rows], data)
    keys = jax.random.split(jax.random.fold_in(key, 2), batch_size)
    gradient = jax.grad(loss_fn, has_aux=True)(control, keys, batch)[0]
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(control, updates), state), None

  control = tested.init(jax.random.key(1))
  carry = (control, optimizer.init(control))
  (control, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, lg.keys(steps)))(
    carry
  )
  fresh = _data(2000, seed=7)
  t, _, x_t = diffuse(lg.keys(2000, 9), fresh["x"], SDE, t_min=1e-3)

  @jax.jit
  @jax.vmap
  def predictions(x, t, c, y):
    """Learned and exact eps with neither label, y, c, and both: [4] each."""
    c, y = jnp.stack([-1, -1, c, c]), jnp.stack([-1, y, -1, y])
    x = jnp.broadcast_to(x, (4, 1))
    learned = tested.eps_fn(control, c, y)(x, t)
    return learned[:, 0], _exact_eps(x, t, c, y)[:, 0]

  learned, exact = map(np.asarray, predictions(x_t, t, fresh["c"], fresh["y"]))
  distance = ((learned[:, :, None] - exact[:, None, :]) ** 2).mean(0)
  for own in range(4):
    others = np.delete(distance[own], own)
    assert distance[own, own] < 0.2 * others.min()

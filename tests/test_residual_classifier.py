# SPDX-License-Identifier: Apache-2.0
"""The residual classifier: a pure function that learns what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax.datasets import jpeg
from ctrl_jax.models.residual_classifier import ResidualClassifier
from tests import toy_photographs

SMALL = ResidualClassifier(3, widths=(8, 16), strides=(1, 2))


@pytest.fixture(scope="module")
def params():
  return jax.jit(SMALL.init)(jax.random.key(0), jnp.ones((1, 16, 16, 3)))


def draw(seed, *shape):
  return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def test_default_is_the_papers_network():
  network = ResidualClassifier(4)
  x = jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
  kernels = [shapes[f"_Block_{i}"]["Conv_0"]["kernel"].shape for i in range(3)]
  assert kernels == [(3, 3, 3, 64), (3, 3, 64, 128), (3, 3, 128, 256)]
  variables = {"params": shapes}
  _, seen = jax.eval_shape(
    lambda p, x: network.apply(p, x, capture_intermediates=True), variables, x
  )
  outputs = [
    seen["intermediates"][f"_Block_{i}"]["__call__"][0].shape for i in range(3)
  ]
  assert outputs == [
    (2, 512, 512, 64),
    (2, 256, 256, 128),
    (2, 128, 128, 256),
  ]


def test_an_image_is_judged_by_itself_at_any_size(params):
  assert set(params) == {"params"}  # no state beside them
  apply = jax.jit(SMALL.apply)
  for shape in ((16, 16), (12, 20)):
    x = draw(1, 3, *shape, 3)
    logits = apply(params, x)
    assert logits.shape == (3, 3)
    np.testing.assert_allclose(apply(params, x[1:2])[0], logits[1], atol=1e-5)
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_last_hidden_layer_is_sown(params):
  x = draw(2, 3, 16, 16, 3)
  logits, sown = jax.jit(
    lambda p, x: SMALL.apply(p, x, mutable="intermediates")
  )(params, x)
  (features,) = jax.tree.leaves(sown)
  last = params["params"]["Dense_0"]
  assert features.shape == (3, 16)
  expected = features @ last["kernel"] + last["bias"][None]
  np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
def test_half_precision_is_close_and_gradients_are_finite(params):
  half = SMALL.clone(dtype=jnp.bfloat16)
  x = draw(3, 3, 16, 16, 3)
  logits = jax.jit(half.apply)(params, x)
  assert logits.dtype == jnp.float32

  def total(x):
    y = SMALL.apply(params, x)
    return y[:, 0].sum(), y

  both = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, exact), _ = both(x)
  assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
  for image in (x, jnp.zeros_like(x), 3 * x):
    assert np.isfinite(both(image)[1]).all()


def test_what_does_not_fit_is_refused():
  x, key = jnp.ones((1, 8, 8, 3)), jax.random.key(0)
  for widths, message in (((12,), "multiples of 8"), ((8, 8), "zip")):
    network = ResidualClassifier(2, widths=widths, strides=(1,))
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(network.init, key, x)


@pytest.mark.slow
def test_it_learns_the_size_of_jpeg_files():
  pictures = [toy_photographs.pixels(16, 16, seed) for seed in range(600)]
  x = jnp.float32(np.stack(pictures)) / 127.5 - 1
  size = jpeg.size(x)
  y = (size > np.median(size)).astype(np.int32)
  network = ResidualClassifier(2, widths=(8, 16), strides=(1, 2))
  optimizer = optax.adam(3e-3)
  state = jax.jit(network.init)(jax.random.key(0), x[:1])

  @jax.jit
  def update(state, momenta, rows):
    def loss(state):
      log_p = jax.nn.log_softmax(network.apply(state, x[rows]))
      return -jnp.take_along_axis(log_p, y[rows][:, None], 1).mean()

    gradient = jax.grad(loss)(state)
    change, momenta = optimizer.update(gradient, momenta)
    return optax.apply_updates(state, change), momenta

  y = jnp.asarray(y)
  momenta = optimizer.init(state)
  for step in range(100):
    rows = np.random.default_rng(step).integers(0, 400, 32)
    state, momenta = update(state, momenta, rows)
  right = jax.jit(network.apply)(state, x[400:]).argmax(-1) == y[400:]
  assert right.mean() > 0.85  # guessing: 0.5 with standard error 0.035

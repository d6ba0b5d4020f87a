# SPDX-License-Identifier: Apache-2.0
"""Students: the pre-trained model at first, and of y what they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import students
from ctrl_jax.models.dit import DiT
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import VP
from tests import toy_control as toy

C = jnp.array([0, 1, 1])
T = jnp.float32(0.4)
DIT = DiT(num_classes=2, dims=8, num_layers=1, num_heads=2)
PRIOR = GaussianMixture(
  np.full((2, 1), 1.0), np.array([[0.3, -0.5]]), np.eye(2)[None]
)


def of_pictures():
  """A network that takes a control."""

  def network(params, x, t, c, control):
    return Output(DIT.apply(params, x, t, c, control))

  x = jnp.zeros((1, 4, 4, 1))
  params = DIT.init(jax.random.key(0), x, jnp.zeros(1), C[:1])
  return Pretrained(
    network=network,
    params=toy.perturbed(params),
    sde=VP(),
    sample_shape=(4, 4, 1),
    conditions=("a", "b"),
    control_dim=8,
  )


def of_vectors():
  """A formula, which takes none and has no parameters."""

  def network(params, x, t, c, control):
    return Output(PRIOR.eps(x, t, c, VP()))

  return Pretrained(
    network=network,
    params={},
    sde=VP(),
    sample_shape=(2,),
    conditions=("a", "b"),
  )


@pytest.mark.parametrize("make", [of_pictures, of_vectors])
@pytest.mark.parametrize(
  ("num_controls", "y"), [(3, jnp.array([0, 1, 2])), (0, jnp.arange(3.0))]
)
def test_what_is_new_begins_as_nothing_and_knows_y_later(make, num_controls, y):
  model = make()
  student = students.make(
    model, num_controls=num_controls, units=(1.0, 2.0), dims=8, num_layers=1
  )
  params = student.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (3, *model.sample_shape))
  expected = model.reference_fn(C)(x, T)
  found = student.eps_fn(params, C, y)(x, T)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

  moved = toy.perturbed(params)
  own, others = (
    student.eps_fn(moved, C, asked)(x, T) for asked in (y, y[::-1])
  )
  changed = jnp.abs(own - others).reshape(3, -1).max(1)
  assert changed[0] > 1e-4 and changed[2] > 1e-4 and changed[1] == 0


def test_a_real_y_is_seen_in_its_deviations():
  model = of_vectors()
  scaled, plain = (
    students.make(model, num_controls=0, units=units, dims=8, num_layers=1)
    for units in ((5.0, 2.0), (0.0, 1.0))
  )
  params = toy.perturbed(plain.init(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (3, 2))
  y = jnp.array([0.0, -1.0, 0.5])
  np.testing.assert_allclose(
    scaled.eps_fn(params, C, 5 + 2 * y)(x, T),
    plain.eps_fn(params, C, y)(x, T),
    rtol=1e-5,
  )

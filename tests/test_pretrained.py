# SPDX-License-Identifier: Apache-2.0
"""A pre-trained model: its network at its own parameters, or at others."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.policy import Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import VP


def _network(params, x, t, c, control):
  conditions = 0.0 if c is None else c[:, None]
  return Output(params["gain"] * x + t + conditions)


MODEL = Pretrained(
  network=_network, params={"gain": 2.0}, sde=VP(), sample_shape=(3,)
)


def test_the_reference_is_the_network_at_its_own_parameters_given_c():
  x, c = jnp.arange(6.0).reshape(2, 3), jnp.array([10, 20])
  found = MODEL.reference_fn(c)(x, jnp.float32(0.5))
  np.testing.assert_array_equal(found, [[10.5, 12.5, 14.5], [26.5, 28.5, 30.5]])
  np.testing.assert_array_equal(
    MODEL.eps({"gain": 3.0}, x, jnp.float32(0.5), None), 3 * x + 0.5
  )


def test_other_parameters_are_another_model():
  other = MODEL.with_params({"gain": 0.0})
  x = jnp.ones((2, 3))
  np.testing.assert_array_equal(
    other.reference_fn(None)(x, jnp.zeros(())), 0 * x
  )
  assert MODEL.params == {"gain": 2.0} and other.sde is MODEL.sde


def test_a_model_without_conditions_has_one():
  assert (MODEL.conditions, MODEL.num_conditions) == ((), 1)


@pytest.mark.parametrize(
  ("field", "value"),
  [("conditions", 6), ("conditions", "cat"), ("sample_shape", 3)],
)
def test_a_number_where_names_or_sizes_belong_is_told_at_once(field, value):
  # Not made: the types of its fields are checked in tests, and there alone.
  model = types.SimpleNamespace(conditions=("a",), sample_shape=(3,))
  Pretrained.__post_init__(model)
  setattr(model, field, value)
  with pytest.raises(ValueError, match=f"^{field} "):
    Pretrained.__post_init__(model)

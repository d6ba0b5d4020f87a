# SPDX-License-Identifier: Apache-2.0
"""The steps of Stable Diffusion 3 along its flow, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion_3.schedule import Schedule

# What stands in the files of 3 and 3.5.
FILE = {
  "_class_name": "FlowMatchEulerDiscreteScheduler",
  "_diffusers_version": "0.30.3",
  "base_image_seq_len": 256,
  "base_shift": 0.5,
  "max_image_seq_len": 4096,
  "max_shift": 1.15,
  "num_train_timesteps": 1000,
  "shift": 3.0,
  "use_dynamic_shifting": False,
}
SCHEDULE = Schedule.from_json(FILE)


def test_times_by_hand():
  # shift(1 / 1000) = 3 / 1002, and of (1 + 3 / 1002) / 2 = 1005 / 2004 it is
  # 3015 / 4014; then the least is shifted again, and the end.
  found = SCHEDULE.times(3)
  expected = [2997 / 2998, 3015 / 4014, 9 / 1008, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  np.testing.assert_allclose(SCHEDULE.times(1), [2997 / 2998, 0])
  assert float(SCHEDULE.steps(jnp.float32(0.5))) == 500
  unshifted = Schedule(num_train_timesteps=10)
  np.testing.assert_allclose(unshifted.times(4), [0.9, 0.7, 0.4, 0.1, 0])


def test_without_noise_steps_are_eulers():
  kernel = SCHEDULE.kernel(28, eta=0.0)
  times = np.append(kernel.times, 0.0)
  rng = np.random.default_rng(0)
  x, u = rng.normal(size=(2, 5))
  for t, after, a, b in zip(
    *(times[:-1], times[1:], kernel.x_coef, kernel.eps_coef), strict=True
  ):
    eps = SCHEDULE.eps(jnp.asarray(u), jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(a * x + b * eps, x + (after - t) * u, atol=1e-4)
  assert not kernel.std.any()
  assert kernel.start_std == kernel.times[0]


def test_with_noise_all_steps_but_the_last_can_be_controlled():
  kernel = SCHEDULE.kernel(28)
  assert (kernel.std[:-1] > 0).all() and kernel.std[-1] == 0
  assert np.isfinite(kernel.kl_weight).all()


def test_a_velocity_of_known_noise_gives_that_noise():
  rng = np.random.default_rng(1)
  x0, eps = rng.normal(size=(2, 7))
  x, t = 0.7 * x0 + 0.3 * eps, jnp.float32(0.3)
  found = SCHEDULE.eps(jnp.asarray(eps - x0), jnp.asarray(x), t)
  np.testing.assert_allclose(found, eps, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"_class_name": "DDIMScheduler"}, "supported is FlowMatchEulerDiscrete"),
    ({"use_dynamic_shifting": True}, "use_dynamic_shifting is True; supported"),
    ({"shift_terminal": 0.1}, "shift_terminal is 0.1"),
    ({"use_karras_sigmas": True}, "use_karras_sigmas is True"),
    ({"shift": 0}, "shift 0.0; needed are 2 or more, and a positive"),
    ({"num_train_timesteps": 1}, "num_train_timesteps is 1 and"),
    ({"num_train_timesteps": 0}, "num_train_timesteps is 0; needed is 1"),
  ],
)
def test_another_scheduler_is_refused(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    Schedule.from_json(FILE | changes)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_steps", [0, 1000, 1001])
def test_more_steps_than_there_are_are_refused(num_steps):
  with pytest.raises(ValueError, match="num_steps must lie|take fewer"):
    SCHEDULE.kernel(num_steps)

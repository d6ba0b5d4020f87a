# SPDX-License-Identifier: Apache-2.0
"""scheduler_config.json to alpha_bar, time grids and DDIM kernels."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels
from ctrl_jax.stable_diffusion import schedule
from ctrl_jax.stable_diffusion.schedule import Schedule

SD15 = {
  "_class_name": "PNDMScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}


def make(**changes) -> Schedule:
  return Schedule.from_json({**SD15, **changes})


def test_stable_diffusion_15_has_its_known_figures() -> None:
  ours = make()
  assert ours.sde.alpha_bar[0] == pytest.approx(1 - 0.00085, rel=1e-12)
  # sqrt((1 - alpha_bar) / alpha_bar) of the last step: k-diffusion's
  # sigma_max of this model, known to four digits.
  last = ours.sde.alpha_bar[-1]
  assert ((1 - last) / last) ** 0.5 == pytest.approx(14.6146, abs=1e-4)
  np.testing.assert_array_equal(ours.timesteps(50), np.arange(981, 0, -20))


@pytest.mark.parametrize(
  ("spacing", "expected"),
  [
    ("leading", [751, 501, 251, 1]),
    ("trailing", [999, 749, 499, 249]),
    ("linspace", [999, 666, 333, 0]),
  ],
)
def test_four_steps_of_a_thousand(spacing: str, expected: list[int]) -> None:
  ours = make(timestep_spacing=spacing)
  assert ours.timesteps(4).tolist() == expected


def test_the_leading_kernel_is_ddim_on_one_grid() -> None:
  ours = make()
  grid = np.append(np.arange(982, 1, -20), 1) / 1000
  expected = kernels.ddim(ours.sde, grid, eta=0.7)
  for found, wanted in zip(ours.kernel(50, eta=0.7), expected, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_one_step_has_half_of_the_kl_weight() -> None:
  # Posteriors given x_0 and x_0' differ by half the gain of the signal-to-noise
  # ratio times |x_0 - x_0'|^2, and x_0 - x_0' is eps' - eps over the root of
  # the ratio at the start.
  ours = make()
  alpha_bar = np.array(ours.sde.alpha_bar)
  ratio = (alpha_bar / (1 - alpha_bar))[[*ours.timesteps(50), 0]]
  weight = (ratio[1:] / ratio[:-1] - 1) / 2
  np.testing.assert_allclose(ours.kernel(50).kl_weight, weight, rtol=1e-6)
  share = weight / weight.sum()
  assert share.argmax() == 48 and f"{share[48]:.0%}" == "49%"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 3, 50, 999])
def test_steps_keep_the_marginals(spacing: str, num_steps: int) -> None:
  # x_t = alpha x_0 + std eps and the true eps: x_t' must have alpha', std'.
  ours = make(timestep_spacing=spacing, set_alpha_to_one=True, steps_offset=0)
  step = ours.timesteps(num_steps)
  assert len(step) == num_steps
  assert step[0] <= 999 and step[-1] >= 0 and np.all(np.diff(step) < 0)
  table = np.append(ours.sde.alpha_bar, 1.0)  # [-1]: alpha_bar = 1
  after = np.maximum(step - 1000 // num_steps, -1)
  kernel = ours.kernel(num_steps, eta=1.0)
  signal = kernel.x_coef * np.sqrt(table[step])
  np.testing.assert_allclose(signal, np.sqrt(table[after]), rtol=1e-9)
  mean = kernel.x_coef * np.sqrt(1 - table[step]) + kernel.eps_coef
  noise = mean**2 + kernel.std**2
  np.testing.assert_allclose(noise, 1 - table[after], rtol=1e-9, atol=1e-12)


def test_where_sampling_ends() -> None:
  # At the first training step a control can act to the last; at alpha_bar = 1
  # the last step has no noise.
  for spacing in ("leading", "trailing"):
    assert np.all(make(timestep_spacing=spacing).kernel(50).std > 0)
  ends_clean = make(set_alpha_to_one=True).kernel(50).std
  assert np.all(ends_clean[:-1] > 0) and ends_clean[-1] == 0


def test_the_network_sees_whole_training_steps() -> None:
  ours = make()
  index = jax.jit(ours.steps)
  step = np.arange(1000)
  np.testing.assert_array_equal(index(jnp.float32((step + 1) / 1000)), step)
  kernel = ours.kernel(50)
  found = index(jnp.asarray(kernel.times, jnp.float32))
  np.testing.assert_array_equal(found, ours.timesteps(50))
  between = index(jnp.float32(0.50025))
  np.testing.assert_allclose(between, 499.25, atol=1e-3)


def test_v_of_known_noise_gives_that_noise() -> None:
  ours = make(prediction_type="v_prediction")
  x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
  t = jnp.float32(0.3)
  alpha, std = ours.sde.alpha(t), ours.sde.std(t)
  v = alpha * eps - std * x0
  found = ours.eps(v, alpha * x0 + std * eps, t)
  np.testing.assert_allclose(found, eps, rtol=1e-5, atol=1e-6)
  assert make().eps(v, x0, t) is v
  found = make(prediction_type="sample").eps(x0, alpha * x0 + std * eps, t)
  np.testing.assert_allclose(found, eps, rtol=1e-5, atol=1e-5)


def test_the_cosine_schedule_is_that_of_its_paper() -> None:
  ours = make(beta_schedule="squaredcos_cap_v2", num_train_timesteps=4000)
  # Of equation (17): f(t) / f(0) with f(t) = cos^2((t + s) / (1 + s) pi / 2).
  f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  for step in (0, 1, 1999, 3900):
    expected = f((step + 1) / 4000) / f(0)
    assert ours.sde.alpha_bar[step] == pytest.approx(expected, rel=1e-9)
  # The last would be 0, and is cut.
  assert ours.sde.alpha_bar[-1] == pytest.approx(1e-3 * ours.sde.alpha_bar[-2])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"clip_sample": True}, "clip_sample is True; supported: False"),
    ({"thresholding": True}, "thresholding is True"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
    ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
    ({"beta_schedule": "sigmoid"}, "'linear', 'scaled_linear'"),
    ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values"),
    ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, "alpha_bar"),
  ],
)
def test_what_would_go_wrong_is_refused(changes: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message) as error:
    make(**changes)
  assert "\n" not in str(error.value)


def test_absent_fields_have_the_defaults_of_ddim() -> None:
  ours = Schedule.from_json({"clip_sample": False})
  np.testing.assert_allclose(
    ours.sde.alpha_bar, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  )
  assert ours == Schedule(sde=ours.sde)
  # DDIM clips unless told otherwise, PNDM cannot.
  with pytest.raises(ValueError, match="clip_sample"):
    Schedule.from_json({})
  assert Schedule.from_json({"_class_name": "PNDMScheduler"}) == ours


@pytest.mark.parametrize(
  ("changes", "num_steps", "message"),
  [
    ({}, 0, r"num_steps must lie in \[1, 1000\], got 0"),
    ({}, 1001, "got 1001"),
    ({}, 1000, "begin at step 1000, beyond the last, 999"),
    ({"steps_offset": 0}, 50, "stands still"),
    ({"timestep_spacing": "linspace"}, 50, "stands still"),
  ],
)
def test_impossible_samplers_are_refused(
  changes: dict, num_steps: int, message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    make(**changes).kernel(num_steps)


def test_load_names_the_file(tmp_path: pathlib.Path) -> None:
  file = tmp_path / "scheduler_config.json"
  with pytest.raises(FileNotFoundError, match=r"no scheduler_config\.json in"):
    schedule.load(tmp_path)
  file.write_text(json.dumps(SD15))
  assert schedule.load(tmp_path) == make()
  file.write_text(json.dumps({**SD15, "clip_sample": True}))
  with pytest.raises(ValueError, match=r"scheduler_config\.json: clip_sample"):
    schedule.load(tmp_path)
  file.write_text("{")
  with pytest.raises(ValueError, match="not valid JSON"):
    schedule.load(tmp_path)

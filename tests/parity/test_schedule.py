# SPDX-License-Identifier: Apache-2.0
"""Schedules and DDIM steps against diffusers' own scheduler."""

import json
import pathlib

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax import predictions
from ctrl_jax.stable_diffusion import schedule

# scheduler_config.json of Stable Diffusion 1.5; 2.1 differs in two fields.
SD15 = {
  "_class_name": "PNDMScheduler",
  "_diffusers_version": "0.6.0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
  "clip_sample": False,
}
SD21 = {
  **SD15,
  "_class_name": "DDIMScheduler",
  "prediction_type": "v_prediction",
}
SDXL = {
  **SD15,
  "_class_name": "EulerDiscreteScheduler",
  "interpolation_type": "linear",
  "timestep_spacing": "leading",
  "use_karras_sigmas": False,
}
CONFIGS = {
  "sd15": SD15,
  "sd21": SD21,
  "sdxl": SDXL,
  "to_one": {**SD15, "set_alpha_to_one": True, "steps_offset": 0},
  "trailing": {**SD15, "timestep_spacing": "trailing"},
  "linspace": {
    **SD15,
    "timestep_spacing": "linspace",
    "set_alpha_to_one": True,
  },
  "sample": {**SD15, "prediction_type": "sample"},
  "cosine": {**SD15, "beta_schedule": "squaredcos_cap_v2"},
  "linear": {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "num_train_timesteps": 700,
  },
  "trained_betas": {
    **SD15,
    "num_train_timesteps": 60,
    "trained_betas": np.geomspace(1e-4, 0.2, 60).tolist(),
  },
}
SHAPE = (2, 4, 8, 8)


def both(
  folder: pathlib.Path, config: dict
) -> tuple[schedule.Schedule, diffusers.DDIMScheduler]:
  """Our schedule and their scheduler, from one and the same file."""
  (folder / "scheduler_config.json").write_text(json.dumps(config))
  theirs = diffusers.DDIMScheduler.from_pretrained(folder)
  return schedule.load(folder), theirs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_steps", [50, 7])
def test_every_step_is_theirs(
  tmp_path: pathlib.Path, name: str, num_steps: int
) -> None:
  ours, theirs = both(tmp_path, CONFIGS[name])
  theirs.set_timesteps(num_steps)
  kernel = ours.kernel(num_steps, eta=1.0)
  rng = np.random.default_rng(0)
  worst = 0.0
  for k, step in enumerate(theirs.timesteps):
    x, output, z = rng.standard_normal((3, *SHAPE), np.float32)
    if name == "sample":  # a prediction from which the noise is of order one
      alpha, std = (f(kernel.times[k]) for f in (ours.sde.alpha, ours.sde.std))
      x = (alpha * output + std * x).astype(np.float32)
    expected = theirs.step(
      torch.tensor(output),
      step,
      torch.tensor(x),
      eta=1.0,
      variance_noise=torch.tensor(z),
    ).prev_sample.numpy()
    t = jnp.float32(kernel.times[k])
    eps = ours.eps(jnp.asarray(output), jnp.asarray(x), t)
    a, b, s = (jnp.float32(c[k]) for c in kernel.columns[1:])
    error = np.abs(a * x + b * eps + s * z - expected).max()
    worst = max(worst, error / np.abs(expected).max())
  assert worst <= 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_theirs_for_every_number_of_steps(
  tmp_path: pathlib.Path, spacing: str
) -> None:
  ours, theirs = both(tmp_path, {**SD15, "timestep_spacing": spacing})
  for num_steps in range(1, 1000):
    theirs.set_timesteps(num_steps)
    expected = theirs.timesteps.numpy()
    # Rounding gives their "trailing" a step of index -1 now and then.
    expected = expected[: len(expected) - (expected[-1] < 0)]
    np.testing.assert_array_equal(ours.timesteps(num_steps), expected)


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_noised_data_is_theirs(tmp_path: pathlib.Path, name: str) -> None:
  ours, theirs = both(tmp_path, CONFIGS[name])
  x, noise = np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32)
  for i in (0, 1, 500, 999):
    t = (i + 1) / 1000
    step, x_t, eps = torch.tensor([i, i]), torch.tensor(x), torch.tensor(noise)
    expected = theirs.add_noise(x_t, eps, step).numpy()
    noised = ours.sde.alpha(t) * x + ours.sde.std(t) * noise
    np.testing.assert_allclose(noised, expected, rtol=1e-4, atol=1e-5)
    # A network that predicts v perfectly predicts eps perfectly.
    v = theirs.get_velocity(x_t, eps, step).numpy()
    found = predictions.eps_from_v(
      ours.sde, jnp.asarray(v), jnp.asarray(noised), jnp.float32(t)
    )
    np.testing.assert_allclose(found, noise, rtol=1e-4, atol=1e-5)

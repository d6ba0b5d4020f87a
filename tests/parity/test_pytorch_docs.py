# SPDX-License-Identifier: Apache-2.0
"""docs/pytorch.md runs as printed, in order, and does what it says."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import ctrl_jax
from ctrl_jax import tuning
from ctrl_jax.objectives import ctrl

pytestmark = pytest.mark.slow  # all of them wait for what is printed
TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(ERROR,) = re.findall(r"```text\nValueError: (.*)\n", TEXT)
SMALL = {
  "num_updates": 60,
  "num_steps": 8,
  "batch_size": 64,
  "num_reference": 1000,
  "widths": (16,),
  "progress": False,
}


def fit(network: torch.nn.Module) -> None:
  """The noise of N(0, I), by what makes a diffusion model of anything."""
  generator = torch.Generator().manual_seed(0)
  draw = functools.partial(torch.randn, 512, 2, generator=generator)
  optimizer = torch.optim.Adam(network.parameters(), 1e-2)
  sde = ctrl_jax.VP()
  for _ in range(400):
    t = torch.rand(512, generator=generator)
    alpha, std = (
      torch.from_numpy(np.asarray(f(t.numpy()), np.float32))[:, None]
      for f in (sde.alpha, sde.std)
    )
    noise = draw()
    loss = ((network(alpha * draw() + std * noise, t) - noise) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.fixture(scope="module")
def documented():
  """What the printed code leaves behind, its trainings cut short."""
  names: dict = {}
  torch.manual_seed(0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ctrl_jax, "tune", functools.partial(tuning.tune, **SMALL))
    tuned = []
    for index, block in enumerate(BLOCKS):
      exec(compile(block, "pytorch.md", "exec"), names)
      if not index:
        fit(names["theirs"])  # whose weights the arrays in `state` share
      if "ctrl_jax.tune(" in block:
        tuned.append(names["tuned"])
  return names, tuned


def test_the_converted_network_is_the_one_that_was_trained(documented):
  names, _ = documented
  x, t = np.array([[1.0, -2.0]], np.float32), np.float32(0.5)
  expected = names["theirs"](torch.from_numpy(x), torch.full((1,), t))
  found = names["model"].reference_fn(None)(jnp.asarray(x), jnp.asarray(t))
  np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)
  # And it has learned what the noise of N(0, I) is.
  exact = float(ctrl_jax.VP().std(t)) * x
  np.testing.assert_allclose(found, exact, atol=0.2)


def test_every_tuning_of_the_page_closes_most_of_the_gap(documented):
  _, tuned = documented
  assert len(tuned) == 4
  for found in tuned:
    certified = found.certificate(jax.random.key(7), num_reference=4000)
    gap = certified.certificate.gap
    assert gap.mean < 0.3 * certified.before + 3 * gap.stderr


def test_the_gradient_that_is_asked_of_the_host_is_that_of_the_values(
  documented,
):
  names, _ = documented
  x, y = jnp.array([[0.3, -0.7], [1.1, 0.2]]), jnp.array([0, 1])
  found = jax.grad(lambda x: names["log_p"](x, y).sum())(x)
  step = 1e-2
  for axis, move in enumerate(step * jnp.eye(2)):
    ahead, back = (names["log_p"](x + d * move[None], y) for d in (1, -1))
    rise = (ahead - back) / (2 * step)
    np.testing.assert_allclose(found[:, axis], rise, atol=1e-4)


def test_the_error_is_the_one_that_is_printed(documented):
  names, _ = documented
  with pytest.raises(ValueError, match=re.escape(ERROR)):
    tuning.tune(
      names["model"],
      names["reward"],
      num_controls=2,
      key=jax.random.key(0),
      objective=ctrl.make_learner,
      **SMALL,
    )

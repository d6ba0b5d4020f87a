# SPDX-License-Identifier: Apache-2.0
"""CTRL's loss of Stable Diffusion 3, against one in PyTorch in float64.

The same test of the U-Nets is `test_ctrl_loss`.
"""

from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from ctrl_jax import policy, rewards, sampling
from ctrl_jax.diffusers import prompted
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import ctrl
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.stable_diffusion_3 import prompts
from tests.parity import toy_sd3 as toy
from tests.parity.against_torch import from_torch, to_torch
from tests.parity.test_ctrl_loss import (
  BAR,
  CLASSIFIER,
  CONTROL,
  GAMMA,
  LABELS,
  PROMPTS,
  RANK,
  C,
  Y,
  relative,
)

LOSS_BAR = 1e-4
STEPS, GUIDANCE, SIZE = 4, 4.5, 16
# Of every attention: of the image, and of the text that attends with it.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj"]
TARGETS += ["add_v_proj", "to_add_out"]


class Problem(NamedTuple):
  """What both compute with."""

  folder: Any
  model: Pretrained
  kernel: Kernel
  control: dict[str, Any]  # {"embedding", "lora"}, nowhere zero
  classifier: np.ndarray  # [pixels, labels]
  keys: jax.Array

  def policy(self) -> policy.Policy:
    return policy.lora(
      self.model.network,
      self.model.params,
      lambda t: jnp.ones(()),
      num_controls=LABELS,
      dims=self.model.control_dim,
      rank=RANK,
      select=self.model.select,
    )


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> Problem:
  folder = tmp_path_factory.mktemp("loss") / "pipeline"
  toy.write_pipeline(folder, "sd35", with_t5=False)
  parts = prompted.read(folder)
  encoded = prompts.encode(folder, PROMPTS, length=4)
  rng = np.random.default_rng(1)
  found = Problem(
    folder,
    prompted.pretrained(
      *(PROMPTS, parts, encoded), size=SIZE, guidance=GUIDANCE
    ),
    parts.schedule.kernel(STEPS, eta=1.0),
    {},
    CLASSIFIER * rng.standard_normal((3 * SIZE**2, LABELS)),
    jax.random.split(jax.random.key(2), len(Y)),
  )
  control = jax.tree.map(
    lambda v: jnp.asarray(CONTROL * rng.standard_normal(v.shape), v.dtype),
    found.policy().init(jax.random.key(0)),
  )
  return found._replace(control=control)


def ours(problem: Problem, backprop_steps: int) -> tuple[float, Any]:
  """Loss and its gradient."""
  model = problem.model
  reward = rewards.classifier(
    lambda x: (
      model.decoded(x).reshape(len(x), -1)
      @ jnp.asarray(problem.classifier, jnp.float32)
    )
  )
  loss_fn = ctrl.make_loss(
    problem.policy(),
    reward,
    problem.kernel,
    gamma=GAMMA,
    sample_shape=model.sample_shape,
    backprop_steps=backprop_steps,
  )
  batch = {"c": C, "y": Y, "log_evidence": jnp.zeros(len(Y))}
  batch = jax.tree.map(jnp.asarray, batch)

  @jax.jit
  @jax.value_and_grad
  def loss(control):
    return loss_fn(control, problem.keys, batch)[0]

  value, gradient = loss(problem.control)
  return float(value), gradient


class Theirs:
  """The negative of objective (1) of `objectives.ctrl`, in diffusers' terms."""

  def __init__(self, problem: Problem):
    network = diffusers.SD3Transformer2DModel
    load = lambda kind, part: (
      kind.from_pretrained(problem.folder / part).double().requires_grad_(False)
    )
    self.frozen = load(network, "transformer")
    self.tuned = load(network, "transformer")
    self.vae = load(diffusers.AutoencoderKL, "vae")
    self.tuned.add_adapter(
      peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
    )
    self.tuned.double()
    self.adapters = self._fill(problem.control["lora"])
    self.table = to_torch(problem.control["embedding"]).double()
    self.table.requires_grad_(True)
    take = lambda leaf: to_torch(leaf).double()
    params = problem.model.params
    self.prompt, self.empty = (
      [take(leaf) for leaf in params[name][:2]] for name in ("prompts", "empty")
    )
    self.classifier = torch.tensor(problem.classifier)

  def _fill(self, adapters: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Their parameter by ours, (path, side); all have values then."""
    named = dict(self.tuned.named_parameters())
    found = {}
    for path, pair in adapters.items():
      module = path.removeprefix("transformer/").removesuffix("/kernel")
      for side, value in pair.items():
        name = f"{module.replace('/', '.')}.lora_{side.upper()}.default.weight"
        found[path, side] = named.pop(name)
        with torch.no_grad():
          found[path, side].copy_(to_torch(value.T))
    assert not [name for name in named if "lora" in name]
    return found

  def velocity(self, network, x, t, labels) -> torch.Tensor:
    """The guided prediction; labels go with prompts only."""
    steps = torch.full((len(x),), 1000 * t).double()
    call = lambda tokens, pooled: (
      network(
        hidden_states=x,
        timestep=steps,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
      ).sample
    )
    tokens, pooled = (leaf[C] for leaf in self.prompt)
    if labels is not None:
      pooled = pooled + self.table[labels]
    empty = [leaf.expand(len(x), *leaf.shape) for leaf in self.empty]
    without = call(*empty)
    return without + GUIDANCE * (call(tokens, pooled) - without)

  def __call__(self, x, noise, times, labels, backprop_steps) -> torch.Tensor:
    """Mean over chains that start at x and meet noise [K, B, ...]."""
    kl, ends = torch.zeros(len(x)).double(), [*times[1:], 0.0]
    for k, (t, s) in enumerate(zip(times, ends, strict=True)):
      if k == len(times) - backprop_steps:
        x, kl = x.detach(), kl.detach()
      # The forward process on from s: x_t = a x_s + sqrt(t^2 - (a s)^2) z.
      a = (1 - t) / (1 - s)
      spread = s * (1 - (a * s / t) ** 2) ** 0.5

      def mean(u, x=x, t=t, s=s, spread=spread):
        clean, eps = x - t * u, x + (1 - t) * u
        return (1 - s) * clean + (s**2 - spread**2) ** 0.5 * eps

      plain = mean(self.velocity(self.frozen, x, t, None))
      if s == 0:  # no noise, no control
        x = plain
        continue
      tuned = mean(self.velocity(self.tuned, x, t, labels))
      laws = [torch.distributions.Normal(m, spread) for m in (tuned, plain)]
      step_kl = torch.distributions.kl_divergence(*laws)
      kl = kl + step_kl.sum((1, 2, 3))
      x = tuned + spread * noise[k]
    config = self.vae.config
    scaled = x / config.scaling_factor + config.shift_factor
    images = self.vae.decode(scaled).sample
    logits = images.permute(0, 2, 3, 1).flatten(1) @ self.classifier
    log_p = torch.log_softmax(logits, 1)[torch.arange(len(x)), labels]
    return (kl - GAMMA * log_p).mean()


@pytest.fixture(scope="module")
def theirs(problem) -> Theirs:
  return Theirs(problem)


@pytest.mark.slow
def test_loss_and_gradients(problem, theirs):
  kernel, backprop_steps = problem.kernel, STEPS - 1
  start = sampling.initial_noise(
    problem.keys, problem.model.sample_shape, kernel
  )
  path = sampling.rollout(
    *(problem.keys, start, kernel),
    lambda x, t: jnp.zeros_like(x),
    keep_path=True,
  ).path
  noise = torch.stack([to_torch(z).double() for z in path.noise])
  value, gradient = ours(problem, backprop_steps)

  theirs.tuned.zero_grad()
  theirs.table.grad = None
  expected = theirs(
    to_torch(start).double(),
    noise,
    kernel.times.tolist(),
    torch.tensor(Y),
    backprop_steps,
  )
  expected.backward()
  error = abs(value - expected.item()) / abs(expected.item())
  print(f"loss {expected.item():.4g}: relative error {error:.1e}")
  assert error <= LOSS_BAR
  errors = {}
  for (path, side), found in theirs.adapters.items():
    mine = np.asarray(gradient["lora"][path][side]).T
    if found.grad.any():
      errors[path, side] = relative(mine, from_torch(found.grad))
    else:  # of what the text asks last of all, and nobody reads
      assert path.endswith("add_q_proj/kernel") and not mine.any()
  errors["label"] = relative(
    np.asarray(gradient["embedding"]), from_torch(theirs.table.grad)
  )
  worst = max(errors, key=errors.get)
  print(f"gradients: relative error {errors[worst]:.1e} at most, of {worst}")
  assert errors[worst] <= BAR

# SPDX-License-Identifier: Apache-2.0
r"""CTRL's update in PyTorch, after the authors' own, as a worker.

A step calls a network four times, each call recomputed in the backward pass:
the controlled and the pre-trained U-Net, each with the empty prompt and with
the image's. Labels are diffusers' class embedding and the adapters PEFT's, on
a copy of the U-Net. A step with eta = 1 is the posterior of the forward process
(Ho et al., arXiv 2006.11239, equations 6 and 7) between the training steps i
and j,

    q(x_j | x_i, x_0) = N(mean, var),    a = alpha_bar_i / alpha_bar_j,
    mean = [sqrt(alpha_bar_j) (1 - a) x_0 + sqrt(a) (1 - alpha_bar_j) x_i]
           / (1 - alpha_bar_i),
    var = (1 - alpha_bar_j) (1 - a) / (1 - alpha_bar_i),

at the x_0 that each network predicts, and the KL divergence of two steps is
that of `torch.distributions`, summed over a latent's dimensions, which the
authors average.
"""

import copy
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import peft
import torch
from torch.utils.checkpoint import checkpoint

from experiments.benchmarks.peers import classifiers, worker

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def to_torch(x: Any) -> torch.Tensor:
  """A tensor, images with channels first."""
  x = torch.from_numpy(np.array(x))
  return x.movedim(-1, -3) if x.ndim >= 4 else x


def adapter_name(path: str, side: str) -> str:
  """What PEFT calls one matrix of an adapter."""
  module = path.removeprefix("unet/").removesuffix("/kernel").replace("/", ".")
  return f"{module}.lora_{side.upper()}.default.weight"


def adapted(
  unet: torch.nn.Module, table: torch.Tensor, *, rank: int
) -> torch.nn.Module:
  """A copy of a U-Net with new adapters, and labels of which the last is null.

  The table has the vectors of labels [labels, d].
  """
  unet = copy.deepcopy(unet)
  unet.add_adapter(
    peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
  )
  rows = torch.cat([table, torch.zeros_like(table[:1])])
  unet.class_embedding = torch.nn.Embedding.from_pretrained(rows, freeze=False)
  return unet


def controlled(
  unet: torch.nn.Module, embedding: Any, adapters: Mapping[str, Any]
) -> torch.nn.Module:
  """An adapted U-Net with these values.

  embedding has the vectors of labels [labels, d], adapters are
  {path: {"a" [in, rank], "b" [rank, out]}}.
  """
  rank = next(iter(adapters.values()))["b"].shape[0]
  unet = adapted(unet, to_torch(embedding), rank=rank)
  named = dict(unet.named_parameters())
  with torch.no_grad():
    for path, pair in adapters.items():
      for side, value in pair.items():
        named.pop(adapter_name(path, side)).copy_(to_torch(value.T))
  left = [name for name in named if "lora" in name]
  if left:
    raise ValueError(f"adapters without values: {left}")
  return unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The negative of objective (1) of `objectives.ctrl`.

  Attributes:
    tuned: the U-Net that is trained.
    frozen: the pre-trained one.
    vae: the autoencoder.
    scheduler: for its training steps, and those that K steps visit.
    prompts: what the U-Net is told of the prompt of each chain, by name.
    empty: likewise, of the empty prompt.
    logits_fn: of labels, [B, labels], by images [B, 3, H, W].
    null: index of the null label.
  """

  tuned: torch.nn.Module
  frozen: torch.nn.Module
  vae: torch.nn.Module
  scheduler: diffusers.DDIMScheduler
  prompts: Mapping[str, Any]
  empty: Mapping[str, Any]
  logits_fn: Callable[[torch.Tensor], torch.Tensor]
  null: int
  guidance: float
  gamma: float

  def eps(
    self,
    unet: torch.nn.Module,
    x: torch.Tensor,
    step: int,
    labels: torch.Tensor | None,
  ) -> torch.Tensor:
    """The guided prediction; labels go with prompts only."""
    time = torch.tensor(step, device=x.device)

    def call(prompts, labels):
      return checkpoint(
        lambda x: unet(x, time, class_labels=labels, **prompts).sample,
        x,
        use_reentrant=False,
      )

    nothing = None if labels is None else torch.full_like(labels, self.null)
    without = call(self.empty, nothing)
    return without + self.guidance * (call(self.prompts, labels) - without)

  def transition(
    self, eps: torch.Tensor, x: torch.Tensor, step: int
  ) -> torch.distributions.Normal:
    """The law of the next state."""
    # From float64, for 1 - a below takes the last digits of it.
    alpha_bar = torch.cumprod(1 - self.scheduler.betas.double(), 0)
    stride = len(alpha_bar) // self.scheduler.num_inference_steps
    here, there = alpha_bar[step], alpha_bar[max(step - stride, 0)]
    x_0 = (x - torch.sqrt(1 - here) * eps) / torch.sqrt(here)
    a = here / there
    mean = torch.sqrt(there) * (1 - a) * x_0 + torch.sqrt(a) * (1 - there) * x
    var = (1 - there) * (1 - a) / (1 - here)
    deviation = torch.sqrt(var).to(x)
    return torch.distributions.Normal(mean / (1 - here), deviation)

  def __call__(
    self,
    x: torch.Tensor,
    noise: torch.Tensor,
    labels: torch.Tensor,
    *,
    backprop_steps: int,
  ) -> torch.Tensor:
    """Mean over chains that start at x and meet noise [K, B, ...]."""
    kl = x.new_zeros(len(x))
    for k, step in enumerate(self.scheduler.timesteps.tolist()):
      if k == len(noise) - backprop_steps:
        x, kl = x.detach(), kl.detach()
      tuned = self.transition(self.eps(self.tuned, x, step, labels), x, step)
      plain = self.transition(self.eps(self.frozen, x, step, None), x, step)
      step_kl = torch.distributions.kl_divergence(tuned, plain)
      kl = kl + step_kl.sum((1, 2, 3))
      x = tuned.mean + tuned.stddev * noise[k]
    images = self.vae.decode(x / self.vae.config.scaling_factor).sample
    log_p = torch.log_softmax(self.logits_fn(images), 1)
    return (kl - self.gamma * log_p[torch.arange(len(x)), labels]).mean()


def load(folder: pathlib.Path) -> tuple[Loss, tuple[torch.Tensor, ...]]:
  """The loss of `problem`'s folder, and start, noise and labels of chains."""
  settings = json.loads((folder / "settings.json").read_text())
  with np.load(folder / "arrays.npz") as arrays:
    found = {name: arrays[name] for name in arrays}
  adapters: dict[str, dict[str, Any]] = {}
  for name, value in found.items():
    if name.startswith("control:lora:"):
      _, _, path, side = name.split(":")
      adapters.setdefault(path, {})[side] = value

  def part(kind, name):
    network = kind.from_pretrained(folder / "model" / name)
    return network.eval().requires_grad_(False)

  frozen = part(diffusers.UNet2DConditionModel, "unet")
  scheduler = diffusers.DDIMScheduler.from_pretrained(
    folder / "model" / "scheduler"
  )
  scheduler.set_timesteps(settings["steps"])
  embedding = found["control:embedding"]
  prompts, empty = to_torch(found["prompts"]), to_torch(found["empty"])
  loss = Loss(
    tuned=controlled(frozen, embedding, adapters),
    frozen=frozen,
    vae=part(diffusers.AutoencoderKL, "vae"),
    scheduler=scheduler,
    prompts={"encoder_hidden_states": prompts},
    empty={"encoder_hidden_states": empty.expand_as(prompts)},
    logits_fn=classifiers.of_arrays(found, settings["strides"]),
    null=len(embedding),
    guidance=settings["guidance"],
    gamma=settings["gamma"],
  )
  chains = tuple(to_torch(found[n]) for n in ("start", "noise", "labels"))
  return loss, chains


def main() -> None:
  """Serves the update of a folder, see `problem`."""
  folder = pathlib.Path(sys.argv[1])
  settings = json.loads((folder / "settings.json").read_text())
  loss_fn, (start, noise, labels) = load(folder)
  trained = [p for p in loss_fn.tuned.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"])

  def once() -> worker.Answer:
    optimizer.zero_grad()
    loss = loss_fn(start, noise, labels, backprop_steps=len(noise))
    loss.backward()
    # What the null label would learn is dropped.
    loss_fn.tuned.class_embedding.weight.grad[-1] = 0
    norm = torch.nn.utils.clip_grad_norm_(trained, settings["clip_norm"])
    optimizer.step()
    return {"loss": loss.item(), "gradient_norm": norm.item()}

  worker.serve(once)


if __name__ == "__main__":
  main()

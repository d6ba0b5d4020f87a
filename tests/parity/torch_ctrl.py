# SPDX-License-Identifier: Apache-2.0
r"""The loss of CTRL in PyTorch, in float64.

Written from the mathematics, and from what diffusers and PEFT have of it:
labels are diffusers' class embedding and the adapters PEFT's, on a copy of the
U-Net. A step with eta = 1 is the posterior of the forward process (Ho et al.,
arXiv 2006.11239, equations 6 and 7) between the training steps i and j,

    q(x_j | x_i, x_0) = N(mean, var),    a = alpha_bar_i / alpha_bar_j,
    mean = [sqrt(alpha_bar_j) (1 - a) x_0 + sqrt(a) (1 - alpha_bar_j) x_i]
           / (1 - alpha_bar_i),
    var = (1 - alpha_bar_j) (1 - a) / (1 - alpha_bar_i),

at the x_0 that each network predicts, and the KL divergence of two steps is
that of `torch.distributions`.
"""

import copy
import dataclasses

import diffusers
import peft
import torch

from tests.parity.test_unet import to_torch

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def adapter_name(path: str, side: str) -> str:
  """What PEFT calls one matrix of an adapter."""
  module = path.removeprefix("unet/").removesuffix("/kernel").replace("/", ".")
  return f"{module}.lora_{side.upper()}.default.weight"


def controlled(unet: torch.nn.Module, control: dict) -> torch.nn.Module:
  """A copy of a U-Net with adapters and labels; the last label is null."""
  unet = copy.deepcopy(unet)
  rank = next(iter(control["lora"].values()))["b"].shape[0]
  unet.add_adapter(
    peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
  )
  table = to_torch(control["embedding"])
  rows = torch.cat([table, torch.zeros_like(table[:1])])
  unet.class_embedding = torch.nn.Embedding.from_pretrained(rows, freeze=False)
  named = dict(unet.named_parameters())
  with torch.no_grad():
    for path, pair in control["lora"].items():
      for side, value in pair.items():
        named.pop(adapter_name(path, side)).copy_(to_torch(value.T))
  assert not any("lora" in name for name in named)  # none is left at its start
  return unet.double()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The negative of objective (1) of `objectives.ctrl`.

  Attributes:
    tuned: the U-Net that is trained.
    frozen: the pre-trained one.
    vae: the autoencoder.
    scheduler: for its training steps, and those that K steps visit.
    prompts: encoded, of each chain [B, tokens, d].
    empty: the empty prompt [tokens, d].
    classifier: logits of labels by values of pixels [pixels, labels].
  """

  tuned: torch.nn.Module
  frozen: torch.nn.Module
  vae: torch.nn.Module
  scheduler: diffusers.DDIMScheduler
  prompts: torch.Tensor
  empty: torch.Tensor
  classifier: torch.Tensor
  guidance: float
  gamma: float

  def eps(self, unet, x, step, labels):
    """The guided prediction; labels go with prompts only."""
    given, empty = {}, {}
    if labels is not None:
      null = torch.full_like(labels, self.classifier.shape[1])
      given, empty = {"class_labels": labels}, {"class_labels": null}
    context = self.empty.expand_as(self.prompts)
    without = unet(x, step, context, **empty).sample
    conditional = unet(x, step, self.prompts, **given).sample
    return without + self.guidance * (conditional - without)

  def transition(self, eps, x, step):
    """The law of the next state."""
    # From float64, for 1 - a below takes the last digits of it.
    alpha_bar = torch.cumprod(1 - self.scheduler.betas.double(), 0)
    stride = len(alpha_bar) // self.scheduler.num_inference_steps
    here, there = alpha_bar[step], alpha_bar[max(step - stride, 0)]
    x_0 = (x - torch.sqrt(1 - here) * eps) / torch.sqrt(here)
    a = here / there
    mean = torch.sqrt(there) * (1 - a) * x_0 + torch.sqrt(a) * (1 - there) * x
    var = (1 - there) * (1 - a) / (1 - here)
    return torch.distributions.Normal(mean / (1 - here), torch.sqrt(var))

  def __call__(self, x, noise, labels, *, backprop_steps):
    """Mean over chains that start at x and meet noise [K, B, ...]."""
    kl = torch.zeros(len(x), dtype=x.dtype)
    for k, step in enumerate(self.scheduler.timesteps.tolist()):
      if k == len(noise) - backprop_steps:
        x, kl = x.detach(), kl.detach()
      tuned = self.transition(self.eps(self.tuned, x, step, labels), x, step)
      plain = self.transition(self.eps(self.frozen, x, step, None), x, step)
      step_kl = torch.distributions.kl_divergence(tuned, plain)
      kl = kl + step_kl.sum((1, 2, 3))
      x = tuned.mean + tuned.stddev * noise[k]
    images = self.vae.decode(x / self.vae.config.scaling_factor).sample
    logits = images.permute(0, 2, 3, 1).flatten(1) @ self.classifier
    log_p = torch.log_softmax(logits, 1)[torch.arange(len(x)), labels]
    return (kl - self.gamma * log_p).mean()

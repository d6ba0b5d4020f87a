# SPDX-License-Identifier: Apache-2.0
"""CTRL's update in PyTorch at the size of Stable Diffusion 1.5, on one GPU.

It is that of `peers.pytorch`, of random weights: the frozen ones in bfloat16,
adapters, labels, states and the reward's classifier in float32, under autocast.
`accelerator` starts it with a JSON file of its `settings` and with "eager" or
"compiled", for which `torch.compile` makes kernels of both U-Nets. Every update
is a line of JSON: its seconds, and the most bytes of the GPU in use so far.
"""

import argparse
import contextlib
import json
import pathlib
import time
from typing import Any

import diffusers
import torch

from experiments.benchmarks.accelerator import turns
from experiments.benchmarks.peers import classifiers, pytorch

UPDATES = 3  # the first warms up

Settings = dict[str, Any]


def loss(settings: Settings, device: str) -> pytorch.Loss:
  """The update's loss, of weights drawn on a device."""

  def part(kind, name):
    network = kind.from_config(settings[name]).to(device, torch.bfloat16)
    return network.eval().requires_grad_(False)

  frozen = part(diffusers.UNet2DConditionModel, "unet")
  scheduler = diffusers.DDIMScheduler.from_config(settings["scheduler"])
  scheduler.set_timesteps(settings["steps"])
  width = 4 * settings["unet"]["block_out_channels"][0]
  table = torch.zeros(settings["labels"], width, device=device)
  tuned = pytorch.adapted(frozen, table, rank=settings["rank"])
  for parameter in tuned.parameters():
    if parameter.requires_grad:
      parameter.data = parameter.data.to(device, torch.float32)
  judge = classifiers.Random(
    settings["widths"], settings["strides"], settings["labels"]
  )
  context = (settings["tokens"], settings["unet"]["cross_attention_dim"])
  draw = lambda *shape: torch.randn(*shape, device=device)
  prompts = draw(settings["batch"], *context)
  return pytorch.Loss(
    tuned=tuned,
    frozen=frozen,
    vae=part(diffusers.AutoencoderKL, "vae"),
    scheduler=scheduler,
    prompts={"encoder_hidden_states": prompts},
    empty={"encoder_hidden_states": draw(*context).expand_as(prompts)},
    logits_fn=judge.to(device).requires_grad_(False),
    null=settings["labels"],
    guidance=settings["guidance"],
    gamma=settings["gamma"],
  )


def main() -> None:
  """Makes the updates."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("settings", type=pathlib.Path)
  parser.add_argument("how", choices=("eager", "compiled"))
  given = parser.parse_args()
  settings = json.loads(given.settings.read_text(encoding="utf-8"))
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  loss_fn = loss(settings, device)
  if given.how == "compiled":
    loss_fn.tuned.compile()
    loss_fn.frozen.compile()
  trained = [p for p in loss_fn.tuned.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3)
  batch, steps = settings["batch"], settings["steps"]
  shape = (batch, 4, settings["side"] // 8, settings["side"] // 8)
  labels = torch.arange(batch, device=device) % settings["labels"]
  for number in range(UPDATES):
    # Compiling takes minutes, in which others may be timed.
    compiles = number == 0 and given.how == "compiled"
    with contextlib.nullcontext() if compiles else turns.alone():
      start = torch.randn(shape, device=device)
      noise = torch.randn((steps, *shape), device=device)
      began = time.perf_counter()
      optimizer.zero_grad()
      with torch.autocast(device, torch.bfloat16):
        value = loss_fn(start, noise, labels, backprop_steps=steps)
      value.backward()
      optimizer.step()
      found = {"loss": value.item()}  # waits for the GPU
      found["seconds"] = time.perf_counter() - began
    if device == "cuda":
      found["peak_memory"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main()

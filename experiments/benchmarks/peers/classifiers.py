# SPDX-License-Identifier: Apache-2.0
"""The network of `models.residual_classifier` in PyTorch."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F


class Random(torch.nn.Module):
  """One of random weights: images -> logits, in float32."""

  def __init__(self, widths: list[int], strides: list[int], labels: int):
    """One block for each width and stride."""
    super().__init__()
    self.blocks, before = torch.nn.ModuleList(), 3
    for width, stride in zip(widths, strides, strict=True):
      conv, norm = torch.nn.Conv2d, torch.nn.GroupNorm
      branch = torch.nn.Sequential(
        conv(before, width, 3, stride, 1),
        norm(width // 8, width),
        torch.nn.SiLU(),
        conv(width, width, 3, 1, 1),
        norm(width // 8, width),
      )
      skip = torch.nn.Sequential(
        conv(before, width, 1, stride), norm(width // 8, width)
      )
      self.blocks.append(torch.nn.ModuleList([branch, skip]))
      before = width
    self.head = torch.nn.Linear(before, labels)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, labels] of images [B, 3, H, W]."""
    with torch.autocast(x.device.type, enabled=False):
      x = x.float()
      for branch, skip in self.blocks:
        x = F.silu(branch(x) + skip(x))
      return self.head(x.mean((2, 3)))


def of_arrays(
  arrays: Mapping[str, np.ndarray], strides: list[int]
) -> Callable[[torch.Tensor], torch.Tensor]:
  """The network of `models.residual_classifier`, by its parameters."""
  params = {
    name: torch.from_numpy(arrays[name])
    for name in arrays
    if name.startswith("classifier:")
  }

  def convolve(x, block, index, stride):
    name = f"classifier:_Block_{block}"
    kernel = params[f"{name}:Conv_{index}:kernel"].permute(3, 2, 0, 1)
    if kernel.shape[-1] == 3:  # padded as Flax does
      x = F.pad(x, (2 - stride, 1, 2 - stride, 1))
    x = F.conv2d(x, kernel, params[f"{name}:Conv_{index}:bias"], stride)
    scale, bias = (
      params[f"{name}:GroupNorm_{index}:{part}"] for part in ("scale", "bias")
    )
    return F.group_norm(x, x.shape[1] // 8, scale, bias, eps=1e-6)

  def logits_fn(x):
    for block, stride in enumerate(strides):
      branch = F.silu(convolve(x, block, 0, stride))
      branch = convolve(branch, block, 1, 1)
      x = F.silu(branch + convolve(x, block, 2, stride))
    kernel = params["classifier:Dense_0:kernel"]
    return x.mean((2, 3)) @ kernel + params["classifier:Dense_0:bias"]

  return logits_fn

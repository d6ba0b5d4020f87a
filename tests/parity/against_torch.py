# SPDX-License-Identifier: Apache-2.0
"""What comparisons with PyTorch's models share."""

import flax.linen as nn
import jax
import numpy as np
import torch
from diffusers.models.normalization import RMSNorm

# A tenth of what is promised. Two float32 networks differ by 1e-6, gradients by
# up to 5e-6; a gelu by tanh instead of erf would make a difference of 1e-4.
BAR = 1e-5


def perturb(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Noise on every parameter, for many start at 0 or 1 and hide faults."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.add_(0.1 * noise)
  return model.eval()


def to_torch(x: jax.Array) -> torch.Tensor:
  """A tensor, images with channels first."""
  x = torch.from_numpy(np.array(x))
  return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def from_torch(x: torch.Tensor) -> np.ndarray:
  """An array, images with channels last."""
  x = x.detach()
  return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def norms_of(theirs: torch.nn.Module) -> dict[str, tuple]:
  """Epsilon and groups of every normalisation, by name."""
  kinds = torch.nn.GroupNorm, torch.nn.LayerNorm, RMSNorm
  return {
    name: (module.eps, getattr(module, "num_groups", None))
    for name, module in theirs.named_modules()
    if isinstance(module, kinds)
  }


def our_norms(network: nn.Module, params, *inputs, **options):
  """What `norms_of` lists, of a network of ours."""
  found = {}

  def note(method, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
      groups = getattr(module, "num_groups", None)
      found[".".join(module.path)] = (module.epsilon, groups)
    return method(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(
      lambda p: network.apply({"params": p}, *inputs, **options), params
    )
  return found


def relative_error(ours, theirs) -> float:
  """Largest difference as a fraction of the largest value of the reference."""
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def check(ours, theirs: torch.Tensor) -> None:
  error = relative_error(ours, from_torch(theirs))
  print(f"relative error {error:.1e}")
  assert error <= BAR

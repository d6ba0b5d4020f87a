# SPDX-License-Identifier: Apache-2.0
"""The aesthetic predictor against PyTorch, converted as its module says."""

import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import torch

from ctrl_jax.models import aesthetic


class Predictor(torch.nn.Module):
  """As published: affine layers, with dropouts between the first four."""

  def __init__(self):
    super().__init__()
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    self.layers = torch.nn.Sequential(
      *(linear(768, 1024), dropout(0.2), linear(1024, 128), dropout(0.2)),
      *(linear(128, 64), dropout(0.1), linear(64, 16), linear(16, 1)),
    )


def command():
  """The program in the module's docstring."""
  return re.search(r'python -c "(.*?)"', aesthetic.__doc__, re.DOTALL)[1]


def test_score_is_that_of_torch_after_the_documented_conversion(tmp_path):
  torch.manual_seed(0)
  predictor = Predictor().eval()
  for parameter in predictor.parameters():
    parameter.data += 0.02 * torch.randn_like(parameter)
  old, new = tmp_path / "linear.pth", tmp_path / "aesthetic.safetensors"
  torch.save(predictor.state_dict(), old)
  subprocess.run([sys.executable, "-c", command(), old, new], check=True)

  embeddings = 10 * torch.randn(20, 768)
  unit = torch.nn.functional.normalize(embeddings, dim=-1)
  with torch.no_grad():
    expected = predictor.layers(unit)[:, 0].numpy()
  found = aesthetic.Aesthetic().apply(
    aesthetic.load(new), jnp.asarray(embeddings.numpy())
  )
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error <= 1e-4

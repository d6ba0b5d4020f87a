# SPDX-License-Identifier: Apache-2.0
"""The aesthetic predictor against PyTorch, converted as its error says."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.models import aesthetic
from tests.parity import toy_export as toy


class Predictor(torch.nn.Module):
  """As published: affine layers, with dropouts between the first four."""

  def __init__(self):
    super().__init__()
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    self.layers = torch.nn.Sequential(
      *(linear(768, 1024), dropout(0.2), linear(1024, 128), dropout(0.2)),
      *(linear(128, 64), dropout(0.1), linear(64, 16), linear(16, 1)),
    )


def test_score_is_that_of_torch_after_the_conversion_as_printed(tmp_path):
  torch.manual_seed(0)
  predictor = Predictor().eval()
  for parameter in predictor.parameters():
    parameter.data += 0.02 * torch.randn_like(parameter)
  # A blank and an apostrophe: shells and Python both take offence.
  file = tmp_path / "it's a head.pth"
  torch.save(predictor.state_dict(), file)
  with pytest.raises(ValueError, match="where torch is installed") as error:
    aesthetic.load(file)
  toy.shell(str(error.value).split("installed: ")[1], tmp_path)

  embeddings = 10 * torch.randn(20, 768)
  unit = torch.nn.functional.normalize(embeddings, dim=-1)
  with torch.no_grad():
    expected = predictor.layers(unit)[:, 0].numpy()
  found = aesthetic.Aesthetic().apply(
    aesthetic.load(file.with_suffix(".safetensors")),
    jnp.asarray(embeddings.numpy()),
  )
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error <= 1e-4

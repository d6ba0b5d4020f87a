# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of peers has in PyTorch besides the loss."""

import jax
import numpy as np
import torch

from ctrl_jax.models.residual_classifier import ResidualClassifier
from experiments.benchmarks.accelerator import __main__ as accelerator
from experiments.benchmarks.peers import classifiers, full_size, problem
from tests.parity import against_torch


def test_the_classifier_is_ours():
  network = ResidualClassifier(4, (16, 8, 24), (1, 2, 2))
  images = jax.random.normal(jax.random.key(0), (3, 12, 16, 3))
  params = network.init(jax.random.key(1), images)["params"]
  drawn = jax.tree.map(
    lambda leaf: np.random.default_rng(leaf.size).standard_normal(
      leaf.shape, np.float32
    ),
    params,
  )
  arrays = problem.named("classifier", drawn)
  logits_fn = classifiers.of_arrays(arrays, [1, 2, 2])
  found = logits_fn(against_torch.to_torch(images))
  assert isinstance(found, torch.Tensor) and found.shape == (3, 4)
  ours = network.apply({"params": drawn}, images)
  assert against_torch.relative_error(ours, found.numpy()) <= 1e-5


def test_the_loss_of_an_accelerator_runs_at_a_small_size():
  settings = accelerator.settings(toy=True)
  torch.manual_seed(0)
  loss_fn = full_size.loss(settings, "cpu")
  noise = torch.randn(3, 2, 4, 8, 8)
  with torch.autocast("cpu", torch.bfloat16):
    value = loss_fn(noise[0], noise, torch.tensor([0, 1]), backprop_steps=3)
  value.backward()
  assert torch.isfinite(value)
  labels = loss_fn.tuned.class_embedding.weight.grad.norm(dim=1)
  # Those of these chains, and the null label of the empty prompt.
  assert (labels[[0, 1, -1]] > 0).all() and not labels[2:-1].any()

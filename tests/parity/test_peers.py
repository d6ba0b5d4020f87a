# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of peers has in PyTorch besides the loss."""

import jax
import numpy as np
import torch

from ctrl_jax.models.residual_classifier import ResidualClassifier
from experiments.benchmarks.peers import classifiers, problem
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

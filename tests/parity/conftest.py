# SPDX-License-Identifier: Apache-2.0
"""Collects nothing where PyTorch is not installed; see `make parity`."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
  collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module", autouse=True)
def same_weights_every_time():
  """Networks that PyTorch initialises are those of the last time."""
  torch = importlib.import_module("torch")
  torch.manual_seed(0)

# SPDX-License-Identifier: Apache-2.0
"""Collects nothing where PyTorch is not installed; see `make parity`."""

import importlib.util

if importlib.util.find_spec("torch") is None:
  collect_ignore_glob = ["test_*.py"]

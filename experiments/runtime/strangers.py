# SPDX-License-Identifier: Apache-2.0
"""Modules of whoever gives a command: their labels, their models."""

import importlib
import os
import sys
import types


def module(name: str) -> types.ModuleType:
  """Imports a module, also from the folder where the command is given.

  Raises:
    ImportError: there is none of this name, or it needs what is not there.
  """
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  return importlib.import_module(name)

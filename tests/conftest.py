# SPDX-License-Identifier: Apache-2.0
"""Sets JAX up for the tests, before anything imports it; shared fixtures.

Four devices on the host, so that every test of parallelism runs anywhere; a
compilation cache beside the code, so that a second run is quick; programs
compiled in a hurry, for most of them run once; and an error where NumPy would
silently promote [batch] against [batch, dims].

Settings go through the environment, where processes that a test starts find
them too, and give way to what is set already.
"""

import os
import pathlib
from collections.abc import Iterator

_DEVICES = "--xla_force_host_platform_device_count"
_CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax"

if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax  # noqa: E402  (reads the settings above)
import pytest  # noqa: E402

from tests import toy_processes  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

CONFIG = """
from experiments.configs import base

def get_config(variant=""):
  config = base.get_config()
  config.experiment = "toy"
  config.variant = variant
  return config
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Slow files first, lest one worker has them left when others are done."""
  items.sort(key=lambda item: not {"slow", "long"} & set(item.keywords))


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
  """No process outlives the test that started it."""
  yield
  toy_processes.kill_all()


@pytest.fixture
def config_file(tmp_path: pathlib.Path) -> pathlib.Path:
  """A config that is the schema with a name."""
  path = tmp_path / "toy.py"
  path.write_text(CONFIG)
  return path

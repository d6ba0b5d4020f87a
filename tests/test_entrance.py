# SPDX-License-Identifier: Apache-2.0
"""`import ctrl_jax`: what it names, and what it leaves alone."""

import importlib.metadata
import subprocess
import sys
import textwrap

import pytest

import ctrl_jax
from ctrl_jax import controlled, flow, labels, pretrained, sde, tuning
from ctrl_jax.diffusers import loading


def test_names_are_those_of_the_modules():
  assert ctrl_jax.tune is tuning.tune
  assert ctrl_jax.fit_labels is labels.fit
  assert ctrl_jax.load is controlled.load
  assert ctrl_jax.Controlled is controlled.Controlled
  assert ctrl_jax.Pretrained is pretrained.Pretrained
  assert (ctrl_jax.VP, ctrl_jax.VE) == (sde.VP, sde.VE)
  assert ctrl_jax.Flow is flow.Flow
  assert ctrl_jax.diffusers.load is loading.load
  assert ctrl_jax.__version__ == importlib.metadata.version("ctrl-jax")


def test_every_name_is_found_and_no_other():
  assert set(ctrl_jax.__all__) < set(dir(ctrl_jax))
  for name in ctrl_jax.__all__:
    assert getattr(ctrl_jax, name).__doc__
  with pytest.raises(AttributeError, match="no attribute 'tuned'"):
    ctrl_jax.tuned  # noqa: B018


@pytest.mark.slow
def test_importing_is_cheap_and_leaves_devices_to_the_user():
  code = """
    import sys
    import ctrl_jax
    assert "jax" not in sys.modules
    ctrl_jax.tune, ctrl_jax.load
    import jax
    # An error once a backend has been initialised.
    jax.config.update("jax_num_cpu_devices", 3)
    assert len(jax.devices("cpu")) == 3
  """
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    check=True,
    env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
  )

# SPDX-License-Identifier: Apache-2.0
"""Where somebody's own model comes from, and mistakes in saying so."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import own
from experiments.problems import given_model

MODULE = """
import jax.numpy as jnp
from ctrl_jax import VP, Pretrained
from ctrl_jax.policy import Output

def make(shape=(8, 8, 3), make_params=dict, grow=0):
  def network(params, x, t, c, control):
    shift = 0.0 if c is None else c[:, None, None, None].astype(x.dtype)
    eps = VP().std(t) * (x - VP().alpha(t) * shift)
    return Output(jnp.pad(eps, ((0, 0), (0, grow), (0, 0), (0, 0))))

  return Pretrained(
    network=network, params=make_params(), sde=VP(), sample_shape=shape,
    conditions=("zero", "one", "two"),
  )

def without(): return make(make_params=lambda: None)
def taller(): return make(grow=1)
def number(): return 3
value = make()
"""


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
  """A module of a stranger's, in the current folder."""
  name = f"stranger_{tmp_path.name.replace('-', '_')}"
  (tmp_path / f"{name}.py").write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  return name


def _config(path: str, conditions: tuple[str, ...] = ()):
  config = own.get_config("smoke")
  config.model.update(path=path, conditions=conditions)
  return config


@pytest.mark.parametrize("name", ["make", "value"])
def test_a_function_of_ones_own_gives_the_model(module, name, tmp_path):
  source = given_model.find(_config(f"{module}:{name}"), tmp_path / "run")
  assert source.model.conditions == ("zero", "one", "two")
  assert given_model.picture_shape(source.model) == (8, 8, 3)
  assert len(source.kernel.times) == _config("").kernel.num_steps


def test_some_conditions_alone_are_those_of_the_model(module, tmp_path):
  path = f"{module}:make"
  whole = given_model.find(_config(path), tmp_path / "a").model
  some = given_model.find(_config(path, ("two", "zero")), tmp_path / "b").model
  assert some.conditions == ("two", "zero")
  x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.float32(0.4)
  np.testing.assert_array_equal(
    some.eps({}, x, t, jnp.array([0, 1])),
    whole.eps({}, x, t, jnp.array([2, 0])),
  )


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("nothing", "has no attribute 'nothing'"),
    ("number", "which gives a int and not a ctrl_jax.Pretrained"),
    ("without", "its model has params = None"),
    ("taller", r"of samples \(2, 8, 8, 3\) its network makes \(2, 9, 8, 3\)"),
  ],
)
def test_a_function_that_gives_no_model_is_refused(
  module, name, said, tmp_path
):
  with pytest.raises(ValueError, match=said):
    given_model.find(_config(f"{module}:{name}"), tmp_path / "run")


def test_a_path_to_nothing_is_refused(tmp_path):
  with pytest.raises(ValueError, match="No module named 'no_such_module'"):
    given_model.find(_config("no_such_module:make"), tmp_path)
  with pytest.raises(FileNotFoundError, match="there is no such folder"):
    given_model.find(_config(str(tmp_path / "gone")), tmp_path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="neither the model_index.json"):
    given_model.find(_config(str(tmp_path / "empty")), tmp_path)


def test_a_condition_that_the_model_lacks_is_refused(module, tmp_path):
  config = _config(f"{module}:make", ("three",))
  with pytest.raises(ValueError, match="has 'three': this model has zero, one"):
    given_model.find(config, tmp_path / "run")


def test_another_model_at_the_same_path_is_refused(module, tmp_path):
  (tmp_path / "run").mkdir()
  given_model.find(_config(f"{module}:make"), tmp_path / "run")
  (tmp_path / "run" / "results.json").touch()  # it has begun
  other = MODULE.replace(
    "make_params=dict", "make_params=lambda: {'w': jnp.ones(2)}"
  )
  (tmp_path / f"{module}_b.py").write_text(other)
  with pytest.raises(ValueError, match="_b:make has changed since the run"):
    given_model.find(_config(f"{module}_b:make"), tmp_path / "run")

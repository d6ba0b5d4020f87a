# SPDX-License-Identifier: Apache-2.0
"""The optimisers of a control."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from experiments.configs import base, digits
from experiments.training import algorithms
from tests import toy_control as toy


def _first_step(optimizer: str, gradient: jax.Array) -> np.ndarray:
  config = base.get_config().control
  config.update(optimizer=optimizer, warmup_steps=1, head_learning_rate=1.0)
  transform = algorithms.control_optimizer(config)
  params = {"head": {"kernel": jnp.zeros_like(gradient)}}
  state = transform.init(params)
  for _ in range(2):  # the rate of the first is 0
    update, state = transform.update(
      {"head": {"kernel": gradient}}, state, params
    )
  return np.asarray(update["head"]["kernel"], np.float64)


def test_muon_moves_as_far_along_every_singular_direction():
  rng = np.random.default_rng(0)
  left, _ = np.linalg.qr(rng.standard_normal((12, 4)))
  right, _ = np.linalg.qr(rng.standard_normal((4, 4)))
  sizes = np.array([30.0, 3.0, 1.0, 0.5])
  gradient = jnp.asarray(left * sizes @ right.T, jnp.float32)
  found = {
    name: np.abs(np.diag(left.T @ _first_step(name, gradient) @ right))
    for name in ("adam", "muon")
  }
  assert found["muon"].max() < 2 * found["muon"].min()
  assert found["adam"].max() > 4 * found["adam"].min()


def _counted(slope):
  """A network, slope(t) sin x, that counts its evaluations and derivatives."""
  counts = {"forward": 0, "backward": 0}

  def counting(kind, x):
    def count(x):
      counts[kind] += 1
      return np.asarray(x)

    return jax.pure_callback(
      count, jax.typeof(x), x, vmap_method="broadcast_all"
    )

  def forward(x, t):
    inside = counting("forward", x)
    return slope(t) * jnp.sin(inside), (inside, t)

  def backward(kept, cotangent):
    inside, t = kept
    change = slope(t) * jnp.cos(inside) * counting("backward", cotangent)
    return change, jnp.zeros_like(t)

  network = jax.custom_vjp(lambda x, t: forward(x, t)[0])
  network.defvjp(forward, backward)
  return network, counts


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    *((name, {}) for name in algorithms.MAKE_LEARNER),
    ("reward_weighted", {"behaviour": "payoff"}),
    ("reward_weighted", {"behaviour": "payoff", "likelihood": "denoising"}),
  ],
)
def test_an_update_evaluates_the_network_as_often_as_is_said(name, settings):
  network, counts = _counted(toy.SDE.std)
  control = toy.make_policy()

  def pair_fn(params, c, y):
    tuned = control.pair_fn(params["head"], c, y)

    def pair(x, t):
      eps, near = network(x, t), tuned(x, t)
      return Predictions(eps * (1 + near.eps - near.reference), eps)

    return pair

  policy = Policy(lambda key: {"head": control.init(key)}, pair_fn)
  problem = types.SimpleNamespace(
    kernel=toy.make_kernel(5), sample_shape=toy.SHAPE, sde=toy.SDE
  )
  config = digits.get_config()
  config.control.objective = name
  config.control[name].update(settings)
  learner = algorithms.control_learner(
    problem, policy, toy.reward, config, axis_name=None
  )
  state = learner.init(policy.init(jax.random.key(0)))
  chains = 2 * algorithms.group_size(config.control)
  keys = jax.random.split(jax.random.key(1), chains)
  batch = toy.make_batch(chains)
  ends = settings.get("likelihood") == "denoising"
  batch["drawn"] = jnp.zeros((2, 1)) if ends else jax.random.key_data(keys)
  jax.block_until_ready(learner.update(state, keys, batch))
  found = counts["forward"] + 2 * counts["backward"]
  assert found == algorithms.evaluations(config.control, name, steps=5), counts


def test_an_update_that_can_train_nothing_is_refused_before_anything_costs():
  config = base.mixture_config().unlock()
  problem = types.SimpleNamespace(
    kernel=toy.make_kernel(6), controls=np.arange(3)
  )
  check = lambda devices: algorithms.check(problem, config, devices=devices)
  check(64)
  config.control.ctrl.backprop_steps = 1
  with pytest.raises(ValueError, match=r"control\.ctrl: .* use 2 or more"):
    check(1)
  config.control.objective = "path_consistency"
  check(1)
  config.compare.objectives = ("ctrl",)
  with pytest.raises(ValueError, match=r"control\.ctrl: .* no noise"):
    check(1)
  config.compare.objectives = ()
  config.control.path_consistency.temper = (0.0, 1.0)
  check(32)
  with pytest.raises(ValueError, match="control.path_consistency: the 1 chai"):
    check(64)


def test_paths_are_not_drawn_for_a_real_number():
  config = base.gaussian_config()
  config.control.objective = "reward_weighted"
  config.control.reward_weighted.behaviour = "payoff"
  problem = types.SimpleNamespace(
    kernel=toy.make_kernel(6), controls=np.linspace(-1, 1, 3)
  )
  with pytest.raises(ValueError, match="y is a real number here: use policy"):
    algorithms.check(problem, config, devices=1)


def test_updates_that_a_run_pays_none_of_are_refused():
  """An update of PPO costs nine evaluations a step, one of CTRL four."""
  config = base.mixture_config().unlock()
  problem = types.SimpleNamespace(
    kernel=toy.make_kernel(6), controls=np.arange(3)
  )
  config.compare.objectives = ("ppo",)
  config.control.num_steps = 3
  algorithms.check(problem, config, devices=1)
  config.control.num_steps = 2
  with pytest.raises(ValueError, match="pays for no update of ppo"):
    algorithms.check(problem, config, devices=1)

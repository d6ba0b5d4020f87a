# SPDX-License-Identifier: Apache-2.0
"""Controlled policies: nothing at the start, all of the control afterwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, policy, sampling, steering
from ctrl_jax.models import heads
from ctrl_jax.models.dit import DiT
from ctrl_jax.sde import VP
from tests import linear_gaussian as lg
from tests import toy_control as toy

SHAPE = (4, 4, 1)
DIMS = 8
CONTROLS = 3
KERNEL = kernels.ddim(VP(), kernels.time_grid(4), eta=1.0)
SCALE_FN = policy.scale_at(KERNEL.times, policy.noise_scale(VP(), KERNEL))
NETWORK = DiT(num_classes=2, dims=DIMS, num_layers=1, num_heads=2)
C = jnp.array([0, 1, 1, 0])
Y = jnp.array([0, 1, 2, 2])
NULL = jnp.full(4, -1)


def _network(params, x, t, c, control):
  eps, sown = NETWORK.apply(params, x, t, c, control, mutable="intermediates")
  return policy.Output(eps, sown["intermediates"]["tokens"][0])


@functools.cache
def _pretrained():
  """Parameters of a network that predicts something."""
  with jax.ensure_compile_time_eval():  # the first call may be traced
    x, c = jnp.zeros((1, *SHAPE)), jnp.zeros(1, jnp.int32)
    params = NETWORK.init(jax.random.key(0), x, jnp.zeros(1), c)
    return toy.perturbed({"params": params["params"]})


def _reference(c):
  return lambda x, t: _network(_pretrained(), x, t, c, None).eps


def _reward(x, c, y):
  """Some log-probability with a gradient everywhere."""
  return -((x.mean((1, 2, 3)) - 0.5 * y) ** 2)


def _lora():
  return policy.lora(
    _network,
    _pretrained(),
    SCALE_FN,
    num_controls=CONTROLS,
    dims=DIMS,
    rank=2,
  )


def _full():
  return policy.full(
    _network, _pretrained(), SCALE_FN, num_controls=CONTROLS, dims=DIMS
  )


def _flat(base, num_conditions=2):
  return steering.with_head(
    base,
    heads.FlatHead((16,)),
    _reward,
    VP(),
    SCALE_FN,
    sample_shape=SHAPE,
    num_controls=CONTROLS,
    num_conditions=num_conditions,
  )


def _token(base):
  return steering.with_head(
    base,
    heads.TokenHead((16,)),
    _reward,
    VP(),
    SCALE_FN,
    sample_shape=SHAPE,
    num_controls=CONTROLS,
    num_conditions=2,
    hidden_shape=(4, DIMS),
  )


STEERED = {
  "flat-head": lambda: _flat(policy.frozen(_reference)),
  "token-head": lambda: _token(policy.frozen_network(_network, _pretrained())),
}
POLICIES = {
  "lora": _lora,
  "full": _full,
  "token-head-on-lora": lambda: _token(_lora()),
  **STEERED,
}
ALL = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
HEADS = pytest.mark.parametrize("make", STEERED.values(), ids=STEERED.keys())


def _rollout(tested, control, y):
  keys = lg.keys(4)

  @jax.jit
  def run(control):
    return sampling.rollout(
      keys,
      sampling.initial_noise(keys, SHAPE, KERNEL),
      KERNEL,
      tested.pair_fn(control, C, y),
    )

  return run(control)


@ALL
def test_a_new_control_is_the_reference_exactly(make):
  tested = make()
  out = _rollout(tested, tested.init(jax.random.key(1)), Y)
  np.testing.assert_array_equal(out.step_kl, 0)
  np.testing.assert_array_equal(out.log_ratio, 0)
  plain = _rollout(policy.frozen(_reference), {}, Y)
  np.testing.assert_allclose(out.x, plain.x, rtol=1e-5, atol=1e-5)
  assert np.abs(out.x).max() > 0.1


@ALL
def test_the_reference_does_not_move_with_the_control(make):
  tested = make()
  control = toy.perturbed(tested.init(jax.random.key(1)))
  x, t = jax.random.normal(jax.random.key(2), (4, *SHAPE)), jnp.float32(0.5)
  pair = tested.pair_fn(control, C, Y)(x, t)
  np.testing.assert_allclose(
    pair.reference, _reference(C)(x, t), rtol=1e-5, atol=1e-6
  )
  assert np.all(np.abs(pair.eps - pair.reference).max((1, 2, 3)) > 1e-3)
  alone = tested.eps_fn(control, C, Y)(x, t)
  np.testing.assert_array_equal(alone, pair.eps)


@ALL
def test_a_chain_uses_its_own_label(make):
  tested = make()
  control = toy.perturbed(tested.init(jax.random.key(1)))
  x, t = jax.random.normal(jax.random.key(2), (4, *SHAPE)), jnp.float32(0.5)
  eps = tested.eps_fn(control, C, Y)(x, t)
  other = tested.eps_fn(control, C, Y.at[1].set(0))(x, t)
  moved = np.abs(eps - other).max((1, 2, 3))
  assert moved[1] > 1e-3
  np.testing.assert_allclose(moved[jnp.array([0, 2, 3])], 0, atol=1e-6)


@HEADS
def test_a_head_is_off_for_the_null_label_exactly(make):
  tested = make()
  control = toy.perturbed(tested.init(jax.random.key(1)))
  mixed = jnp.array([-1, 1, -1, 2])
  out = _rollout(tested, control, mixed)
  off = np.asarray(mixed) < 0
  np.testing.assert_array_equal(out.kl[off], 0)
  assert np.all(out.kl[~off] > 0)


@pytest.mark.parametrize("make", [_lora, _full], ids=["lora", "full"])
def test_the_null_label_has_no_embedding(make):
  tested = make()
  start = tested.init(jax.random.key(1))
  only_label = {**start, "embedding": toy.perturbed(start["embedding"])}
  np.testing.assert_array_equal(_rollout(tested, only_label, NULL).kl, 0)
  assert np.all(_rollout(tested, only_label, Y).kl > 0)
  # A change of weights is common to all labels: it stays on.
  control = toy.perturbed(start)
  assert np.all(_rollout(tested, control, NULL).kl > 0)


@ALL
def test_control_is_scaled_by_the_noise_level(make):
  tested = make()
  control = toy.perturbed(tested.init(jax.random.key(1)), size=1e-3)
  x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
  off = tested.pair_fn(control, C, Y)(x, jnp.float32(KERNEL.times[-1]))
  np.testing.assert_array_equal(off.eps, off.reference)  # its step has no noise
  on = tested.pair_fn(control, C, Y)(x, jnp.float32(KERNEL.times[-2]))
  assert np.abs(on.eps - on.reference).max() > 0


@ALL
def test_every_control_parameter_receives_gradient(make):
  tested = make()
  control = toy.perturbed(tested.init(jax.random.key(1)), size=0.1)
  x = jax.random.normal(jax.random.key(2), (4, *SHAPE))

  @jax.jit
  @jax.grad
  def gradient(control):
    found = tested.pair_fn(control, C, Y)(x, jnp.float32(0.7))
    noise = found.squeeze.noise(x) if found.squeeze else 0
    return jnp.sum((found.eps + noise - jnp.cos(x)) ** 2)

  for path, leaf in jax.tree.leaves_with_path(gradient(control)):
    assert 1e-8 < np.abs(leaf).max() < np.inf, path


@ALL
def test_a_new_control_is_not_a_stationary_point(make):
  # Half of the factors start at zero: those are what gradient reaches first.
  tested = make()
  x = jax.random.normal(jax.random.key(2), (4, *SHAPE))

  @jax.jit
  @jax.grad
  def gradient(control):
    eps = tested.eps_fn(control, C, Y)(x, jnp.float32(0.7))
    return jnp.sum((eps - jnp.cos(x)) ** 2)

  for name, group in gradient(tested.init(jax.random.key(1))).items():
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(group)) > 0, name


def test_a_low_rank_control_holds_no_frozen_parameters():
  control = _lora().init(jax.random.key(1))
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert set(control) == {"embedding", "lora"}
  kernels_2d = [
    leaf for leaf in jax.tree.leaves(_pretrained()) if leaf.ndim == 2
  ]
  in_and_out = sum(sum(leaf.shape) for leaf in kernels_2d)
  assert size(control["lora"]) < 2 * in_and_out
  assert policy.frozen(_reference).init(jax.random.key(1)) == {}


def test_a_head_without_conditions_takes_no_c():
  base = policy.frozen(lambda c: lambda x, t: 0.1 * x)
  tested = _flat(base, num_conditions=0)
  control = toy.perturbed(tested.init(jax.random.key(1)))
  x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
  pair = tested.pair_fn(control, None, Y)(x, jnp.float32(0.5))
  assert np.abs(pair.eps - pair.reference).max() > 1e-3


def test_a_token_head_needs_tokens():
  with pytest.raises(ValueError, match="hidden tokens"):
    steering.with_head(
      policy.frozen(_reference),
      heads.TokenHead((16,)),
      _reward,
      VP(),
      SCALE_FN,
      sample_shape=SHAPE,
      num_controls=CONTROLS,
    ).init(jax.random.key(0))

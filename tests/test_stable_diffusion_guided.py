# SPDX-License-Identifier: Apache-2.0
"""Guidance and the control in it, on a small random U-Net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import policy, sampling
from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import guided
from ctrl_jax.stable_diffusion.prompts import Encoded
from ctrl_jax.stable_diffusion.schedule import Schedule
from tests import toy_pipeline as toy
from tests.toy_networks import random_params

UNET = toy.UNET
SCHEDULE = Schedule.from_json(toy.SCHEDULER)
STEP, LABELS, SHAPE = 480, 3, (4, 4, 4)
T = jnp.float32((STEP + 1) / 1000)
C, Y = jnp.array([2, 0, 2]), jnp.array([0, 2, 1])
X = jax.random.normal(jax.random.key(0), (len(C), *SHAPE))
CONTROL = jax.random.normal(jax.random.key(1), (len(C), 128))
NULL = jnp.full(len(C), -1)

_apply = jax.jit(UNET.apply)


@functools.cache
def _params() -> guided.Parameters:
  """Of a network that predicts something, and three prompts."""
  keys = jax.random.split(jax.random.key(2))
  empty = jax.random.normal(keys[0], (5, toy.WIDTH))
  return {
    "unet": random_params(UNET, X, T, jnp.stack([empty] * len(C)))["params"],
    "prompts": Encoded(jax.random.normal(keys[1], (3, 5, toy.WIDTH))),
    "empty": Encoded(empty),
  }


@functools.cache
def _predictor(guidance):
  """The network of this strength, compiled once for all tests."""
  return jax.jit(guided.make_network(UNET, SCHEDULE, guidance=guidance))


def _predict(guidance, control) -> jax.Array:
  return _predictor(guidance)(_params(), X, T, C, control).eps


def _conditional(control=None) -> jax.Array:
  """What the U-Net itself says of the prompts."""
  return _unguided(_params()["prompts"].tokens[C], control)


def _unconditional() -> jax.Array:
  empty = jnp.stack([_params()["empty"].tokens] * len(C))
  return _unguided(empty, None)


def _unguided(context, control, params=None) -> jax.Array:
  params = _params() if params is None else params
  control = jnp.zeros_like(CONTROL) if control is None else control
  variables = {"params": params["unet"]}
  return _apply(variables, X, jnp.float32(STEP), context, control)


def _close(found, expected) -> None:
  scale = float(jnp.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


def test_without_guidance_it_is_the_conditional_model():
  _close(_predict(1.0, CONTROL), _conditional(CONTROL))
  _close(_predict(1.0, None), _conditional())
  changed = np.abs(_conditional(CONTROL) - _conditional()).max((1, 2, 3))
  assert (changed > 0.01).all()


@pytest.mark.parametrize("guidance", [1.5, 7.5])
def test_guidance_extrapolates_from_one_prediction_to_another(guidance):
  # In float64: the weights of (1) add to one.
  given, without = (
    np.asarray(x, np.float64) for x in (_conditional(CONTROL), _unconditional())
  )
  expected = guidance * given + (1 - guidance) * without
  _close(_predict(guidance, CONTROL), expected)


def test_v_is_turned_into_noise_before_or_after_guidance_alike():
  """Both are linear in the prediction, and their weights add to one."""
  schedule = Schedule(
    sde=SCHEDULE.sde, prediction_type="v_prediction", steps_offset=1
  )
  alpha_bar = SCHEDULE.sde.alpha_bar[STEP]
  v = 7.5 * _conditional(CONTROL) - 6.5 * _unconditional()
  # v = alpha eps - std x_0 and x = alpha x_0 + std eps, solved for eps.
  alpha, std = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  x_0 = alpha * X - std * v
  network = jax.jit(guided.make_network(UNET, schedule, guidance=7.5))
  found = network(_params(), X, T, C, CONTROL).eps
  _close(found, (X - alpha * x_0) / std)


def test_a_label_does_not_reach_the_empty_prompt():
  """Its effect is g times what it has on the conditional model alone."""
  effect = _conditional(CONTROL) - _conditional()
  _close(_predict(7.5, CONTROL) - _predict(7.5, None), 7.5 * effect)


def test_a_prompt_reaches_its_own_chains_alone():
  predict = lambda params: _predictor(7.5)(params, X, T, C, None).eps
  before = predict(_params())
  for prompt in range(3):
    moved = _params()["prompts"].tokens.at[prompt].add(1.0)
    after = predict({**_params(), "prompts": Encoded(moved)})
    changed = (after != before).any((1, 2, 3))
    np.testing.assert_array_equal(changed, prompt == C)


def test_what_is_not_a_guided_model_is_refused():
  with pytest.raises(ValueError, match="guidance must be 1 or more, got 0.5"):
    guided.make_network(UNET, SCHEDULE, guidance=0.5)
  network = guided.make_network(UNET, SCHEDULE, guidance=7.5)
  with pytest.raises(ValueError, match="c must not be None"):
    network(_params(), X, T, None, None)


def _lora(dtype, control_on="guided") -> policy.Policy:
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), _params())
  if control_on == "conditional":
    params["uncontrolled"] = params["unet"]
  unet = UNET.clone(dtype=dtype)
  return policy.lora(
    guided.make_network(unet, SCHEDULE, guidance=7.5, control_on=control_on),
    params,
    lambda t: jnp.ones(()),
    num_controls=LABELS,
    dims=UNET.config.control_dim,
    rank=2,
    select=guided.is_attention,
  )


def test_adapters_are_on_all_attention_and_on_nothing_else():
  adapters = _lora(jnp.float32).init(jax.random.key(0))["lora"]
  places = ["down_blocks.0/attentions.0", "mid_block/attentions.0"]
  places += [f"up_blocks.1/attentions.{i}" for i in (0, 1)]
  assert adapters.keys() == {
    f"unet/{place}/transformer_blocks.0/{attention}/{projection}/kernel"
    for place in places
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out.0")
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ("dtype", "control_on"),
  [
    (jnp.float32, "guided"),
    (jnp.bfloat16, "guided"),
    (jnp.bfloat16, "conditional"),
  ],
)
def test_a_control_begins_as_the_reference_to_the_last_bit(dtype, control_on):
  controlled = _lora(dtype, control_on)
  keys = jax.random.split(jax.random.key(3), len(C))

  @jax.jit
  def run(control, y):
    pair = controlled.pair_fn(control, C, y)
    x = sampling.initial_noise(keys, SHAPE, SCHEDULE.kernel(4))
    return sampling.rollout(keys, x, SCHEDULE.kernel(4), pair)

  control = controlled.init(jax.random.key(4))
  chain = run(control, Y)
  assert chain.x.dtype == jnp.float32
  assert np.isfinite(chain.x).all()
  np.testing.assert_array_equal(chain.step_kl, np.zeros((4, len(C))))

  # An embedding moves the chains of labels, not those of the null label.
  control["embedding"] += 1.0
  assert (run(control, Y).kl > 0.01).all()
  np.testing.assert_array_equal(run(control, NULL).kl, np.zeros(len(C)))


def test_adapters_change_the_empty_prompt_too():
  control = _lora(jnp.float32).init(jax.random.key(5))
  adapters = jax.tree.map(lambda leaf: leaf + 0.3, control["lora"])
  merged = lora.merge(_params(), adapters)
  # With the same text in both places, (1) is one term whatever g is.
  texts = jnp.stack([merged["empty"].tokens] * 3)
  same = {**merged, "prompts": Encoded(texts)}
  expected = _unguided(texts[C], None, merged)
  _close(_predictor(7.5)(same, X, T, C, None).eps, expected)
  assert np.abs(expected - _unconditional()).max() > 0.01


def _moved() -> guided.Parameters:
  """With adapters of some size in the U-Net, and the one without beside it."""
  frozen: guided.Parameters = {**_params(), "uncontrolled": _params()["unet"]}
  adapters = lora.init(
    jax.random.key(5), dict(frozen), rank=2, select=guided.is_attention
  )
  adapters = jax.tree.map(lambda leaf: leaf + 0.3, adapters)
  return lora.merge(frozen, adapters)


def test_a_control_of_the_conditional_model_changes_it_alone():
  moved = _moved()
  network = guided.make_network(
    UNET, SCHEDULE, guidance=7.5, control_on="conditional"
  )
  found = jax.jit(network)(moved, X, T, C, CONTROL).eps
  given = _unguided(moved["prompts"].tokens[C], CONTROL, moved)
  _close(found, _unconditional() + 7.5 * (given - _unconditional()))
  assert np.abs(given - _conditional(CONTROL)).max() > 0.01


def test_what_a_control_acts_on_makes_no_difference_without_one():
  network = guided.make_network(
    UNET, SCHEDULE, guidance=7.5, control_on="conditional"
  )
  frozen: guided.Parameters = {**_params(), "uncontrolled": _params()["unet"]}
  found = jax.jit(network)(frozen, X, T, C, None).eps
  _close(found, _predict(7.5, None))


def test_adapters_are_named_as_the_unet_names_its_parameters():
  adapters = lora.init(
    jax.random.key(0), dict(_params()), rank=2, select=guided.is_attention
  )
  names = guided.adapters_of("unet", adapters)
  leaves = jax.tree_util.tree_leaves_with_path(_params()["unet"])
  known = {
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
  }
  assert names.keys() <= known and len(names) == len(adapters) > 0

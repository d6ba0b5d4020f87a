# SPDX-License-Identifier: Apache-2.0
"""From a model and a reward to a certified sampler, and what may go wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctrl_jax
from ctrl_jax import kernels, training
from ctrl_jax.learner import make_learner
from ctrl_jax.objectives import path_consistency
from tests.toy_tuning import gaussian, quick, side

NAMES = ("left", "right")


@pytest.fixture(scope="module")
def tuned():
  return quick(gaussian(conditions=("a", "b")), side(), names=NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_any_scale_of_the_data_is_learned_alike(scale):
  model = gaussian(
    scale, 3 * scale, ctrl_jax.VE(std_min=scale / 500, std_max=50 * scale)
  )
  found = quick(
    model,
    side(scale, 3 * scale),
    num_updates=150,
    num_steps=20,
    num_reference=2000,
    batch_size=64,
  )
  certified = found.certificate(jax.random.key(1), num=1000, num_reference=4000)
  gap = certified.certificate.gap
  # Untrained, the gap is about 0.9 nat.
  assert certified.before > 0.7
  assert gap.mean < 0.1 + 3 * gap.stderr
  x = found.sample(jax.random.key(2), 1, num=256)
  assert (x[:, 0] > 3 * scale).mean() > 0.78  # 0.86 of the target


@pytest.mark.slow
def test_a_sharp_real_label_is_followed():
  reward = lambda x, c, y: -0.5 * ((y - x[:, 0]) / 0.05) ** 2
  found = quick(
    gaussian(),
    reward,
    num_controls=None,
    controls=np.linspace(-1.5, 1.5, 16),
    num_updates=200,
    num_steps=40,
    batch_size=64,
    num_reference=4000,
  )
  certified = found.certificate(jax.random.key(1), num=800)
  assert certified.before > 100
  assert certified.certificate.gap.mean < 0.5
  x = found.sample(jax.random.key(2), 1.3, num=200)
  assert abs(x[:, 0].mean() - 1.3) < 0.03 and x[:, 0].std() < 0.08


def test_names_and_indices_ask_for_the_same(tuned):
  key = jax.random.key(3)
  by_name = tuned.sample(key, "right", "b", num=5)
  np.testing.assert_array_equal(by_name, tuned.sample(key, 1, 1, num=5))
  mixed = tuned.sample(key, ["left", "right"] * 2 + ["right"], "b", num=5)
  np.testing.assert_array_equal(mixed[1::2], by_name[1::2])
  assert not np.array_equal(mixed[0], by_name[0])


@pytest.mark.parametrize(
  ("asked", "said"),
  [
    ({"y": "up", "c": 0}, "y is 'up'; it must be one of 0 ... 1, or 'left'"),
    ({"y": 2, "c": 0}, "y is 2"),
    ({"y": -1, "c": 0}, "y is -1"),
    ({"y": 0, "c": "z"}, "c is 'z'; it must be one of 0 ... 1, or 'a', 'b'"),
    ({"y": 0}, "c is None, and this model has the conditions 'a', 'b'"),
    ({"y": [0, 1], "c": 0}, "y has 2 values for 64 samples"),
  ],
)
def test_a_wrong_request_is_refused(tuned, asked, said):
  with pytest.raises(ValueError, match=said):
    tuned.sample(jax.random.key(0), **asked)


def test_certificate_of_no_control_is_the_gap_before(tuned):
  idle = ctrl_jax.Controlled(
    **{**vars_of(tuned), "params": jax.tree.map(jnp.zeros_like, tuned.params)}
  )
  found = idle.certificate(jax.random.key(0), num=4000, num_reference=4000)
  gap = found.certificate.gap
  assert found.certificate.path_kl.mean == 0
  assert abs(gap.mean - found.before) < 4 * gap.stderr + 0.1
  # Exactly half of N(c, 1) is not above 0 unless c is 0.
  z = np.exp(np.asarray(found.log_z.table.mean)).sum(1)
  np.testing.assert_allclose(z, 1, atol=1e-4)


def vars_of(tuned):
  return {name: getattr(tuned, name) for name in tuned.__dataclass_fields__}


def test_what_is_saved_comes_back(tuned, tmp_path):
  tuned.save(tmp_path / "new" / "folder")
  back = ctrl_jax.load(
    tmp_path / "new" / "folder", tuned.pretrained, tuned.reward_fn
  )
  key = jax.random.key(4)
  np.testing.assert_array_equal(
    back.sample(key, "left", "a", num=4), tuned.sample(key, "left", "a", num=4)
  )
  assert (back.names, back.gamma, back.widths) == (NAMES, 1.0, (8,))
  for mine, theirs in zip(
    back.kernel.columns, tuned.kernel.columns, strict=True
  ):
    np.testing.assert_array_equal(mine, theirs)


def test_what_does_not_fit_is_not_loaded(tuned, tmp_path):
  tuned.save(tmp_path)
  model, reward = tuned.pretrained, tuned.reward_fn
  with pytest.raises(FileNotFoundError, match="nothing was saved here"):
    ctrl_jax.load(tmp_path / "else", model, reward)
  with pytest.raises(ValueError, match=r"conditions is \['a', 'b'\] there"):
    ctrl_jax.load(tmp_path, gaussian(conditions=("a", "c")), reward)
  with pytest.raises(ValueError, match="the model differs by"):
    ctrl_jax.load(tmp_path, gaussian(2.0, conditions=("a", "b")), reward)
  with pytest.raises(ValueError, match="the reward differs by"):
    ctrl_jax.load(tmp_path, model, side(0.5))
  path = tmp_path / "control.safetensors"
  whole = path.read_bytes()
  path.write_bytes(whole[:-5])
  with pytest.raises(ValueError, match="is damaged"):
    ctrl_jax.load(tmp_path, model, reward)
  path.write_bytes(whole.replace(b"ctrl_jax control 2", b"ctrl_jax control 9"))
  with pytest.raises(ValueError, match="no control of this version"):
    ctrl_jax.load(tmp_path, model, reward)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"num_controls": None}, "say what y may be, once"),
    ({"controls": [1.0]}, "say what y may be, once"),
    ({"num_controls": 1}, "num_controls is 1"),
    ({"names": ("one",)}, "with 1 names"),
    ({"gamma": 0.0}, "gamma must be positive"),
    ({"batch_size": 15, "group": 2}, "a batch whole groups"),
    ({"num_steps": 1}, "num_steps must be 2 or more"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    quick(gaussian(), side(), **changes)


@pytest.mark.parametrize(
  ("reward", "said"),
  [
    (lambda x, c, y: x, "gave an array of shape"),
    (lambda x, c, y: x[:, 0] * jnp.nan, "gives NaN for y = 0"),
    (lambda x, c, y: jnp.where(y > 0, -jnp.inf, x[:, 0]), "-inf for y = 1"),
  ],
)
def test_a_reward_without_numbers_is_refused(reward, said):
  with pytest.raises(ValueError, match=said):
    quick(gaussian(), reward)


def test_a_training_that_diverges_is_an_error():
  told = []
  with pytest.raises(training.DivergedError, match=r"training diverged at"):
    quick(
      gaussian(),
      side(),
      learning_rate=1e4,
      progress=lambda done, total, metrics: told.append(done),
    )
  assert not told


def test_the_pace_rises_and_falls_again():
  # Ones for gradients, plain steps: the parameter adds up the pace.
  def loss(params, keys, batch):
    del keys, batch
    return -params.sum(), {"gap": params.sum() * 0, "kl": jnp.zeros(())}

  learner = make_learner(loss, optax.sgd(1.0), ema_decay=0.0, axis_name=None)
  told = []
  state = training.train(
    learner,
    learner.init(jnp.zeros(())),
    lambda step: {},
    jax.random.key(0),
    1.0,
    num_updates=200,
    batch_size=1,
    report=lambda done, total, metrics: told.append(done),
  )
  # Half of one window of 25, then 0.02 + 0.98 cos^2 at the start of each.
  at = np.pi * np.arange(1, 8) * 25 / 400
  expected = 12.5 + 25 * (0.02 + 0.98 * np.cos(at) ** 2).sum()
  assert float(state.params) == pytest.approx(expected, rel=1e-5)
  assert told == [25 * i for i in range(1, 9)]


def test_a_long_first_step_costs_no_more_than_others():
  # At t = 1 the noise is 15,000 deviations of the data, and 40 a step later.
  model = gaussian(0.01, 0.03, ctrl_jax.VP())
  told = []
  quick(
    model,
    side(0.01, 0.03),
    progress=lambda done, total, metrics: told.append(metrics["gap"]),
  )
  assert told[-1] < 1.5


def test_another_objective_and_a_kernel_of_ones_own():
  kernel = kernels.ddim(ctrl_jax.VP(), kernels.time_grid(6), eta=1.0)
  told = []
  found = quick(
    gaussian(),
    side(),
    kernel=kernel,
    objective=path_consistency.make_learner,
    num_updates=40,
    progress=lambda done, total, metrics: told.append((done, metrics["gap"])),
  )
  assert found.kernel is kernel
  assert [done for done, _ in told] == [20, 40]
  assert np.isfinite([gap for _, gap in told]).all()

# SPDX-License-Identifier: Apache-2.0
r"""A pre-trained model with its control: what `ctrl_jax.tune` returns.

A `Controlled` is values, all of which `save` writes but for two that are the
user's own, the pre-trained model and the reward. Its methods are functions of
them and of a key: nothing is remembered from one call to the next.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import certification, choices, control_file, headed
from ctrl_jax.certification import Certified
from ctrl_jax.evidence import Sampler
from ctrl_jax.kernels import Kernel
from ctrl_jax.labels import Fitted
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import OthersFn, Params, RewardFn
from ctrl_jax.units import Units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controlled:
  """A sampler of p(y | x, c)^gamma p_pre(x | c) / Z(c, y).

  Attributes:
    pretrained: the model that was tuned.
    reward_fn: log p(y | x, c) of data, nats.
    params: of the output head, by which alone it differs.
    kernel: the sampler's steps.
    units: of the data and of y, in which the head works.
    controls: labels 0 ... n - 1, or the real values that were trained.
    names: of the labels, if they have any.
    gamma: guidance strength.
    widths: of the head's hidden layers.
    others_fn: log p_m(y | x) of other classifiers, where one was fitted.
  """

  pretrained: Pretrained
  reward_fn: RewardFn
  params: Params
  kernel: Kernel
  units: Units
  controls: np.ndarray
  names: tuple[str, ...]
  gamma: float
  widths: tuple[int, ...]
  others_fn: OthersFn | None = None

  @functools.cached_property
  def sampler(self) -> Sampler:
    """Its parts as pure functions, for everything else in this library."""
    return Sampler(
      self.pretrained,
      self.reward_fn,
      self.kernel,
      headed.make(
        self.pretrained,
        self.reward_fn,
        self.kernel,
        self.units,
        self.controls,
        gamma=self.gamma,
        widths=self.widths,
      ),
      self.params,
      self.gamma,
    )

  def sample(
    self, key: jax.Array, y: Any, c: Any = None, *, num: int = 64
  ) -> np.ndarray:
    """Data [num, ...] of a y, and of a c if the model has conditions.

    Args:
      key: of the noise.
      y: a label's index or name, or a real number; or one for each sample.
      c: a condition's index or name; or one for each sample.
      num: samples.

    Raises:
      ValueError: no such y or c, or another number of them than num.
    """
    labels = choices.rows("y", y, num, self.controls, self.names)
    kinds = self.pretrained.conditions
    if (c is None) == bool(kinds):
      raise ValueError(
        f"c is {c!r}, and this model has "
        + (
          f"the conditions {choices.listed(kinds)}" if kinds else "no condition"
        )
      )
    indices = np.arange(max(len(kinds), 1), dtype=np.int32)
    conditions = choices.rows("c", 0 if c is None else c, num, indices, kinds)
    return certification.draw(self.sampler, key, conditions, labels)

  def certificate(
    self,
    key: jax.Array,
    *,
    num: int = 4096,
    num_reference: int = 8192,
    num_bridge: int = 1024,
  ) -> Certified:
    """How far the samples are from their target, in nats; prints as a line.

    Of a real y at most `choices.SHOWN` of the trained values are looked at.
    What `labels.fit` returned is doubted, too: by how much the gap may be
    larger if the classifier is wrong.

    Args:
      key: of everything random; not that of the training.
      num: chains of this sampler, over all (c, y).
      num_reference: chains of the pre-trained model, over all c.
      num_bridge: chains of each (c, y) whose log Z these do not know.
    """
    return certification.certify(
      self.sampler,
      choices.looked_at(self.controls),
      key,
      num=num,
      num_reference=num_reference,
      num_bridge=num_bridge,
      others_fn=self.others_fn,
    )

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes everything but the model and the reward, for `load`.

    Raises:
      OSError: the folder cannot be written.
    """
    control_file.write(
      pathlib.Path(folder),
      {
        "params": self.params,
        "kernel": dict(zip(_COLUMNS, self.kernel.columns, strict=True)),
        "shift": np.asarray(self.units.shift),
        "controls": self.controls,
        "probe": probe(self.pretrained, self.reward_fn, self.controls),
      },
      {
        "start_std": self.kernel.start_std,
        "units": list(self.units[1:]),
        "names": list(self.names),
        "conditions": list(self.pretrained.conditions),
        "sample_shape": list(self.pretrained.sample_shape),
        "gamma": self.gamma,
        "widths": list(self.widths),
        "differentiable": headed.has_derivative(
          self.pretrained, self.reward_fn, self.controls
        ),
      },
    )


_COLUMNS = ("times", "x_coef", "eps_coef", "std")


def load(
  folder: str | pathlib.Path,
  pretrained: Pretrained,
  reward_fn: RewardFn | Fitted,
) -> Controlled:
  """What `Controlled.save` wrote, with the model and the reward it was for.

  Args:
    folder: given to `save`.
    pretrained: the same model; its predictions are compared.
    reward_fn: the same log p(y | x, c), or what `labels.fit` returned.

  Raises:
    FileNotFoundError: nothing was saved there.
    ValueError: a damaged file, or another model or reward than it was for.
  """
  path = pathlib.Path(folder)
  arrays, values = control_file.read(path)
  for field, mine in (
    ("sample_shape", list(pretrained.sample_shape)),
    ("conditions", list(pretrained.conditions)),
  ):
    if values[field] != mine:
      raise ValueError(
        f"{path}: {field} is {values[field]} there, and {mine} in the "
        "pre-trained model given: it is another model"
      )
  found = Controlled(
    pretrained=pretrained,
    reward_fn=(
      reward_fn.reward_fn if isinstance(reward_fn, Fitted) else reward_fn
    ),
    params={},
    kernel=Kernel(**arrays["kernel"], start_std=values["start_std"]),
    units=Units(arrays["shift"], *values["units"]),
    controls=arrays["controls"],
    names=tuple(values["names"]),
    gamma=values["gamma"],
    widths=tuple(values["widths"]),
    others_fn=reward_fn.others_fn if isinstance(reward_fn, Fitted) else None,
  )
  kept = arrays["probe"]
  said = probe(pretrained, found.reward_fn, found.controls)
  for name, what in (("eps", "the model"), ("log_p", "the reward")):
    far = np.abs(kept[name] - said[name]).max()
    if not far <= 1e-2 * np.abs(kept[name]).max():
      raise ValueError(
        f"{path}: it was tuned for another model or reward: {what} differs by "
        f"{far:.3g} on the sample that was kept for comparison"
      )
  has_one = headed.has_derivative(pretrained, found.reward_fn, found.controls)
  if has_one != values["differentiable"]:
    has, had = ("a", "no") if has_one else ("no", "a")
    raise ValueError(
      f"{path}: the reward given has {has} derivative in x, and that which it "
      f"was tuned for had {had} derivative: give the same function"
    )
  like = jax.eval_shape(found.sampler.policy.init, jax.random.key(0))
  params = control_file.fitted(path, arrays["params"], like)
  return dataclasses.replace(found, params=params)


def probe(
  pretrained: Pretrained, reward_fn: RewardFn, controls: np.ndarray
) -> dict[str, np.ndarray]:
  """What model and reward say of one sample, to know them again."""
  shape = (1, *pretrained.sample_shape)
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  c = jnp.zeros(1, jnp.int32) if pretrained.conditions else None
  eps = pretrained.reference_fn(c)(jnp.asarray(x), jnp.float32(0.5))
  data = pretrained.decoded(jnp.asarray(x))
  log_p = [
    reward_fn(data, c, jnp.full(1, y)) for y in choices.looked_at(controls)
  ]
  return {
    "eps": np.asarray(eps, np.float32),
    "log_p": np.nan_to_num(np.asarray(log_p, np.float32)),
  }

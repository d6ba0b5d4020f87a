# SPDX-License-Identifier: Apache-2.0
"""What a finished run samples with, kept in its folder, and read again.

    run = sampler.load("runs/digits")
    c, y = run.requests(64, c=["7"], y=["3"])
    images = run.draw("ctrl", c, y, seed=0).x

`sampler.npz` holds all that the run learned: the pre-trained model's parameters
where it trained them, the control's, and the classifiers'. No data set is read
and nothing is trained. Weights of others stay where the run's config says.
"""

import dataclasses
import difflib
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import choices, sampling
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params
from experiments.measures import evaluation
from experiments.problems import restored
from experiments.problems.problem import Problem
from experiments.runtime import devices, finished_run, workdir
from experiments.training import generator_file, policies
from experiments.training.pretraining import Learned, Run

METHODS = ("ctrl", "ctrl_resampled", "pretrained", *generator_file.FILES)


class Drawn(NamedTuple):
  """Chains of requests; batch first, nats."""

  x: np.ndarray  # [N, ...]
  log_weights: np.ndarray  # of the paths, up to log Z [N]; NaN: has none


def save(run: Run, learned: Learned, control: Params) -> None:
  """Writes what the run learned."""
  labels = list(enumerate(run.problem.factors, start=1))
  kept = {
    "version": np.int32(finished_run.VERSION),
    "sample_shape": np.array(run.problem.sample_shape),
    "classifier": learned.kept,
    "control": control,
    "names": {str(i): np.array(f.names) for i, f in labels if f.names},
    "of": {str(i): np.array(f.name) for i, f in labels},
    **run.problem.kept,
  }
  if not choices.are_labels(run.problem.controls):
    kept["values"] = run.problem.controls
    kept["control_units"] = np.array(run.problem.control_units)
  if run.problem.data is not None:
    kept["pretrained"] = learned.pretrained.params
  flat = traverse_util.flatten_dict(jax.device_get(kept), sep=":")
  workdir.write_arrays(run.workdir / finished_run.LEARNED, **flat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """A finished run's model: pure values and functions."""

  config: ConfigDict
  problem: Problem
  policy: Policy
  control: Params
  folder: pathlib.Path  # of the run

  def requests(
    self, num: int, *, c: Sequence[str] = (), y: Sequence[str] = ()
  ) -> tuple[np.ndarray, np.ndarray]:
    """c and y of num samples, which take turns in what is asked for.

    Args:
      num: of samples.
      c: names of conditions, or their numbers; none: all that are evaluated.
      y: likewise of controls; a real y is a number.

    Raises:
      ValueError: there is no such name; says which are near.
    """
    problem = self.problem
    names = problem.pretrained.conditions
    if c and not names:
      raise ValueError(f"c is {c[0]!r}: this model has no condition")
    conditions = [_find(name, names, "c") for name in c]
    conditions = conditions or list(range(problem.num_conditions))
    controls = [self._control(name) for name in y] or problem.controls.tolist()
    pairs = [(i, k) for i in conditions for k in controls]
    rows = np.arange(num) % len(pairs)
    first, second = zip(*pairs, strict=True)
    asked = np.array(second, problem.controls.dtype)[rows]
    return np.array(first, np.int32)[rows], asked

  def described(self, c: int, y: float) -> str:
    """What a reader calls a request, such as "c = 7, y = dark"."""
    problem = self.problem
    told = f"y = {y:g}"
    if choices.are_labels(problem.controls):
      (row,) = np.flatnonzero(problem.controls == y)
      told = f"y = {problem.control_names[row].removeprefix('y = ')}"
    names = problem.pretrained.conditions
    return f"c = {names[c]}, {told}" if names else told

  def _control(self, name: str) -> float:
    if not choices.are_labels(self.problem.controls):
      try:
        value = float(name)
      except ValueError:
        value = math.nan
      if not math.isfinite(value):
        raise ValueError(f"y is {name!r}: it is a real number")
      return value
    names = [n.removeprefix("y = ") for n in self.problem.control_names]
    return int(self.problem.controls[_find(name, names, "y")])

  def draw(
    self,
    method: str,
    c: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    first: int = 0,
    mesh: Mesh | None = None,
  ) -> Drawn:
    """Samples of a method for requests.

    Sample i has the same noise however many are drawn, and of all methods.

    Args:
      method: of METHODS, but "ctrl_resampled".
      c: conditions [N].
      y: controls [N].
      seed: of their noise.
      first: number of the first sample.
      mesh: of devices; None: all.

    Raises:
      FileNotFoundError: "distilled" or "regression", and none was trained.
    """
    problem, reward_fn = self.problem, self.problem.reward_fn
    gamma = self.config.reward.gamma
    params = self.control
    if method in generator_file.FILES:
      made = generator_file.load(self.folder, problem, method)
      params = made.params

    def generated(params: Params, keys: jax.Array, labels: Any) -> Any:
      x = made.sample(params, keys, labels, problem.sample_shape)
      return x, jnp.full(len(x), jnp.nan)

    def function(control: Params, keys: jax.Array, labels: Any) -> Any:
      c, y = labels
      pair_fn = self.policy.pair_fn(control, c, y)
      start = problem.starts(keys)
      if method == "pretrained":
        only = lambda x, t: pair_fn(x, t).reference
        chain = sampling.rollout(keys, start, problem.kernel, only)
        log_w = gamma * reward_fn(chain.x, c, y)
      else:
        chain = sampling.rollout(keys, start, problem.kernel, pair_fn)
        log_w = gamma * reward_fn(chain.x, c, y) + chain.log_ratio
      return chain.x, jnp.where(log_w < jnp.inf, log_w, -jnp.inf)

    found = evaluation.run_chains(
      generated if method in generator_file.FILES else function,
      params,
      (c, y),
      seed=seed,
      name="sample",
      chunk=min(self.config.evaluate.chunk, len(c)),
      mesh=mesh or devices.mesh(self.config),
      first=first,
    )
    return Drawn(*found)


def load(run: str | pathlib.Path) -> Sampler:
  """The sampler of a finished run.

  Raises:
    FileNotFoundError: there is no such run, or it is not finished.
    ValueError: it is damaged or of another version of this project.
  """
  run = pathlib.Path(run)
  kept = finished_run.learned(run)
  config = finished_run.config_of(run)
  problem = restored.problem(config, run, kept)
  control, reward_fn = config.control, problem.reward_fn
  policy = policies.make(problem, control, reward_fn)
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  found = jax.tree.map(lambda leaf: leaf.shape, kept["control"])
  if found != jax.tree.map(lambda leaf: leaf.shape, shapes):
    raise ValueError(
      f"{run / finished_run.LEARNED} holds the control of another model"
    )
  return Sampler(
    config=config,
    problem=problem,
    policy=policy,
    control=kept["control"],
    folder=run,
  )


def _find(name: str, names: Sequence[str], what: str) -> int:
  """Index of a name, or of its number.

  Raises:
    ValueError: neither.
  """
  if name in names:
    return list(names).index(name)
  if name.isdecimal() and int(name) < len(names):
    return int(name)
  near = difflib.get_close_matches(name, names, n=3, cutoff=0) or names[:3]
  raise ValueError(
    f"{what} is {name!r}: there are {len(names)}, such as "
    f"{', '.join(map(repr, near))}"
  )

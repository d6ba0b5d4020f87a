# SPDX-License-Identifier: Apache-2.0
r"""`ctrl_jax.tune` with nothing set, on problems of very different scales.

  python -m experiments.studies.default_settings [--seeds 0 1 2]

The model is exact, x ~ N(m, diag(v)), whose noise prediction is

    eps(x_t, t) = std (x_t - alpha m) / (alpha^2 v + std^2),               (1)

and y says something of one direction of x. What is asked of it is hard for one
reason each:

    dimensions  625 of them, and a classifier learned from 160 labels
    sharp       a real y, known to a twentieth of its deviation; 80 dimensions
    large       data of mean 300 and deviation 100
    small       data of mean 0.03 and deviation 0.01
    unequal     three categories with 90, 9 and 1 % of the data

A row is held to a gap of a tenth of that before training, or of 0.2 nat.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ctrl_jax
from ctrl_jax import rewards
from ctrl_jax.policy import Output
from ctrl_jax.types import RewardFn
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

COLUMNS = "problem,seed,gap before,gap after,ESS %,seconds,bar"
SHARE, ENOUGH = 0.1, 0.2  # of the gap before; nats


class Asked(NamedTuple):
  """What `tune` is given."""

  model: ctrl_jax.Pretrained
  reward: Any  # a function, or what was fitted
  settings: Mapping[str, Any]  # what y may be


def gaussian(
  mean: np.ndarray, variance: np.ndarray, sde: ctrl_jax.VP | ctrl_jax.VE
) -> ctrl_jax.Pretrained:
  """The exact model of N(mean, diag(variance)), (1)."""

  def network(params, x, t, c, control):
    alpha, std = sde.alpha(t), sde.std(t)
    return Output(std * (x - alpha * mean) / (alpha**2 * variance + std**2))

  return ctrl_jax.Pretrained(
    network=network, params={}, sde=sde, sample_shape=mean.shape
  )


def _direction(rng: np.random.Generator, variance: np.ndarray) -> np.ndarray:
  """A random one, along which x has variance 1."""
  direction = rng.standard_normal(len(variance))
  return direction / np.sqrt((direction**2 * variance).sum())


def ordinal(
  direction: np.ndarray, mean: np.ndarray, edges: np.ndarray
) -> RewardFn:
  """The bins of direction . (x - mean) between edges, a little blurred."""
  slope = 10.0

  def logits_fn(x: jax.Array) -> jax.Array:
    u = (x - mean) @ direction
    labels = jnp.arange(len(edges) + 1)
    offsets = jnp.concatenate([jnp.zeros(1), -slope * jnp.cumsum(edges)])
    return slope * labels * u[:, None] + offsets

  return rewards.classifier(logits_fn)


def dimensions(rng: np.random.Generator) -> Asked:
  """Few labels of many coordinates."""
  variance = 1 / (1 + np.arange(625) / 10)
  mean = rng.standard_normal(625)
  direction = _direction(rng, variance)
  x = mean + np.sqrt(variance) * rng.standard_normal((160, 625))
  y = np.where((x - mean) @ direction > 0, "above", "below")
  key = jax.random.key(int(rng.integers(2**31)))
  reward = ctrl_jax.fit_labels(x, y, key=key)
  return Asked(gaussian(mean, variance, ctrl_jax.VP()), reward, {})


def sharp(rng: np.random.Generator) -> Asked:
  """y = direction . x, told with a deviation of 0.05."""
  variance = rng.uniform(0.3, 1.5, 80)
  mean, direction = np.zeros(80), _direction(rng, variance)
  scale = 0.05

  def reward(x: jax.Array, c: Any, y: jax.Array) -> jax.Array:
    miss = (y - x @ direction) / scale
    return -0.5 * miss**2 - np.log(scale * np.sqrt(2 * np.pi))

  values = np.linspace(-1.5, 1.5, 16)
  model = gaussian(mean, variance, ctrl_jax.VP())
  return Asked(model, reward, {"controls": values})


def scaled(rng: np.random.Generator, scale: float) -> Asked:
  """Three bins of data of another scale, by a process that is wide enough."""
  variance = scale**2 * rng.uniform(0.5, 1.5, 8)
  mean = np.full(8, 3 * scale)
  edges = np.array([-0.5, 0.5])
  reward = ordinal(_direction(rng, variance), mean, edges)
  sde = ctrl_jax.VE(std_min=scale / 500, std_max=50 * scale)
  return Asked(gaussian(mean, variance, sde), reward, {"num_controls": 3})


def unequal(rng: np.random.Generator) -> Asked:
  """Edges at the 90 % and the 99 % quantile."""
  variance, mean = rng.uniform(0.5, 1.5, 8), rng.standard_normal(8)
  edges = np.array([1.2816, 2.3263])
  reward = ordinal(_direction(rng, variance), mean, edges)
  model = gaussian(mean, variance, ctrl_jax.VP())
  return Asked(model, reward, {"num_controls": 3})


PROBLEMS: Mapping[str, Callable[[np.random.Generator], Asked]] = {
  "dimensions": dimensions,
  "sharp": sharp,
  "large": lambda rng: scaled(rng, 100.0),
  "small": lambda rng: scaled(rng, 0.01),
  "unequal": unequal,
}


def measure(name: str, seed: int, **changes: Any) -> dict[str, Any]:
  """Tunes a problem by default; `changes` only for a look at the machinery."""
  asked = PROBLEMS[name](np.random.default_rng(seed))
  key, other = jax.random.split(jax.random.key(seed))
  began = time.perf_counter()
  tuned = ctrl_jax.tune(
    asked.model,
    asked.reward,
    key=key,
    progress=False,
    **asked.settings,
    **changes,
  )
  seconds = time.perf_counter() - began
  found = tuned.certificate(other)
  after, before = found.certificate.gap, found.before
  return {
    "problem": name,
    "seed": seed,
    "before": before,
    "gap": float(after.mean),
    "stderr": float(after.stderr),
    "ess": float(found.certificate.ess),
    "seconds": seconds,
    "bound": found.is_bound,  # the gap is at least this
    "met": float(after.mean) <= max(SHARE * before, ENOUGH),
  }


def main() -> None:
  """Measures every problem and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=PROBLEMS)
  parser.add_seeds(0, 1, 2)
  parser.add_argument(
    "--updates", type=arguments.at_least(1), help="others than the default's"
  )
  given = parser.parse_args()
  changes = {"num_updates": given.updates} if given.updates else {}
  lines, missed = [], 0
  for name in given.only:
    for seed in given.seeds:
      row = measure(name, seed, **changes)
      missed += not row["met"]
      lines.append(
        [
          *(name, str(seed), f"{row['before']:.3g}"),
          f"{'≥ ' * row['bound']}{row['gap']:.4f} ± {row['stderr']:.4f}",
          f"{100 * row['ess']:.0f}",
          f"{row['seconds']:.0f}",
          "met" if row["met"] else "missed",
        ]
      )
      print("  ".join(lines[-1]), flush=True)
  print(tables.markdown(COLUMNS.split(","), lines))
  if missed:
    sys.exit(1)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))

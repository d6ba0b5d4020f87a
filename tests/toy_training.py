# SPDX-License-Identifier: Apache-2.0
"""A regression small enough to train many times, for tests of the host loop."""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctrl_jax import learner, parallel
from experiments.runtime import loop
from experiments.runtime.logs import Log

BATCH = 8
SEED = 3


def init_params() -> Any:
  return {"w": jnp.ones((3,)), "b": jnp.zeros(())}


def batch_fn(step: int) -> dict[str, np.ndarray]:
  x = np.random.default_rng((1, step)).standard_normal((BATCH, 3), np.float32)
  return {"x": x, "y": x.sum(1)}


def loss_fn(params: Any, keys: jax.Array, batch: Any) -> Any:
  """A regression on noisy inputs, so that keys matter."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
  prediction = (batch["x"] + 0.1 * noise) @ params["w"] + params["b"]
  loss = jnp.square(prediction - batch["y"]).mean()
  return loss, {"loss": loss, "noise": noise.mean()}


def make_learner(loss_fn: Any = loss_fn) -> learner.Learner:
  return learner.make_learner(loss_fn, optax.adam(1e-2))


def parabola(steepness: float) -> learner.Learner:
  """Plain descent on w^2 / 2, which multiplies w by 1 - pace steepness."""

  def loss(params: Any, keys: jax.Array, batch: Any) -> Any:
    del keys, batch
    value = 0.5 * (params["w"] ** 2).sum()
    return value, {"gap": value}

  return learner.make_learner(loss, optax.sgd(steepness))


def fit(workdir: pathlib.Path, num_steps: int, **changes: Any) -> Any:
  settings: dict[str, Any] = {
    "learner": make_learner(),
    "params": init_params(),
    "batch_fn": batch_fn,
    "num_steps": num_steps,
    "batch_size": BATCH,
    "seed": SEED,
    "workdir": workdir,
    "mesh": parallel.make_mesh(),
    "log_every": 4,
    "save_every": 6,
    "live": ("loss",),
  } | changes
  workdir.mkdir(exist_ok=True)
  with Log(workdir) as log:
    return loop.fit("toy", log=log, **settings)


def bits(tree: Any) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def saved_steps(workdir: pathlib.Path) -> set[int]:
  folder = workdir / "checkpoints" / "toy"
  return {int(path.name) for path in folder.iterdir()}


class StopAt:
  """A batch function that signals the process at a step."""

  def __init__(self, step: int, signum: int) -> None:
    self.step, self.signum = step, signum

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    if step == self.step:
      os.kill(os.getpid(), self.signum)
    return batch_fn(step)

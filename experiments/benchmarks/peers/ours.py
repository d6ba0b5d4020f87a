# SPDX-License-Identifier: Apache-2.0
"""The update of `ctrl_jax`, as a worker."""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import parallel, placement
from ctrl_jax.stable_diffusion import pipeline
from ctrl_jax.stable_diffusion.prompts import Encoded
from experiments.benchmarks import weightless
from experiments.benchmarks.peers import problem, worker
from experiments.benchmarks.programs import SMALL_VAE
from experiments.benchmarks.released import SD15
from experiments.runtime import devices


def main() -> None:
  """Compiles the update of a folder, see `problem`, and serves it."""
  folder = pathlib.Path(sys.argv[1])
  settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
  with np.load(folder / "arrays.npz") as found:
    arrays = dict(found)
  batch = settings["batch"]
  jax.config.update("jax_num_cpu_devices", devices.virtual(batch))
  config = configure(settings)
  loaded = pipeline.load(folder / "model")
  frozen = weightless.Frozen(
    loaded.unet_params,
    loaded.vae_params,
    problem.tree(arrays, "classifier"),
    Encoded(jnp.asarray(arrays["prompts"])),
    Encoded(jnp.asarray(arrays["empty"])),
  )
  networks = weightless.networks(
    config, SD15._replace(denoiser=problem.UNET, vae=SMALL_VAE)
  )
  made = weightless.control(config, networks, frozen, axis_name=parallel.AXIS)
  mesh = parallel.make_mesh()
  state = jax.jit(made.learner.init)(problem.tree(arrays, "control"))
  state = placement.place(state, mesh)
  data = {
    "c": np.arange(batch),
    "y": arrays["labels"],
    "log_evidence": np.zeros(batch),
  }
  inputs = parallel.shard((problem.keys(batch), data), mesh)
  update = parallel.pmap(made.learner.update, mesh)

  def once() -> worker.Answer:
    nonlocal state
    state, metrics = update(state, *inputs)
    found = {name: float(value) for name, value in metrics.items()}
    loss = found["kl"] - settings["gamma"] * found["log_likelihood"]
    return {"loss": loss, "gradient_norm": found["gradient_norm"]}

  worker.serve(once)


def configure(settings: dict[str, Any]) -> ConfigDict:
  """The experiment at the sizes of `problem`, in float32."""
  steps = settings["steps"]
  config = weightless.configure(
    batch=settings["batch"],
    parts=1,
    steps=steps,
    backprop_steps=steps,
    attention="",
  )
  config.model.update(dtype="float32", size=problem.SIDE, remat=False)
  config.reward.gamma = settings["gamma"]
  config.prompts, config.evaluate.prompts = tuple(settings["texts"]), ()
  return config


if __name__ == "__main__":
  main()

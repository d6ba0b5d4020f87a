# SPDX-License-Identifier: Apache-2.0
"""The one update that all libraries are timed on, as files.

A folder of Stable Diffusion in diffusers' layout, of random weights; beside it
`arrays.npz`, which holds the prompts' encodings, starts and noise of the
chains, a classifier's parameters and a control's, and `settings.json`. A path
of parameters is joined by ":".
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ctrl_jax import sampling
from ctrl_jax.models import lora
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.stable_diffusion import guided, pipeline
from ctrl_jax.stable_diffusion import prompts as encoding
from experiments.benchmarks.programs import SMALL_UNET, SMALL_VAE
from experiments.configs.sd15_compressibility import ANIMALS
from experiments.problems import tiny_model, tiny_parts
from experiments.runtime import workdir

SIDE, LABELS, RANK = 128, 4, 4
WIDTHS, STRIDES = (64, 128, 256), (1, 2, 2)
UNET = dataclasses.replace(
  SMALL_UNET,
  cross_attention_dim=tiny_parts.WIDTH,
  sample_size=SIDE // SMALL_VAE.downsampling,
)
SETTINGS = {
  "gamma": 10.0,
  "guidance": 7.5,
  "learning_rate": 1e-3,
  "clip_norm": 1.0,
  "strides": STRIDES,
}


def keys(batch: int) -> jax.Array:
  """Of the chains, [batch]."""
  return jax.random.split(jax.random.key(0), batch)


def write(folder: pathlib.Path, *, batch: int, steps: int) -> None:
  """Writes all files into an empty folder.

  Raises:
    ValueError: there are fewer prompts than chains.
  """
  if batch > len(ANIMALS):
    raise ValueError(f"--batch is {batch}: use at most {len(ANIMALS)}")
  model = tiny_model.write(
    folder / "model",
    unet_config=dataclasses.asdict(UNET),
    vae_config=dataclasses.asdict(SMALL_VAE),
  )
  texts = ANIMALS[:batch]
  prompts = encoding.encode(model, texts)
  loaded = pipeline.load(model)
  chains, shape = keys(batch), loaded.latent_shape(SIDE)
  kernel = loaded.schedule.kernel(steps, eta=1.0)
  start = sampling.initial_noise(chains, shape, kernel)
  still = sampling.rollout(
    chains, start, kernel, lambda x, t: jnp.zeros_like(x), keep_path=True
  )
  if still.path is None:
    raise ValueError("no path was kept")
  arrays = {
    "prompts": np.asarray(prompts.prompts.tokens),
    "empty": np.asarray(prompts.empty.tokens),
    "labels": np.arange(batch) % LABELS,
    "start": np.asarray(start),
    "noise": np.asarray(still.path.noise),
    **named("classifier", _classifier()),
    **named("control", _control(loaded)),
  }
  workdir.write_arrays(folder / "arrays.npz", **arrays)
  settings = {**SETTINGS, "batch": batch, "steps": steps, "texts": texts}
  (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def named(name: str, tree: Any) -> dict[str, np.ndarray]:
  """A tree's leaves by their paths, which start with its name."""
  flat = traverse_util.flatten_dict({name: tree}, sep=":")
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


def tree(arrays: Any, name: str) -> Any:
  """What `named` was given."""
  flat = {path: jnp.asarray(arrays[path]) for path in arrays}
  return traverse_util.unflatten_dict(flat, sep=":")[name]


def _classifier() -> Any:
  network = ResidualClassifier(LABELS, WIDTHS, STRIDES)
  image = jnp.zeros((1, 8, 8, 3))
  return jax.jit(network.init)(jax.random.key(1), image)["params"]


def _control(loaded: pipeline.Pipeline) -> Any:
  """Adapters and labels that are nowhere zero."""
  frozen = {"unet": loaded.unet_params}
  control = {
    "lora": lora.init(
      jax.random.key(3), frozen, rank=RANK, select=guided.is_attention
    ),
    "embedding": np.zeros((LABELS, loaded.unet.config.control_dim)),
  }
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), control
  )

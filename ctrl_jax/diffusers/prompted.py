# SPDX-License-Identifier: Apache-2.0
"""Models that read prompts: every Stable Diffusion, from a folder.

    model = ctrl_jax.diffusers.load_prompted(folder, ["a cat"], size=1024)

model_index.json decides between `ctrl_jax.stable_diffusion` (1.x, 2.x and XL)
and `ctrl_jax.stable_diffusion_3`. From here on there is one kind of model:
samples are scaled latents, c is one of the prompts, what is sampled is guided
by it, and a control is a vector of the label beside adapters of all attention.
Prompts are encoded first, and the encoders gone before the networks arrive.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ctrl_jax.pretrained import Pretrained
from ctrl_jax.stable_diffusion import (
  export,
  model_index,
  pipeline,
  prompts,
  schedule,
)
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.guided import Controlled
from ctrl_jax.stable_diffusion.prompts import Prompts
from ctrl_jax.stable_diffusion_3 import export as export_3
from ctrl_jax.stable_diffusion_3 import pipeline as pipeline_3
from ctrl_jax.stable_diffusion_3 import prompts as prompts_3
from ctrl_jax.stable_diffusion_3 import schedule as schedule_3
from ctrl_jax.types import Params

Pipeline = pipeline.Pipeline | pipeline_3.Pipeline
Schedule = schedule.Schedule | schedule_3.Schedule


def load_prompted(
  folder: str | pathlib.Path,
  texts: Sequence[str],
  *,
  size: int,
  guidance: float = 1.0,
  with_t5: bool = False,
  dtype: Any = jnp.float32,
  remat: bool = False,
) -> Pretrained:
  """The model in the folder of any Stable Diffusion from text.

  Its steps are those of `ctrl_jax.diffusers.kernel`.

  Args:
    folder: where diffusers wrote it.
    texts: prompts, the values of c.
    size: side of the images, pixels.
    guidance: strength of the prompt; 1 is the conditional model alone.
    with_t5: whether T5 reads prompts as well, of 3 and 3.5.
    dtype: of parameters and computation; predictions are float32.
    remat: whether each block is computed again in the backward pass.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: another pipeline, a field that is not supported, a damaged
      file, or an argument that does not suit the model.
  """
  folder = pathlib.Path(folder)
  encoded = encode(folder, texts, size=size, with_t5=with_t5, dtype=dtype)
  parts = read(folder, dtype=dtype, remat=remat)
  return pretrained(texts, parts, encoded, size=size, guidance=guidance)


def encode(
  folder: pathlib.Path,
  texts: Sequence[str],
  *,
  size: int,
  with_t5: bool = False,
  dtype: Any = jnp.float32,
) -> Prompts:
  """What the network in a folder reads of prompts; see `load_prompted`."""
  index = model_index.read(folder)
  if model_index.is_three(index):
    return prompts_3.encode(folder, texts, with_t5=with_t5, dtype=dtype)
  if with_t5:
    raise ValueError(
      f"{folder} holds a {index['_class_name']}, whose prompts no T5 reads: "
      "leave it out"
    )
  return prompts.encode(folder, texts, size=size, dtype=dtype)


def read(
  folder: pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  attention: Implementation = None,
  remat: bool = False,
  mesh: Mesh | None = None,
) -> Pipeline:
  """Networks and steps; as `pipeline.load` of either package says."""
  how: Any = {"attention": attention, "remat": remat, "mesh": mesh}
  if model_index.is_three(model_index.read(folder)):
    return pipeline_3.load(folder, dtype=dtype, **how)
  return pipeline.load(folder, dtype=dtype, **how)


def read_schedule(folder: pathlib.Path) -> Schedule:
  """The steps alone."""
  if model_index.is_three(model_index.read(folder)):
    return schedule_3.load(folder / "scheduler")
  return schedule.load(folder / "scheduler")


def save(
  source: pathlib.Path, target: pathlib.Path, params: Params, table: jax.Array
) -> None:
  """Writes a controlled pipeline; as `export.save_pipeline` of either says."""
  three = model_index.is_three(model_index.read(source))
  write = export_3.save_pipeline if three else export.save_pipeline
  write(source, target, params, table)


def pretrained(
  texts: Sequence[str],
  parts: Pipeline,
  encoded: Prompts,
  *,
  size: int,
  guidance: float,
  control_on: Controlled = "guided",
) -> Pretrained:
  """The guided model; its samples are scaled latents.

  Args:
    texts: values of c.
    parts: of a folder.
    encoded: the prompts.
    size: side of an image, pixels.
    guidance: strength of the prompt.
    control_on: as `guided.guide` has it.

  Raises:
    ValueError: the model makes no images of that size, or guidance < 1.
  """
  params = {
    parts.part: parts.denoiser_params,
    "prompts": encoded.prompts,
    "empty": encoded.empty,
  }
  if control_on == "conditional":
    params["uncontrolled"] = parts.denoiser_params
  return Pretrained(
    network=parts.network(guidance=guidance, control_on=control_on),
    params=params,
    sde=parts.schedule.sde,
    sample_shape=parts.latent_shape(size),
    conditions=tuple(texts),
    control_dim=parts.control_dim,
    select=parts.is_adapted,
    mergeable=True,
    # Images [B, H, W, 3], about in [-1, 1].
    decode=lambda latents: parts.decode(parts.vae_params, latents),
  )

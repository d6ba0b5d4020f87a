# SPDX-License-Identifier: Apache-2.0
"""Problems of Stable Diffusion: prompts c, and measured quantities as y.

A sample is a latent; its picture is measured. The pre-trained model is the
guided one, see `ctrl_jax.diffusers.prompted`. The labelled set is any folder of
images, or images that the pre-trained model makes.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import paths, sampling
from ctrl_jax.datasets import image_folder
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.diffusers import prompted
from ctrl_jax.diffusers.prompted import Pipeline
from ctrl_jax.stable_diffusion.prompts import Prompts
from experiments.configs import stable_diffusion as schema
from experiments.problems import (
  model_files,
  painting,
  picture_quality,
  requests,
  stable_labels,
  stable_quantities,
  tiny_model,
)
from experiments.problems.factors import every_y
from experiments.problems.problem import Problem
from experiments.runtime import devices, inputs

PAINTED = "labelled"  # images of the model's own, in the run's folder


def make(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem of config.model, its prompts and config.data.

  Raises:
    FileNotFoundError: no such model, or no such folder of images.
    ValueError: no model was named, or a setting does not fit it.
  """
  images = _find(config, workdir) if config.data.dir else None
  problem = load(config, workdir)
  clip = stable_quantities.read_clip(config, workdir)
  quantities = stable_quantities.quantities(config, clip, workdir)
  if images is None:
    _paint(problem, config, workdir / PAINTED)
    images = _find(config, workdir)
  factors = stable_labels.label(images, quantities, config, workdir)
  alone = len(factors) == 1
  names = [factor.name for factor in factors]
  quality = picture_quality.make(problem, clip, size=config.model.size)
  return dataclasses.replace(
    problem,
    factors=factors,
    edges=factors[0].edges if alone else np.zeros(0),
    property_name=names[0] if alone else "",
    facts={**problem.facts, "factors": names},
    quality=quality,
  )


def _find(config: ConfigDict, workdir: pathlib.Path) -> ImageFolder:
  """The images that are labelled."""
  data = config.data
  folder = (
    pathlib.Path(data.dir).expanduser() if data.dir else workdir / PAINTED
  )
  images = image_folder.find(
    folder, size=config.model.size, max_pixels=data.max_pixels
  )
  if data.num_images:
    images = images.subset(np.arange(min(data.num_images, len(images))))
  files = [folder / name for name in images.names]
  inputs.tie_files(workdir, "data.dir", folder, files)
  return images


def model_folder(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """The folder of config.model.path; a tiny model is written.

  Raises:
    ValueError: no model was named.
  """
  path = config.model.path
  if path in tiny_model.KINDS:
    return tiny_model.write(workdir / "model", kind=path)
  if not path:
    raise ValueError(
      "model.path is empty: give the folder of Stable Diffusion's weights, as "
      "in --config.model.path=/path/to/stable-diffusion-v1-5"
    )
  return pathlib.Path(path).expanduser()


def load(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem but for what y means.

  Raises:
    FileNotFoundError: something is missing in the model's folder.
    ValueError: no model was named, or a setting does not fit it.
  """
  settings = config.model
  folder = model_folder(config, workdir)
  files = model_files.of_pipeline(folder, with_t5=settings.t5)
  inputs.tie_files(workdir, "model.path", folder, files)
  dtype: Any = jnp.dtype(settings.dtype)
  prompts = schema.all_prompts(config)
  encoded = prompted.encode(
    folder, prompts, size=settings.size, with_t5=settings.t5, dtype=dtype
  )
  for prompt in encoded.truncated:
    print(f"warning: too long, and cut: {prompt!r}", file=sys.stderr)
  parts = prompted.read(
    folder,
    dtype=dtype,
    attention=settings.attention or None,
    remat=settings.remat,
    mesh=devices.weights_mesh(config),
  )
  return assemble(config, parts, encoded)


def assemble(config: ConfigDict, parts: Pipeline, encoded: Prompts) -> Problem:
  """The problem but for what y means, of networks and prompts."""
  prompts = schema.all_prompts(config)
  sizes = [config.data.num_controls] * (1 + bool(config.data.second_quantity))
  kernel = parts.schedule.kernel(config.kernel.num_steps, eta=config.kernel.eta)
  paths.check_stochastic(kernel)
  shown = config.evaluate.prompts or prompts
  asked = np.array([prompts.index(p) for p in config.prompts], np.int32)
  unseen = [p for p in prompts[: len(shown)] if p not in config.prompts]
  return Problem(
    pretrained=prompted.pretrained(
      prompts,
      parts,
      encoded,
      size=config.model.size,
      guidance=config.model.guidance_scale,
      control_on=config.model.control_on,
    ),
    kernel=kernel,
    factors=(),
    num_conditions=len(shown),
    **every_y(sizes),
    law=requests.of_conditions(asked),
    facts={"prompts": list(prompts[: len(shown)]), "unseen_prompts": unseen},
  )


def _paint(problem: Problem, config: ConfigDict, folder: pathlib.Path) -> None:
  """Fills a folder with images of the pre-trained model, unless it is there."""
  model = problem.pretrained
  asked = [model.conditions.index(prompt) for prompt in config.prompts]

  def sample(_, chain_keys, c):
    start = problem.starts(chain_keys)
    reference = model.reference_fn(c)
    chain = sampling.rollout(chain_keys, start, problem.kernel, reference)
    return model.decoded(chain.x)

  painting.paint(
    sample,
    np.resize(np.array(asked, np.int32), (config.data.num_images,)),
    folder,
    seed=config.seed,
    chunk=config.evaluate.chunk,
    mesh=devices.mesh(config),
  )

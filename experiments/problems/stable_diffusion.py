# SPDX-License-Identifier: Apache-2.0
"""Problems of Stable Diffusion: prompts c, and measured quantities as y.

A sample is a latent; pictures of it are what is measured. The pre-trained
model is the guided one, see `ctrl_jax.stable_diffusion.guided`. The labelled
set is any folder of images, or images that the pre-trained model makes.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import parallel, paths, sampling
from ctrl_jax.datasets import image_folder
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.policy import Network
from ctrl_jax.stable_diffusion import guided, pipeline
from ctrl_jax.stable_diffusion.embedder import Embedder
from ctrl_jax.stable_diffusion.pipeline import Pipeline
from experiments.configs import stable_diffusion as schema
from experiments.problems import (
  model_files,
  painting,
  stable_labels,
  tiny_model,
)
from experiments.problems.factors import control_names, joint_label
from experiments.problems.instruments import Look, in_chunks
from experiments.problems.problem import Problem
from experiments.problems.stable_labels import Labelled
from experiments.runtime import inputs

PAINTED = "labelled"  # images of the model's own, in the run's folder
PICTURES = 64  # that are held at a time; at 512x512 they are 200 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents(Problem):
  """A pipeline with its prompts; samples are scaled latents."""

  pipeline: Pipeline
  network: Network
  frozen: guided.Parameters
  prompts: tuple[str, ...]  # all values of c; the first are evaluated
  trained: np.ndarray  # c of the prompts that training asks for, int32

  @property
  def num_sampled(self) -> int:
    """Number of all prompts."""
    return len(self.prompts)

  def requests(self, log_evidence: np.ndarray) -> dict[str, np.ndarray]:
    """Every y of the prompts that training asks for."""
    table = super().requests(log_evidence)
    # In their order, which no other prompt changes.
    rows = np.arange(log_evidence.size).reshape(log_evidence.shape)
    asked = rows[self.trained].ravel()
    return {name: column[asked] for name, column in table.items()}

  def facts(self) -> dict[str, Any]:
    """Which prompts are evaluated, and those that training never asked for."""
    shown = range(self.num_conditions)
    unseen = [c for c in shown if c not in self.trained]
    return {
      "prompts": [self.prompts[c] for c in shown],
      "unseen_prompts": [self.prompts[c] for c in unseen],
    }

  def control_scale(self) -> np.ndarray:
    """One, [K], so that the control can be merged into the weights."""
    return np.where(self.kernel.std > 0, 1.0, 0.0)

  def reference_fn(self, c: jax.Array) -> Callable[..., jax.Array]:
    """The guided pre-trained model."""
    return lambda x, t: self.network(self.frozen, x, t, c, None).eps

  def decode(self, latents: jax.Array) -> jax.Array:
    """Images [B, H, W, 3], about in [-1, 1]; differentiable."""
    return self.pipeline.decode(self.pipeline.vae_params, latents)

  def pictures(self, samples: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] in [-1, 1], on the host."""
    return np.clip(self._decode_all(samples), -1, 1)

  def look(
    self, function: Callable[[np.ndarray], np.ndarray], samples: np.ndarray
  ) -> np.ndarray:
    """What a function of pictures says of many, [N]; few are held at a time."""
    starts = range(0, len(samples), PICTURES)
    parts = (np.asarray(samples[i : i + PICTURES]) for i in starts)
    return np.concatenate([function(self.pictures(part)) for part in parts])

  @functools.cached_property
  def _decode_all(self) -> Look:
    return in_chunks(self.decode, chunk=8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(Latents):
  """The same with images whose y is known."""

  factors: tuple[Labelled, ...]  # of y, the first varies slowest
  clip: Embedder | None  # that judges how well a picture fits its prompt

  def facts(self) -> dict[str, Any]:
    """The prompts, and what each factor of y measures."""
    names = [factor.quantity.name for factor in self.factors]
    return {**super().facts(), "factors": names}

  def label(self, samples: np.ndarray) -> np.ndarray:
    """The oracles' y of each latent, int32 [N]; -1 for one of NaN."""
    return self.look(functools.partial(joint_label, self.factors), samples)


def make(config: ConfigDict, workdir: pathlib.Path) -> StableDiffusion:
  """The problem of config.model, its prompts and config.data.

  Raises:
    FileNotFoundError: no such model, or no such folder of images.
    ValueError: no model was named, or a setting does not fit it.
  """
  images = _find(config, workdir) if config.data.dir else None
  model = load(config, workdir)
  clip = stable_labels.read_clip(config, workdir)
  quantities = stable_labels.quantities(config, clip, workdir)
  if images is None:
    _paint(model, config, workdir / PAINTED)
    images = _find(config, workdir)
  factors = stable_labels.label(images, quantities, config, workdir)
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  if len(factors) == 1:
    (only,) = factors
    fields |= {"edges": only.edges, "property_name": only.quantity.name}
  return StableDiffusion(**fields, factors=factors, clip=clip)


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
  if path == "tiny":
    return tiny_model.write(workdir / "model")
  if not path:
    raise ValueError(
      "model.path is empty: give the folder of Stable Diffusion's weights, as "
      "in --config.model.path=/path/to/stable-diffusion-v1-5"
    )
  return pathlib.Path(path).expanduser()


def load(config: ConfigDict, workdir: pathlib.Path) -> Latents:
  """The problem but for its labels.

  Raises:
    FileNotFoundError: something is missing in the model's folder.
    ValueError: no model was named, or a setting does not fit it.
  """
  settings = config.model
  folder = model_folder(config, workdir)
  inputs.tie_files(
    workdir, "model.path", folder, model_files.of_pipeline(folder)
  )
  dtype: Any = jnp.dtype(settings.dtype)
  prompts = schema.all_prompts(config)
  encoded = pipeline.encode_prompts(folder, prompts, dtype=dtype)
  for prompt in encoded.truncated:
    print(f"warning: cut to 77 tokens: {prompt!r}", file=sys.stderr)
  parts = pipeline.load(
    folder,
    dtype=dtype,
    attention=settings.attention or None,
    remat=settings.remat,
  )
  return assemble(config, parts, encoded)


def assemble(
  config: ConfigDict, parts: Pipeline, encoded: pipeline.Prompts
) -> Latents:
  """The problem but for its labels, of networks and prompts."""
  settings, prompts = config.model, schema.all_prompts(config)
  sizes = [config.data.num_controls] * (1 + bool(config.data.second_quantity))
  frozen: guided.Parameters = {
    "unet": parts.unet_params,
    "prompts": encoded.prompts,
    "empty": encoded.empty,
  }
  if settings.control_on == "conditional":
    frozen["uncontrolled"] = parts.unet_params
  kernel = parts.schedule.kernel(config.kernel.num_steps, eta=config.kernel.eta)
  paths.check_stochastic(kernel)
  return Latents(
    sde=parts.schedule.sde,
    kernel=kernel,
    sample_shape=parts.latent_shape(settings.size),
    num_conditions=len(config.evaluate.prompts or prompts),
    controls=np.arange(math.prod(sizes), dtype=np.int32),
    control_names=control_names(sizes),
    property_name="",
    measure=None,
    bound=None,
    edges=np.zeros(0),
    pipeline=parts,
    network=guided.make_network(
      parts.unet,
      parts.schedule,
      guidance=settings.guidance_scale,
      control_on=settings.control_on,
    ),
    frozen=frozen,
    prompts=prompts,
    trained=np.array([prompts.index(p) for p in config.prompts], np.int32),
  )


def _paint(problem: Latents, config: ConfigDict, folder: pathlib.Path) -> None:
  """Fills a folder with images of the pre-trained model, unless it is there."""

  def sample(_, chain_keys, c):
    start = problem.starts(chain_keys)
    reference = problem.reference_fn(c)
    chain = sampling.rollout(chain_keys, start, problem.kernel, reference)
    return problem.decode(chain.x)

  painting.paint(
    sample,
    np.resize(problem.trained, (config.data.num_images,)),
    folder,
    seed=config.seed,
    chunk=config.evaluate.chunk,
    mesh=parallel.make_mesh(),
  )

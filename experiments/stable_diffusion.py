# SPDX-License-Identifier: Apache-2.0
"""Problems of Stable Diffusion: prompts c, and a quantity of images as y.

A sample is a latent; pictures of it are what is measured. The pre-trained
model is the guided one, see `ctrl_jax.stable_diffusion.guided`. The labelled
set is any folder of images, or images that the pre-trained model makes.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict
from PIL import Image

from ctrl_jax import parallel, sampling
from ctrl_jax.datasets import (
  image_folder,
  jpeg,
  labelled,
  measurements,
  oracles,
)
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.policy import Network
from ctrl_jax.stable_diffusion import guided, pipeline
from ctrl_jax.stable_diffusion.pipeline import Pipeline
from experiments import keys, tiny_model
from experiments.instruments import Look, in_chunks
from experiments.logs import Progress
from experiments.problems import Problem

PROPERTY = f"compressibility: -(kB as JPEG of quality {jpeg.QUALITY})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents(Problem):
  """A pipeline with its prompts; samples are scaled latents."""

  pipeline: Pipeline
  network: Network
  frozen: guided.Parameters
  prompts: tuple[str, ...]

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

  def label(self, samples: np.ndarray) -> np.ndarray:
    """The oracle's y of each latent, int32 [N]; -1 for one of NaN."""
    values = measure(self.pictures(np.asarray(samples)))
    return np.asarray(
      oracles.bin_of(jnp.asarray(values), jnp.asarray(self.edges))
    )

  @functools.cached_property
  def _decode_all(self) -> Look:
    return in_chunks(self.decode, chunk=8)


def measure(images: np.ndarray) -> np.ndarray:
  """The oracle: `PROPERTY` of images [N, H, W, 3] in [-1, 1], [N]."""
  return jpeg.compressibility(images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(Latents):
  """The same with images whose y is known."""

  labelled: ImageFolder
  labels: np.ndarray  # y of each, int32
  splits: tuple[np.ndarray, ...]  # train, calibration and test of these


def make(config: ConfigDict, workdir: pathlib.Path) -> StableDiffusion:
  """The problem of config.model, config.prompts and config.data.

  Raises:
    FileNotFoundError: no such model, or no such folder of images.
    ValueError: no model was named, or a setting does not fit it.
  """
  model = _load(config, workdir)
  data = config.data
  folder = pathlib.Path(data.dir) if data.dir else workdir / "labelled"
  if not data.dir:
    _paint(model, config, folder)
  images = image_folder.find(folder, size=config.model.size)
  if data.num_images:
    images = images.subset(np.arange(min(data.num_images, len(images))))
  measured = measurements.measure(
    images,
    {PROPERTY: measure},
    cache=workdir / "labels.npz",
    progress=functools.partial(tqdm.tqdm, desc="labels", leave=False),
  )
  if measured.skipped:
    print(f"warning: {measured.skipped_line()}", file=sys.stderr)
  values = measured.values[PROPERTY]
  edges = np.array(data.edges, np.float32)
  if not edges.size:
    edges = oracles.quantile_edges(values, data.num_controls)
  if len(edges) + 1 != data.num_controls:
    raise ValueError(
      f"data.edges {data.edges} make {len(edges) + 1} labels, and "
      f"data.num_controls is {data.num_controls}"
    )
  splits = labelled.split(len(values), seed=config.seed)
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  return StableDiffusion(
    **(fields | {"edges": edges}),
    labelled=measured.images,
    labels=np.asarray(oracles.bin_of(jnp.asarray(values), jnp.asarray(edges))),
    splits=tuple(splits),
  )


def _load(config: ConfigDict, workdir: pathlib.Path) -> Latents:
  """The problem but for its labels."""
  settings = config.model
  if settings.path == "tiny":
    folder = tiny_model.write(workdir / "model")
  elif settings.path:
    folder = pathlib.Path(settings.path).expanduser()
  else:
    raise ValueError(
      "model.path is empty: give the folder of Stable Diffusion's weights, as "
      "in --config.model.path=/path/to/stable-diffusion-v1-5"
    )
  dtype: Any = jnp.dtype(settings.dtype)
  prompts = tuple(config.prompts)
  encoded = pipeline.encode_prompts(folder, prompts, dtype=dtype)
  for prompt in encoded.truncated:
    print(f"warning: cut to 77 tokens: {prompt!r}", file=sys.stderr)
  parts = pipeline.load(
    folder,
    dtype=dtype,
    attention=settings.attention or None,
    remat=settings.remat,
  )
  num = config.data.num_controls
  return Latents(
    sde=parts.schedule.sde,
    kernel=parts.schedule.kernel(
      config.kernel.num_steps, eta=config.kernel.eta
    ),
    sample_shape=parts.latent_shape(settings.size),
    num_conditions=len(prompts),
    controls=np.arange(num, dtype=np.int32),
    control_names=tuple(f"y = {y}" for y in range(num)),
    property_name=PROPERTY,
    measure=None,
    bound=None,
    edges=np.zeros(0),
    pipeline=parts,
    network=guided.make_network(
      parts.unet, parts.schedule, guidance=settings.guidance_scale
    ),
    frozen={
      "unet": parts.unet_params,
      "prompts": encoded.prompts,
      "empty": encoded.empty,
    },
    prompts=prompts,
  )


def _paint(problem: Latents, config: ConfigDict, folder: pathlib.Path) -> None:
  """Fills a folder with images of the pre-trained model, unless it is there."""
  if folder.exists():
    return
  draft = folder.with_name(folder.name + ".part")
  draft.mkdir(parents=True, exist_ok=True)

  def sample(_, chain_keys, c):
    start = sampling.initial_noise(chain_keys, problem.sample_shape)
    reference = problem.reference_fn(c)
    chain = sampling.rollout(chain_keys, start, problem.kernel, reference)
    return problem.decode(chain.x)

  mesh = parallel.make_mesh()
  num = config.data.num_images
  chunk = -(-config.evaluate.chunk // mesh.size) * mesh.size
  mapped = parallel.map_examples(sample, mesh)
  all_keys = keys.example_keys(
    config.seed, "labelled", -(-num // chunk) * chunk
  )
  progress = Progress("labelled", start=0, total=-(-num // chunk))
  for start in range(0, num, chunk):
    rows = np.arange(start, start + chunk, dtype=np.int32)
    files = [draft / f"{row:06d}.png" for row in rows if row < num]
    if not files[-1].exists():  # written last
      chains = all_keys[start : start + chunk], rows % problem.num_conditions
      images = mapped((), *parallel.shard(chains, mesh))
      for file, picture in zip(
        files, image_folder.as_bytes(images), strict=False
      ):
        Image.fromarray(picture).save(file)
    progress.advance({})
  progress.close()
  draft.rename(folder)

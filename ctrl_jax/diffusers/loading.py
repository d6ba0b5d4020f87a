# SPDX-License-Identifier: Apache-2.0
r"""From a folder of diffusers to a `Pretrained`.

Either network predicts at a training step, which is that of the time t

    step = N t - 1,    t = (i + 1) / N at step i,                         (1)

as in `stable_diffusion.schedule`; its output becomes eps (`schedules`). What is
sampled of a DiT may be guided without a classifier (arXiv 2207.12598),

    eps = eps(x, t, null) + g [eps(x, t, c) - eps(x, t, null)],           (2)

which is then the pre-trained model: a control acts on both terms, and the
vector of its label on the second.
"""

import functools
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.diffusers import dit, pipelines, prompted, schedules, unet2d
from ctrl_jax.diffusers.dit_config import Config as DiTConfig
from ctrl_jax.diffusers.schedules import Scheduler
from ctrl_jax.diffusers.unet2d_config import Config as UNetConfig
from ctrl_jax.kernels import Kernel
from ctrl_jax.models.heads import TokenHead
from ctrl_jax.policy import Condition, Network, Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.stable_diffusion import folders, guided, pipeline, weights
from ctrl_jax.types import Params


def load(
  folder: str | pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  remat: bool = False,
  clip: bool | None = None,
  guidance: float = 1.0,
  classes: Sequence[int | str] | None = None,
) -> Pretrained:
  """The model in the folder of a DDPMPipeline, DDIMPipeline or DiTPipeline.

  Samples are images [height, width, channels] in [-1, 1], or latents, which
  `Pretrained.decode` makes such images of. Adapters change every Dense kernel
  of a U-Net, and those of attention in a DiT.

  Args:
    folder: where diffusers wrote it.
    dtype: of parameters and computation; predictions are float32.
    remat: whether each block is computed again in the backward pass.
    clip: whether each predicted x_0 is cut as the scheduler asks, in the
      network (`schedules`); None: it is not, and a warning says so.
    guidance: g of (2), of a DiT.
    classes: numbers or names of those that c is one of; None: all.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: another pipeline, a field that is not supported, a damaged
      file, or an argument that does not suit the model.
  """
  folder = pathlib.Path(folder)
  index = pipelines.read_index(folder)
  scheduler = _scheduler(folder)
  if clip and scheduler.clip is None:
    raise ValueError("clip is True, and this scheduler cuts nothing")
  if clip is None and scheduler.clip is not None:
    warnings.warn(
      f"{folder}: its scheduler cuts every predicted x_0 to "
      f"[-{scheduler.clip:g}, {scheduler.clip:g}], which is left out here: "
      "pass clip=True to have it in the network, clip=False to hear no more",
      stacklevel=2,
    )
  if not clip:
    scheduler = Scheduler(schedule=scheduler.schedule)
  settings = {"remat": remat, "dtype": dtype}
  read: Callable[..., Pretrained] = _of_pixels
  if index["_class_name"] == pipelines.LATENTS:
    read = functools.partial(_of_latents, guidance=guidance)
  elif guidance != 1:
    raise ValueError(
      f"guidance is {guidance}; {index['_class_name']} has none, leave it at 1"
    )
  return read(folder, scheduler, index, classes, settings)


def kernel(
  folder: str | pathlib.Path, num_steps: int, *, eta: float = 1.0
) -> Kernel:
  """The noisy steps of a folder's scheduler: DDIM at diffusers' own times.

  For `ctrl_jax.tune`, which else places steps of its own.

  Args:
    folder: of a pipeline, with prompts or without.
    num_steps: K.
    eta: noise of the steps, in [0, 1]; 0 is no sampler to tune.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: as in `load` and `Schedule.kernel`.
  """
  folder = pathlib.Path(folder)
  if pipelines.reads_prompts(folder):
    return prompted.read_schedule(folder).kernel(num_steps, eta=eta)
  pipelines.read_index(folder)
  return _scheduler(folder).schedule.kernel(num_steps, eta=eta)


def _scheduler(folder: pathlib.Path) -> Scheduler:
  where = pipelines.part(folder, "scheduler")
  return schedules.load(where / "scheduler_config.json")


def _of_pixels(
  folder: pathlib.Path,
  scheduler: Scheduler,
  index: dict[str, Any],
  classes: Sequence[int | str] | None,
  settings: dict[str, Any],
) -> Pretrained:
  """The U-Net of a DDPMPipeline or DDIMPipeline."""
  where = pipelines.part(folder, "unet")
  config = folders.read_config(where / "config.json", UNetConfig.from_json)
  number, known = config.num_class_embeds, None
  if number is not None:
    known = pipelines.choose(pipelines.labels(index, number), classes)
  elif classes is not None:
    raise ValueError("classes were given, and this model has none")
  network = unet2d.UNet2D(config, **settings)
  height, width, _ = config.sample_shape

  def predict(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: Condition,
    control: jax.Array | None,
  ) -> Output:
    if known is not None and c is not None:
      c = jnp.asarray(known.numbers)[c]
    steps = scheduler.schedule.steps(t)
    found: Any = network.apply({"params": params}, x, steps, c, control)
    output, tokens = found
    return Output(scheduler.eps(output, x, t), tokens)

  return Pretrained(
    network=predict,
    params=_params(where, network, config.sample_shape, settings["dtype"]),
    sde=scheduler.schedule.sde,
    sample_shape=config.sample_shape,
    conditions=() if known is None else known.names,
    control_dim=config.control_dim,
    make_head=lambda widths: TokenHead(tuple(widths), 1),
    hidden_shape=(height * width, config.block_out_channels[0]),
    bound=1.0,
  )


def _of_latents(
  folder: pathlib.Path,
  scheduler: Scheduler,
  index: dict[str, Any],
  classes: Sequence[int | str] | None,
  settings: dict[str, Any],
  *,
  guidance: float,
) -> Pretrained:
  """The transformer and the autoencoder of a DiTPipeline."""
  if guidance < 1:
    raise ValueError(f"guidance must be 1 or more, got {guidance}")
  where = folder / "transformer"
  config = folders.read_config(where / "config.json", DiTConfig.from_json)
  labels = pipelines.labels(index, config.num_embeds_ada_norm)
  known = pipelines.choose(labels, classes)
  network = dit.DiT(config, **settings)
  params = _params(where, network, config.sample_shape, settings["dtype"])
  autoencoder, of_vae = pipeline.load_vae(folder / "vae", **settings)
  if autoencoder.config.latent_channels != config.in_channels:
    raise ValueError(
      f"{folder}: in_channels of the transformer is {config.in_channels}, and "
      f"latent_channels of the vae {autoencoder.config.latent_channels}"
    )
  return Pretrained(
    network=_guided(network, scheduler, known, guidance),
    params=params,
    sde=scheduler.schedule.sde,
    sample_shape=config.sample_shape,
    conditions=known.names,
    control_dim=config.dims,
    select=lambda path, leaf: path.endswith(guided.ATTENTION),
    make_head=lambda widths: TokenHead(tuple(widths), config.patch_size),
    hidden_shape=(config.num_tokens, config.dims),
    decode=lambda latents: pipeline.decode(autoencoder, of_vae, latents),
  )


def _guided(
  network: dit.DiT,
  scheduler: Scheduler,
  known: pipelines.Classes,
  guidance: float,
) -> Network:
  """The noise prediction (2) of a DiT, without its variance."""
  channels = network.config.in_channels

  def predict(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: Condition,
    control: jax.Array | None,
  ) -> Output:
    if c is None:
      raise ValueError("this model has classes: c must not be None")
    twice = guidance != 1
    c = jnp.where(c < 0, -1, jnp.asarray(known.numbers)[c])
    if twice:
      x, c = jnp.concatenate([x, x]), jnp.concatenate([jnp.full_like(c, -1), c])
      if control is not None:
        control = jnp.concatenate([jnp.zeros_like(control), control])
    steps = scheduler.schedule.steps(t)
    found: Any = network.apply({"params": params}, x, steps, c, control)
    output, tokens = found[0][..., :channels], found[1]
    if twice:
      without, given = jnp.split(output, 2)
      output = without + guidance * (given - without)
      x, tokens = jnp.split(x, 2)[1], jnp.split(tokens, 2)[1]
    return Output(scheduler.eps(output, x, t), tokens)

  return predict


def _params(
  folder: pathlib.Path,
  network: unet2d.UNet2D | dit.DiT,
  shape: tuple[int, int, int],
  dtype: Any,
) -> Params:
  """The network's parameters, from the safetensors in a folder."""
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  one = jax.ShapeDtypeStruct((1,), jnp.int32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), x, one, one)
  # Positions are constants, which files of old may hold.
  ignore = ("pos_embed.pos_embed",)
  return weights.load(folder, shapes["params"], dtype=dtype, ignore=ignore)

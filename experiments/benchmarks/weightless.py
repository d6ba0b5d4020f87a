# SPDX-License-Identifier: Apache-2.0
"""A control's update of Stable Diffusion 1.5 as a program, without its weights.

It is what configs/sd15_compressibility.py runs on a device, or on a group that
shares the weights, traced with shapes in place of arrays. Frozen parameters are
arguments of the program: as constants they would have to exist.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax import parallel, placement, rewards
from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.policy import Policy
from ctrl_jax.stable_diffusion import unet, vae
from ctrl_jax.stable_diffusion.pipeline import Pipeline
from ctrl_jax.stable_diffusion.prompts import Encoded, Prompts
from ctrl_jax.stable_diffusion.schedule import Schedule
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from experiments.configs import sd15_compressibility
from experiments.configs import stable_diffusion as schema
from experiments.problems import stable_diffusion
from experiments.problems.problem import Problem
from experiments.training import algorithms, policies

TOKENS = 77  # of a prompt
UNET = UNetConfig(cross_attention_dim=768)
VAE = vae.Config(
  block_out_channels=(128, 256, 512, 512),
  down_block_types=("DownEncoderBlock2D",) * 4,
  up_block_types=("UpDecoderBlock2D",) * 4,
  layers_per_block=2,
)
SCHEDULER = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}


class Networks(NamedTuple):
  """What is compiled, by its sizes."""

  unet: unet.UNet
  vae: vae.VAE
  classifier: ResidualClassifier


class Control(NamedTuple):
  """A control that is about to be trained."""

  problem: Problem
  policy: Policy
  learner: Learner


class Frozen(NamedTuple):
  """The parameters that do not change, or their shapes."""

  unet: Any
  vae: Any
  classifier: Any
  prompts: Any  # [C, tokens, d]
  empty: Any  # [tokens, d]


def configure(
  *,
  batch: int,
  parts: int,
  steps: int,
  backprop_steps: int,
  attention: str,
  remat: bool = True,
) -> ConfigDict:
  """The experiment, in bfloat16, with these sizes of an update.

  Args:
    batch: chains of an update.
    parts: of the batch, computed one after another.
    steps: K.
    backprop_steps: that are differentiated.
    attention: of the U-Net, as `model.attention`.
    remat: whether blocks are computed again, as `model.remat`.
  """
  config = sd15_compressibility.get_config()
  config.model.update(dtype="bfloat16", attention=attention, remat=remat)
  config.kernel.num_steps = steps
  config.control.batch_size = batch
  config.control.ctrl.update(accumulate=parts, backprop_steps=backprop_steps)
  return config


def networks(
  config: ConfigDict,
  *,
  unet_config: UNetConfig = UNET,
  vae_config: vae.Config = VAE,
) -> Networks:
  """Those of an experiment, of Stable Diffusion 1.5's sizes."""
  settings, judge = config.model, config.classifier
  dtype: Any = jnp.dtype(settings.dtype)
  return Networks(
    unet.UNet(unet_config, settings.attention or None, settings.remat, dtype),
    vae.VAE(vae_config, settings.remat, dtype),
    ResidualClassifier(
      config.data.num_controls, tuple(judge.widths), tuple(judge.strides)
    ),
  )


def frozen_shapes(config: ConfigDict, parts: Networks) -> Frozen:
  """Shapes of all parameters; only the classifier's are float32."""
  dtype: Any = jnp.dtype(config.model.dtype)
  tokens = (TOKENS, parts.unet.config.cross_attention_dim)
  latents = (1, 8, 8, parts.unet.config.in_channels)
  image = (1, 8 * parts.vae.config.downsampling, 8, 3)
  prompt = (1, *tokens)

  def of(network, dtype, *inputs):
    variables = jax.eval_shape(
      network.init, jax.random.key(0), *(jnp.zeros(i) for i in inputs)
    )
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), variables["params"]
    )

  return Frozen(
    of(parts.unet, dtype, latents, (), prompt),
    of(parts.vae, dtype, image),
    of(parts.classifier, jnp.float32, image),
    jax.ShapeDtypeStruct((len(schema.all_prompts(config)), *tokens), dtype),
    jax.ShapeDtypeStruct(tokens, dtype),
  )


def control(
  config: ConfigDict,
  parts: Networks,
  frozen: Frozen,
  *,
  axis_name: str | None = None,
) -> Control:
  """The experiment's control; axis_name: of devices, where they are mapped."""
  problem = stable_diffusion.assemble(
    config,
    Pipeline(
      unet=parts.unet,
      vae=parts.vae,
      schedule=Schedule.from_json(SCHEDULER),
      unet_params=frozen.unet,
      vae_params=frozen.vae,
    ),
    Prompts(Encoded(frozen.prompts), Encoded(frozen.empty), ()),
  )
  policy = policies.make(problem, config.control, None)

  def logits_fn(images: jax.Array) -> jax.Array:
    logits: Any = parts.classifier.apply({"params": frozen.classifier}, images)
    return logits

  judge = rewards.classifier(logits_fn)
  learner = algorithms.control_learner(
    problem,
    policy,
    lambda x, c, y: judge(problem.pretrained.decoded(x), c, y),
    config,
    axis_name=axis_name,
  )
  return Control(problem, policy, learner)


def lower(
  config: ConfigDict, parts: Networks, *, devices: int = 1
) -> jax.stages.Lowered:
  """The update as a program of (frozen, state, keys, batch), not compiled.

  Args:
    config: see `configure`.
    parts: see `networks`.
    devices: of a group, which share parameters and state; see `placement`.
  """
  mesh = parallel.make_mesh(jax.devices()[:devices], model=devices)

  def init(frozen: Frozen, key: jax.Array) -> TrainState:
    made = control(config, parts, frozen)
    return made.learner.init(made.policy.init(key))

  def update(frozen, state, keys, batch):
    made = control(config, parts, frozen)
    return made.learner.update(state, keys, batch)

  def inputs(frozen):
    keys = jax.random.split(jax.random.key(0), config.control.batch_size)
    row = jnp.zeros(len(keys))
    labels = row.astype(int)
    batch = {"c": labels, "y": labels, "log_evidence": row}
    return init(frozen, keys[0]), keys, batch

  def placed(tree: Any) -> Any:
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      tree,
      placement.shardings(tree, mesh),
    )

  frozen = frozen_shapes(config, parts)
  arguments = placed((frozen, *jax.eval_shape(inputs, frozen)))
  # What the program does not read, the encoder, is on the device all the same.
  compiled = jax.jit(
    update,
    donate_argnums=1,
    keep_unused=True,
    out_shardings=placement.shardings(jax.eval_shape(update, *arguments), mesh),
  )
  return compiled.lower(*arguments)

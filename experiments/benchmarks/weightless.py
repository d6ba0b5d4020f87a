# SPDX-License-Identifier: Apache-2.0
"""A control's update of a Stable Diffusion as a program, without its weights.

It is what an experiment, such as configs/sd15_compressibility.py, runs on a
device, or on a group that shares the weights, traced with shapes in place of
arrays. Frozen parameters are arguments of the program: as constants they would
have to exist.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax import parallel, placement, rewards
from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.policy import Policy
from ctrl_jax.stable_diffusion import pipeline, unet, vae
from ctrl_jax.stable_diffusion import schedule as schedules
from ctrl_jax.stable_diffusion.prompts import Encoded, Prompts
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from ctrl_jax.stable_diffusion_3 import mmdit
from ctrl_jax.stable_diffusion_3 import pipeline as pipeline_3
from ctrl_jax.stable_diffusion_3 import schedule as schedules_3
from experiments.benchmarks.released import SD15, Released
from experiments.configs import stable_diffusion as schema
from experiments.problems import stable_diffusion
from experiments.problems.problem import Problem
from experiments.training import algorithms, policies


class Networks(NamedTuple):
  """What is compiled, by its sizes."""

  denoiser: unet.UNet | mmdit.MMDiT
  vae: vae.VAE
  classifier: ResidualClassifier
  schedule: schedules.Schedule | schedules_3.Schedule
  tokens: int  # of an encoded prompt


class Control(NamedTuple):
  """A control that is about to be trained."""

  problem: Problem
  policy: Policy
  learner: Learner


class Frozen(NamedTuple):
  """The parameters that do not change, or their shapes."""

  denoiser: Any
  vae: Any
  classifier: Any
  prompts: Encoded  # of every c [C, ...]
  empty: Encoded


def configure(
  model: Released = SD15,
  *,
  batch: int,
  parts: int,
  steps: int,
  backprop_steps: int,
  attention: str,
  remat: bool = True,
) -> ConfigDict:
  """The experiment of a model, in bfloat16, with these sizes of an update.

  Args:
    model: whose experiment it is.
    batch: chains of an update.
    parts: of the batch, computed one after another.
    steps: K.
    backprop_steps: that are differentiated.
    attention: of the network, as `model.attention`.
    remat: whether blocks are computed again, as `model.remat`.
  """
  config = model.get_config()
  config.model.update(dtype="bfloat16", attention=attention, remat=remat)
  config.kernel.num_steps = steps
  config.control.batch_size = batch
  config.control.ctrl.update(accumulate=parts, backprop_steps=backprop_steps)
  return config


def networks(config: ConfigDict, model: Released = SD15) -> Networks:
  """Those of an experiment, of a model's sizes."""
  settings, judge = config.model, config.classifier
  dtype: Any = jnp.dtype(settings.dtype)
  how = (settings.attention or None, settings.remat, dtype)
  return Networks(
    unet.UNet(model.denoiser, *how)
    if isinstance(model.denoiser, UNetConfig)
    else mmdit.MMDiT(model.denoiser, *how),
    vae.VAE(model.vae, settings.remat, jnp.float32 if model.upcast else dtype),
    ResidualClassifier(
      config.data.num_controls, tuple(judge.widths), tuple(judge.strides)
    ),
    schedules.Schedule.from_json(model.scheduler)
    if isinstance(model.denoiser, UNetConfig)
    else schedules_3.Schedule.from_json(model.scheduler),
    model.tokens,
  )


def frozen_shapes(config: ConfigDict, parts: Networks) -> Frozen:
  """Shapes of all parameters; only the classifier's are always float32."""
  dtype: Any = jnp.dtype(config.model.dtype)
  image = (1, 8 * parts.vae.config.downsampling, 8, 3)

  def of(network: Any, dtype: Any, *inputs: tuple[int, ...]) -> Any:
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
      pipeline.shapes_of(network, *inputs),
    )

  inputs = parts.denoiser.config.smallest_inputs
  context, added = inputs[2], inputs[3:]
  if isinstance(parts.denoiser, unet.UNet):
    added = added[1:]  # behind the control
  shapes = ((parts.tokens, context[-1]), *(shape[1:] for shape in added))
  told: Any = [
    jax.ShapeDtypeStruct(shape, dtype if i < 2 else jnp.float32)
    for i, shape in enumerate(shapes)
  ]
  empty = Encoded(*told)  # sizes, the third, are float32
  count = len(schema.all_prompts(config))
  return Frozen(
    of(parts.denoiser, dtype, *inputs),
    of(parts.vae, parts.vae.dtype, image),
    of(parts.classifier, jnp.float32, image),
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), empty
    ),
    empty,
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
    _pipeline(parts, frozen),
    Prompts(frozen.prompts, frozen.empty, ()),
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


def _pipeline(
  parts: Networks, frozen: Frozen
) -> pipeline.Pipeline | pipeline_3.Pipeline:
  """What a folder of these networks would be read as."""
  shared = {"vae": parts.vae, "vae_params": frozen.vae}
  schedule: Any = parts.schedule
  if isinstance(parts.denoiser, unet.UNet):
    return pipeline.Pipeline(
      unet=parts.denoiser,
      unet_params=frozen.denoiser,
      schedule=schedule,
      **shared,
    )
  return pipeline_3.Pipeline(
    transformer=parts.denoiser,
    transformer_params=frozen.denoiser,
    schedule=schedule,
    **shared,
  )


def lower(
  config: ConfigDict, parts: Networks, *, devices: int = 1
) -> jax.stages.Lowered:
  """The update as a program of (frozen, state, keys, batch), not compiled.

  Devices are of a group, which share parameters and state; see `placement`.
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

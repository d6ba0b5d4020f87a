# SPDX-License-Identifier: Apache-2.0
"""Updates of CTRL at several sizes, of random weights, for benchmarks.

    digits    the output head on the DiT of configs/digits.py, 8x8
    fashion   likewise of configs/fashion.py, 28x28
    sd-small  LoRA on a U-Net of two levels at 128x128, reward through the VAE
    sd        Stable Diffusion 1.5's sizes at 512x512

Time and memory do not depend on what weights are, so they are drawn at random.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import rewards
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.stable_diffusion import vae
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from experiments.benchmarks import weightless
from experiments.benchmarks.released import SD15, Released
from experiments.benchmarks.weightless import Control
from experiments.configs import digits, fashion
from experiments.problems import images
from experiments.problems.problem import make_kernel
from experiments.training import algorithms, policies

SMALL_UNET = UNetConfig(
  block_out_channels=(64, 128),
  norm_num_groups=16,
  cross_attention_dim=64,
  attention_head_dim=4,
  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  layers_per_block=1,
)
SMALL_VAE = vae.Config(
  block_out_channels=(16, 32, 32, 32),
  norm_num_groups=8,
  down_block_types=("DownEncoderBlock2D",) * 4,
  up_block_types=("UpDecoderBlock2D",) * 4,
  layers_per_block=1,
)
DTYPES = ("float32", "bfloat16")


class Sizes(NamedTuple):
  """What an update is measured at."""

  batch: int  # chains
  parts: int  # of the batch, one after another
  steps: int  # K
  backprop_steps: int  # of them that are differentiated
  dtype: str
  attention: str = ""  # of a U-Net; "": cudnn on a GPU, else JAX's choice
  remat: bool = True  # blocks of a U-Net are computed again


class Program(NamedTuple):
  """An update, and what it computes."""

  make: Callable[[str | None], Control]  # axis of devices ->
  frozen: Any  # parameters


def counted_flops(function: Callable[..., Any], *inputs: Any) -> float:
  """FLOPs of a function of these inputs or shapes, as XLA counts them.

  Counted before it compiles, one percent more or less than afterwards, and as
  a CPU's program: of others XLA knows no costs before they are compiled.
  """
  with jax.default_device(jax.devices("cpu")[0]):
    costs: Any = jax.jit(function).lower(*inputs).cost_analysis()
  return float(costs["flops"])


def beside(
  seconds: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray
) -> dict[str, float]:
  """Seconds as a median, and their ratio to others that took turns with them.

  The ratios are those of a turn: their median, the least and the largest.
  """
  ratios = np.asarray(seconds) / np.asarray(others)
  return {
    "seconds": float(np.median(seconds)),
    "ratio": float(np.median(ratios)),
    "least": float(ratios.min()),
    "largest": float(ratios.max()),
  }


def ratio(row: Mapping[str, float], digits: int = 2) -> str:
  """The ratios of `beside` as a text."""
  median, least, largest = (
    f"{row[name]:.{digits}f}" for name in ("ratio", "least", "largest")
  )
  return f"{median} ({least} to {largest})"


def dit(config: ConfigDict, side: int, sizes: Sizes) -> Program:
  """The output head of an experiment on images.

  Raises:
    ValueError: another dtype than float32.
  """
  if sizes.dtype != "float32":
    raise ValueError(f"a DiT computes in float32, not in {sizes.dtype}")
  config.kernel.num_steps = sizes.steps
  config.control.ctrl.update(
    accumulate=sizes.parts, backprop_steps=sizes.backprop_steps
  )
  with tempfile.TemporaryDirectory() as folder:
    problem = images.digits(digits.get_config(), pathlib.Path(folder))
  model = images.untrained(
    config.model,
    (side, side, 1),
    problem.sde,
    conditions=images.CONDITIONS,
  )
  if model.init is None:
    raise ValueError("the model cannot be drawn")
  model = model.with_params(model.init(jax.random.key(0)))
  problem = dataclasses.replace(
    problem,
    pretrained=model,
    kernel=make_kernel(config.kernel, problem.sde),
  )
  judge = Classifier(problem.num_controls)
  image = jnp.zeros((1, *problem.sample_shape))
  frozen = {
    "network": model.params,
    "classifier": jax.jit(judge.init)(jax.random.key(1), image),
  }

  def make(axis_name: str | None) -> Control:
    def logits_fn(x: jax.Array) -> jax.Array:
      logits: Any = judge.apply(frozen["classifier"], x)
      return logits

    reward_fn = rewards.classifier(logits_fn)
    policy = policies.make(problem, config.control, reward_fn)
    learner = algorithms.control_learner(
      problem, policy, reward_fn, config, axis_name=axis_name
    )
    return Control(problem, policy, learner)

  return Program(make, frozen)


def stable_diffusion(
  sizes: Sizes,
  *,
  side: int,
  model: Released = SD15,
) -> Program:
  """Adapters on a U-Net with guidance, whose reward decodes the latents."""
  on_gpu = "cudnn" if jax.default_backend() == "gpu" else ""
  config = weightless.configure(
    model,
    batch=sizes.batch,
    parts=sizes.parts,
    steps=sizes.steps,
    backprop_steps=sizes.backprop_steps,
    attention=sizes.attention or on_gpu,
  )
  config.model.update(dtype=sizes.dtype, size=side, remat=sizes.remat)
  parts = weightless.networks(config, model)
  frozen = _draw(weightless.frozen_shapes(config, parts))

  def make(axis_name: str | None) -> Control:
    return weightless.control(config, parts, frozen, axis_name=axis_name)

  return Program(make, frozen)


def _draw(shapes: Any) -> Any:
  """Weights of these shapes, drawn where they stay: the same for each leaf."""

  def draw(key: jax.Array) -> Any:
    largest = max(leaf.size for leaf in jax.tree.leaves(shapes))
    noise = 0.02 * jax.random.normal(key, largest)
    return jax.tree.map(
      lambda leaf: noise[: leaf.size].reshape(leaf.shape).astype(leaf.dtype),
      shapes,
    )

  return jax.jit(draw)(jax.random.key(0))


# By name: sizes and, if it is another, the side of an image -> Program.
MODELS: dict[str, Callable[..., Program]] = {
  "digits": lambda sizes, side=8: dit(digits.get_config(), side, sizes),
  "fashion": lambda sizes, side=28: dit(fashion.get_config(), side, sizes),
  "sd-small": lambda sizes, side=128: stable_diffusion(
    sizes, side=side, model=SD15._replace(denoiser=SMALL_UNET, vae=SMALL_VAE)
  ),
  "sd": lambda sizes, side=512: stable_diffusion(sizes, side=side),
}

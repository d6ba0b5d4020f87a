# SPDX-License-Identifier: Apache-2.0
"""What a control of Stable Diffusion is trained with: classifiers of images.

Both see pairs (image, y) alone, one half of the labelled set's roles swapped,
as for other images (`pretraining.classifier`). The sampler lives on latents, so
the reward decodes them: its gradient passes through the autoencoder.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import policy
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.policy import Policy
from ctrl_jax.stable_diffusion import guided
from experiments import instruments, judges
from experiments.algorithms import adam
from experiments.judges import Judge
from experiments.pretraining import Clock, Learned, Run, loop_settings
from experiments.stable_diffusion import StableDiffusion


def train(this: Run, problem: StableDiffusion, timed: Clock) -> Learned:
  """Trains both classifiers; the prior is what was loaded."""
  rewarder = timed("classifier", classifier, problem, "classifier")
  independent = timed("independent", classifier, problem, "independent")

  def reward_fn(x, c, y):
    return rewarder.reward_fn(problem.decode(x), c, y)

  return Learned(
    problem.frozen,
    problem.reference_fn,
    reward_fn,
    control_policy(this, problem),
    instruments.of_pictures(
      problem.label,
      on_latents(problem, independent),
      problem.num_controls,
      chunk=this.config.evaluate.chunk,
    ),
    rewarder.metrics,
    independent.metrics,
    rewarder.reliability,
  )


def control_policy(this: Run, problem: StableDiffusion) -> Policy:
  """Low-rank adapters of all attention, and a vector for each label."""
  return policy.lora(
    problem.network,
    problem.frozen,
    lambda t: jnp.ones(()),
    num_controls=problem.num_controls,
    dims=problem.pipeline.unet.config.control_dim,
    rank=this.config.control.rank,
    select=guided.is_attention,
  )


def classifier(this: Run, problem: StableDiffusion, stage: str) -> Judge:
  """The classifier that gives the reward, or the one that only watches."""
  config, (train, calibration, test) = this.config[stage], problem.splits
  if stage == "independent":
    train, (calibration, test) = (
      np.concatenate([calibration, test]),
      np.array_split(train, 2),
    )
  return judges.train(
    problem.labelled,
    problem.labels,
    ResidualClassifier(
      problem.num_controls, tuple(config.widths), tuple(config.strides)
    ),
    noise=config.noise,
    train=train,
    calibration=calibration,
    test=test,
    stage=stage,
    optimizer=adam(config.learning_rate, config),
    **loop_settings(this, config),
  )


def on_latents(problem: StableDiffusion, judge: Judge) -> Judge:
  """A classifier of images as one of latents."""

  def decoded(function):
    def of_latents(x: jax.Array) -> jax.Array:
      return function(problem.decode(x))

    return of_latents

  return judge._replace(
    logits_fn=decoded(judge.logits_fn), features_fn=decoded(judge.features_fn)
  )

# SPDX-License-Identifier: Apache-2.0
"""What a control of Stable Diffusion is trained with: classifiers of images.

All see pairs (image, y) alone, one half of the labelled set's roles swapped,
as for other images (`pretraining.classifier`). The sampler lives on latents, so
the reward decodes them, once for all factors of y: its gradient passes through
the autoencoder.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from ctrl_jax import metrics, policy
from ctrl_jax.datasets import brisque
from ctrl_jax.models.classifier import Classifier, standardisation
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.policy import Policy
from ctrl_jax.stable_diffusion import guided
from ctrl_jax.stable_diffusion.embedder import Embedder
from experiments.problems import instruments, judges
from experiments.problems.instruments import Figure, Quality, in_chunks
from experiments.problems.judges import Judge
from experiments.problems.stable_diffusion import Latents, StableDiffusion
from experiments.problems.stable_labels import Labelled
from experiments.training.algorithms import adam
from experiments.training.pretraining import Clock, Learned, Run, loop_settings


def train(this: Run, problem: StableDiffusion, timed: Clock) -> Learned:
  """Trains all classifiers; the prior is what was loaded."""
  rewarder = timed("classifier", classifier, problem, "classifier")
  independent = timed("independent", classifier, problem, "independent")
  return Learned(
    problem.frozen,
    problem.reference_fn,
    judges.after(rewarder, problem.decode).reward_fn,
    control_policy(problem, this.config),
    instruments.of_pictures(
      problem.label,
      judges.after(independent, problem.decode),
      [f.num_labels for f in problem.factors],
      chunk=this.config.evaluate.chunk,
      quality=picture_quality(problem, this.config.model.size),
    ),
    rewarder.metrics,
    independent.metrics,
    rewarder.reliability,
  )


def control_policy(problem: Latents, config: ConfigDict) -> Policy:
  """Low-rank adapters of all attention, and a vector for each label."""
  return policy.lora(
    problem.network,
    problem.frozen,
    lambda t: jnp.ones(()),
    num_controls=problem.num_controls,
    dims=problem.pipeline.unet.config.control_dim,
    rank=config.control.rank,
    select=guided.is_attention,
  )


def classifier(this: Run, problem: StableDiffusion, stage: str) -> Judge:
  """The classifier that gives the reward, or the one that only watches.

  Of several factors each has a classifier of its own.
  """
  several = len(problem.factors) > 1
  trained = [
    _of_factor(this, factor, stage, f"{stage}_{number}" if several else stage)
    for number, factor in enumerate(problem.factors, start=1)
  ]
  return judges.joint(trained, [f.num_labels for f in problem.factors])


def _of_factor(this: Run, factor: Labelled, stage: str, name: str) -> Judge:
  """The classifier of one factor, of images."""
  sets = factor.watched() if stage == "independent" else factor.splits
  config, (train, calibration, test) = this.config[stage], sets
  judge = judges.train(
    factor.seen,
    factor.labels,
    _network(factor, config, train),
    noise=config.noise,
    train=train,
    calibration=calibration,
    test=test,
    stage=name,
    optimizer=adam(config.learning_rate, config),
    **loop_settings(this, config),
  )
  feature = factor.quantity.feature
  return judges.after(judge, feature) if feature else judge


def _network(
  factor: Labelled, config: ConfigDict, train: np.ndarray
) -> nn.Module:
  """Convolutions of images, or an MLP of what stands for them, standardised."""
  if isinstance(factor.seen, np.ndarray):
    whole = (lambda x: x,)
    shift, scale = standardisation(whole, jnp.asarray(factor.seen[train]))
    return Classifier(
      factor.num_labels, tuple(config.hidden), whole, shift, scale, pixels=False
    )
  return ResidualClassifier(
    factor.num_labels, tuple(config.widths), tuple(config.strides)
  )


def picture_quality(problem: StableDiffusion, size: int) -> Quality:
  """CLIP score and BRISQUE of latents that were made for c.

  Args:
    problem: decodes them, and may have a CLIP.
    size: pixels a side of a picture; too small ones have no BRISQUE.
  """

  def natural(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    return problem.look(brisque.score, samples)

  return {
    "clip_score": _fit(problem, problem.clip) if problem.clip else None,
    "brisque": natural if size >= brisque.MIN_SIDE else None,
  }


def _fit(problem: StableDiffusion, clip: Embedder) -> Figure:
  """The CLIP score of a latent's picture with its prompt."""
  embed = in_chunks(lambda x: clip.images(problem.decode(x)), chunk=8)
  texts = clip.texts(problem.prompts)

  def score(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    images = jnp.asarray(embed(samples))
    return np.asarray(metrics.clip_score(images, texts[c]))

  return score

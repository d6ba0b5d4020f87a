# SPDX-License-Identifier: Apache-2.0
"""Whether pictures of samples are good ones, whatever y says of them."""

import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics
from ctrl_jax.datasets import brisque
from ctrl_jax.stable_diffusion.embedder import Embedder
from experiments.problems.chunks import in_chunks
from experiments.problems.problem import Figure, Problem, Quality


def make(problem: Problem, clip: Embedder | None, *, size: int) -> Quality:
  """CLIP score and BRISQUE of samples that were made for c.

  Args:
    problem: decodes them, and has the prompts c.
    clip: judges how well a picture fits its prompt; None: nothing does.
    size: pixels a side of a picture; too small ones have no BRISQUE.
  """

  def natural(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    return problem.look(brisque.score, samples)

  return {
    "clip_score": _fit(problem, clip) if clip else None,
    "brisque": natural if size >= brisque.MIN_SIDE else None,
  }


def _fit(problem: Problem, clip: Embedder) -> Figure:
  """The CLIP score of a sample's picture with its prompt."""
  embed = in_chunks(
    lambda x: clip.images(problem.pretrained.decoded(x)), chunk=8
  )
  texts = clip.texts(problem.pretrained.conditions)

  def score(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    images = jnp.asarray(embed(samples))
    return np.asarray(metrics.clip_score(images, texts[c]))

  return score

# SPDX-License-Identifier: Apache-2.0
"""Data that nobody labelled: y is their cluster, by the model's own features.

`data.labels=self:20` asks for twenty. `clusters` makes them when there is a
model whose features they need.
"""

import re

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import self_labels
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.self_labels import FEWEST
from experiments.configs.effects import labels_itself
from experiments.problems.factors import Factor

WIDER = 2.0  # noise under which the judge looks, in that of the reward


def number(config: ConfigDict) -> int | None:
  """Clusters that config.data.labels asks for; None: it says something else.

  Raises:
    ValueError: it asks for no number of them, or for less than two.
  """
  given = config.data.labels
  if not labels_itself(config):
    return None
  if not re.fullmatch(r"self:\d+", given) or int(given[5:]) < 2:
    raise ValueError(
      f"data.labels is {given!r}: give a number of clusters, 2 or more, as in "
      "--config.data.labels=self:20"
    )
  return int(given[5:])


def factor(
  num: int, x: np.ndarray, model: Pretrained, config: ConfigDict
) -> Factor:
  """Which of num clusters, made of samples [N, ...] of a model, as y.

  Raises:
    ValueError: too few samples, or a model that shows no features of them.
  """
  given = config.data.labels
  if len(x) < FEWEST * num:
    raise ValueError(
      f"data.labels is {given}, and there are {len(x)} examples: {FEWEST} for "
      f"each cluster are the fewest, hence {len(x) // FEWEST} clusters or less"
    )
  if model.features is None or model.decode is not None:
    raise ValueError(
      f"data.labels is {given}: {_lacking(model, config)}; a DiT of pixels has "
      'tokens that it can look at, as one trained here (model.path="") on '
      "pictures or that of a finished run, and a ctrl_jax.Pretrained with "
      "features"
    )
  for level in (config.clusters.noise, WIDER * config.clusters.noise):
    try:
      self_labels.time_of(model.sde, level)
    except ValueError as error:
      raise ValueError(f"clusters.noise: {error}") from None
  return Factor(
    name="cluster",
    num_labels=num,
    names=tuple(f"cluster {i}" for i in range(num)),
    clustered=x,
  )


def _lacking(model: Pretrained, config: ConfigDict) -> str:
  """Why a model cannot label itself."""
  if not config.model.path:
    return "of vectors and sequences the network has no tokens to look at"
  told = f"the network of {config.model.path}"
  if model.features is None:
    return f"{told} has no tokens to look at"
  return f"{told} sees latents, which of data nothing here makes"

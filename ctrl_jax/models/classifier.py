# SPDX-License-Identifier: Apache-2.0
r"""p(y | x) for small images, and whether its probabilities can be believed.

The reward of control learning is gamma log p(y | x): a gradient passes
through the classifier into the sampler, and the law that is aimed for is
proportional to p(y | x)^gamma. So accuracy is not enough. Probabilities must
be calibrated, or gamma no longer means what it says, and smooth, or the
gradient is too wild to follow. Noise on the pixels and weight decay in
training widen the boundaries; then one temperature T, fitted on data held out
(Guo et al., arXiv 1706.04599), calibrates:

    log p(y | x) = log softmax(logits / T)_y    in nats.                  (1)

Label smoothing is the wrong tool here. It bounds log p(y | x), but by making
it flat and bumpy far from the boundaries: on digits binned by ink, a quarter
to a third of the gradients then lead away from the bin asked for; without it,
none.

Labels that are steps of one quantity, such as bins, are ordered: what makes one
likelier than the one below makes the next likelier than it. That is a network
with one output f, of neighbours' logits (Goodman, 1979),

    logit_y = (y - (Y - 1) / 2) f(x) + b_y,                               (3)

so log p(y + 1 | x) / p(y | x) = f(x) + b_{y+1} - b_y. Few examples say more of
one f than of Y.

Calibration is judged by the expected calibration error over bins b of the
confidence max_y p(y | x),

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b|.                    (2)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float, Int

from ctrl_jax.models.mlp import MLP

FeatureFn = Callable[[jax.Array], jax.Array]  # images -> [B] or [B, F]
Moments = float | tuple[float, ...]  # of a feature: F numbers, or the one
Table = Float[Array, "n classes"] | Float[np.ndarray, "n classes"]
Targets = Int[Array, "n"] | Int[np.ndarray, "n"]


class Classifier(nn.Module):
  """MLP on the pixels and measured features, standardised.

  A feature that carries the label, such as the mean intensity, need not be
  learned from pixels; the smaller its `scale`, the more it counts. All is
  smooth, so gradients exist wherever those of the features do.

  Attributes:
    num_classes: number of labels.
    hidden: widths of the hidden layers.
    features: functions images [B, ...] -> [B] or [B, F]; may be empty.
    shift: subtracted from each feature, for instance its means [F].
    scale: divides each feature then, for instance its standard deviations.
    pixels: whether the MLP sees them. Where features say all about y, pixels
      only let it learn the training images by heart.
    ordered: whether labels are steps of one quantity, equation (3).
  """

  num_classes: int
  hidden: Sequence[int] = (128, 128)
  features: Sequence[FeatureFn] = ()
  shift: Sequence[Moments] = ()
  scale: Sequence[Moments] = ()
  pixels: bool = True
  ordered: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b num_classes"]:
    """Returns logits.

    Raises:
      ValueError: features, shift and scale of different lengths, or neither
        pixels nor features.
    """
    inputs = [x.reshape(x.shape[0], -1)] if self.pixels else []
    rows = zip(self.features, self.shift, self.scale, strict=True)
    for feature, *moments in rows:
      value = feature(x).reshape(x.shape[0], -1)
      shift, scale = (np.array(m, np.float32).reshape(1, -1) for m in moments)
      inputs.append((value - shift) / scale)
    if not inputs:
      raise ValueError("a classifier needs pixels or a feature to look at")
    seen, num = jnp.concatenate(inputs, -1), self.num_classes
    if not self.ordered:
      return MLP(self.hidden, num)(seen)
    steps = jnp.arange(num) - (num - 1) / 2
    bias = self.param("bias", nn.initializers.zeros, (num,))
    return MLP(self.hidden, 1)(seen) * steps[None] + bias[None]


def standardisation(
  features: Sequence[FeatureFn], images: Float[Array, "n ..."]
) -> tuple[tuple[Moments, ...], tuple[Moments, ...]]:
  """(shift, scale) that give each feature mean 0 and deviation 1 on images.

  Raises:
    ValueError: a feature that is constant on the images.
  """
  values = [feature(images) for feature in features]
  shift = tuple(_numbers(jnp.mean(value, axis=0)) for value in values)
  scale = tuple(_numbers(jnp.std(value, axis=0)) for value in values)
  if not all(np.all(np.array(moments) > 0) for moments in scale):
    raise ValueError(f"a feature is constant: standard deviations {scale}")
  return shift, scale


def _numbers(moments: jax.Array) -> Moments:
  return tuple(np.atleast_1d(np.asarray(moments)).tolist())


@jax.jit
def log_probs(
  logits: Table, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "n classes"]:
  """Equation (1): log p(y | x) of every y, [N, num_classes], nats."""
  return jax.nn.log_softmax(jnp.asarray(logits) / temperature)


@jax.jit
def negative_log_likelihood(
  log_probabilities: Table, labels: Targets
) -> Float[Array, ""]:
  """Mean of -log p(label | x), nats per example; NaN if one is no label."""
  table, index = jnp.asarray(log_probabilities), jnp.asarray(labels)
  # Indices below 0 would count from the end.
  index = jnp.where(index < 0, table.shape[1], index)[:, None]
  return -jnp.take_along_axis(table, index, axis=1, mode="fill").mean()


def defined(logits: Table, labels: Targets) -> np.ndarray:
  """Which rows have a finite log p(label | x), bool [N].

  Not those with a logit of NaN or +inf, with -inf for their label, or whose
  label is none.
  """
  table, index = np.asarray(logits), np.asarray(labels)
  known = (index >= 0) & (index < table.shape[1])
  own = np.take_along_axis(table, np.where(known, index, 0)[:, None], 1)[:, 0]
  return known & np.isfinite(own) & (table < np.inf).all(1)


def fit_temperature(
  logits: Table,
  labels: Targets,
  *,
  bounds: tuple[float, float] = (0.05, 20.0),
  unknown: float = 0.0,
) -> float:
  """Temperature that minimises the mean NLL of held-out data.

  The NLL is convex in 1 / T, hence has one minimum in log T, the variable of
  the search. Where the data has none, because every label is predicted right
  (or worse than at random), the answer is next to a bound. Rows that are not
  `defined` say nothing of it and are left out.

  A few examples may all be right by luck, and p(y | x) of what is seldom then
  be nothing. One example more whose label may be any prevents it: with it, what
  is least of n examples is n nll + unknown mean_iy(-log p(y | x_i)).

  Args:
    logits: [N, num_classes], of examples that were not trained on.
    labels: [N].
    bounds: smallest and largest temperature.
    unknown: number of further examples whose label may be any.

  Raises:
    ValueError: no row is defined.
  """
  rows = defined(logits, labels)
  if not rows.any():
    raise ValueError(
      f"none of the {len(rows)} examples has finite logits and a label"
    )
  table = np.asarray(logits, np.float64)[rows]
  index = np.asarray(labels)[rows, None]

  def mean_nll(log_temperature: float) -> float:
    log_p = scipy.special.log_softmax(table / np.exp(log_temperature), axis=1)
    nll = -float(np.take_along_axis(log_p, index, 1).mean())
    return nll - unknown / len(table) * float(log_p.mean()) if unknown else nll

  result = scipy.optimize.minimize_scalar(
    mean_nll, bounds=np.log(bounds), method="bounded"
  )
  return float(np.exp(result.x))


class Reliability(NamedTuple):
  """What a reliability diagram shows; float64 and int64, each [num_bins]."""

  confidence: np.ndarray  # mean of max_y p(y | x) in a bin; NaN if it is empty
  accuracy: np.ndarray  # share of right answers; NaN if it is empty
  counts: np.ndarray  # examples in the bin


def reliability(
  probabilities: Table, labels: Targets, num_bins: int = 15
) -> Reliability:
  """Confidence and accuracy in bins of equal width of the confidence.

  Args:
    probabilities: [N, num_classes]; not logarithms.
    labels: [N].
    num_bins: bins of [0, 1]; a value on an edge belongs to the lower one.

  Raises:
    ValueError: probabilities outside [0, 1], or whose rows do not sum to 1.
  """
  table = np.asarray(probabilities, np.float64)
  if np.any(table < 0) or not np.allclose(table.sum(1), 1, atol=1e-3):
    raise ValueError("probabilities must be positive with rows of sum 1")
  top = table.max(1)
  right = table.argmax(1) == np.asarray(labels)
  index = np.clip(np.ceil(top * num_bins).astype(int) - 1, 0, num_bins - 1)
  count = np.bincount(index, minlength=num_bins)
  safe = np.where(count > 0, count, np.nan)
  confidence = np.bincount(index, weights=top, minlength=num_bins) / safe
  accuracy = np.bincount(index, weights=right, minlength=num_bins) / safe
  return Reliability(confidence, accuracy, count)


def calibration_error(
  probabilities: Table, labels: Targets, num_bins: int = 15
) -> float:
  """Equation (2), between 0 and 1; arguments as for `reliability`.

  Even perfect calibration scores about sum_b sqrt(n_b) / n on n examples.
  """
  bins = reliability(probabilities, labels, num_bins)
  gaps = np.abs(bins.accuracy - bins.confidence)
  return float(np.nansum(gaps * bins.counts) / bins.counts.sum())

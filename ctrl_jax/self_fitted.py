# SPDX-License-Identifier: Apache-2.0
"""A model and its data to a reward of labels that nobody gave; `fit` does it.

What is learned, and how p(y | x) is calibrated, is told in `self_labels`.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ctrl_jax import fitting, rewards, self_labels
from ctrl_jax.labels import TEMPERATURES, Fitted
from ctrl_jax.models import classifier
from ctrl_jax.models.prototypes import Prototypes
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.self_labels import DRAWS, FEWEST, LOOKS, VIEWS


class _Looks(nn.Module):
  """Cosines of several looks at each example, side by side."""

  prototypes: Prototypes

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """Features [B, looks, d] -> [B, looks x K]."""
    cosines: jax.Array = self.prototypes(h)
    return cosines.reshape(len(h), -1)


def fit(
  model: Pretrained,
  x: Any,
  *,
  num: int,
  key: jax.Array,
  noise: float = 0.35,
  held_out: float = 0.2,
  num_updates: int = 600,
  batch_size: int = 256,
  learning_rate: float = 2e-3,
) -> Fitted:
  """Clusters of a model's own features as a reward; `tune` takes it as it is.

  Args:
    model: with parameters, and with features of its samples.
    x: data [N, ...], as the model's samples are.
    num: of clusters.
    key: of everything random.
    noise: std / alpha at which the model looks at x.
    held_out: share of the examples, by which p(y | x) is calibrated.
    num_updates: of projection and prototypes.
    batch_size: examples an update.
    learning_rate: its peak.

  Raises:
    ValueError: a model without features, or of latents; too few examples, some
      of another shape, or settings that cannot be.
  """
  x = np.asarray(x, np.float32)
  _check(model, x, num, held_out)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
  look_each = jax.jit(
    lambda x, eps: self_labels.look_each(model, x, eps, noise=noise)
  )

  def view() -> np.ndarray:
    parts = np.array_split(x, -(-len(x) // batch_size))
    noises = (rng.standard_normal(p.shape, np.float32) for p in parts)
    pairs = zip(parts, noises, strict=True)
    return np.concatenate([np.asarray(look_each(*pair)) for pair in pairs])

  views = np.stack([view() for _ in range(VIEWS)], axis=1)
  shift, scale = views.mean((0, 1)), views.std((0, 1))
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  module = _Looks(Prototypes(num))
  order = rng.permutation(len(x))
  last = min(max(round(held_out * len(x)), 1), len(x) - 1)
  held = order[:last]

  def loss_of(output: jax.Array, _: jax.Array) -> jax.Array:
    return self_labels.loss(output.reshape(len(output), -1, num))

  params = fitting.train(
    module,
    loss_of,
    ((views - shift) / scale, np.zeros(len(x), np.int32)),
    (order[last:], held),
    VIEWS * num,
    tuple(jax.random.split(key)),
    int(rng.integers(2**31)),
    noise=0.0,
    num_updates=num_updates,
    batch_size=batch_size,
    learning_rate=learning_rate,
  )
  eps = rng.standard_normal((LOOKS, *model.sample_shape), np.float32)

  def cosines(h: jax.Array) -> jax.Array:
    seen = (h - shift[None]) / scale[None]
    found: Any = module.apply(params, seen[:, None])
    return found

  def logits_fn(x: jax.Array) -> jax.Array:
    return cosines(self_labels.look(model, x, eps, noise=noise))

  q = self_labels.sinkhorn(jax.jit(cosines)(view()[held]))
  again = self_labels.labels_of(np.asarray(q), DRAWS).ravel()
  logits = np.repeat(np.asarray(jax.jit(logits_fn)(x[held])), DRAWS, axis=0)
  heat = classifier.fit_temperature(logits, again, bounds=TEMPERATURES)
  return Fitted(
    reward_fn=rewards.classifier(logits_fn, temperature=heat),
    controls=np.arange(num, dtype=np.int32),
    names=tuple(f"cluster {i}" for i in range(num)),
    metrics=_figures(logits, again, heat),
    others_fn=None,
  )


def _figures(
  logits: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, float]:
  """What `labels.fit` says of a classifier, of what a second look says."""
  log_p = classifier.log_probs(logits, temperature)
  p = np.exp(np.asarray(log_p, np.float64))
  return {
    "accuracy": float(np.mean(p.argmax(1) == labels)),
    "nll": float(classifier.negative_log_likelihood(log_p, labels)),
    "ece": classifier.calibration_error(p, labels),
    "temperature": temperature,
  }


def _check(model: Pretrained, x: np.ndarray, num: int, held_out: float) -> None:
  """Raises ValueError where there is nothing to cluster, or no way to."""
  if model.features is None or model.decode is not None:
    raise ValueError(
      "the model has no features of its data: its Pretrained.features is None, "
      "or its samples are decoded"
    )
  if x.shape[1:] != tuple(model.sample_shape):
    raise ValueError(
      f"x has shape {list(x.shape)}, samples {list(model.sample_shape)}: they "
      "must be alike"
    )
  if num < 2 or len(x) < FEWEST * num or not 0 < held_out < 1:
    raise ValueError(
      f"num is {num} of {len(x)} examples, held_out {held_out}: use 2 clusters "
      f"or more, {FEWEST} examples for each, and a share in (0, 1)"
    )
  if not np.isfinite(x).all():
    raise ValueError("x has a value that is not finite")

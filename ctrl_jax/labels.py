# SPDX-License-Identifier: Apache-2.0
r"""Labelled examples (x, y) to a reward: `fit` is all that a user needs.

Names or whole numbers are classes: a classifier is trained, and its temperature
is fitted on a part held out (`models.classifier`). Floats are measurements: a
network gives their mean and deviation, whose scale is fitted on the part held
out (`models.regression`).

x is brought to unit scale first, so data of any scale will do. Training keeps
the network with the least held-out loss on the way, so few examples do not end
in a network that knows them by heart. `alternatives` draws what examples leave
open, in the features that the network sows or else in x.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import alternatives, fitting, rewards
from ctrl_jax.models import classifier, regression
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.types import OthersFn, RewardFn

VALUES = 64  # real y that are trained, quantiles of those seen
# Few held-out examples are all predicted right, by luck, and would have it 0.
TEMPERATURES = (0.5, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
  """A reward that was fitted, and what y may be; `tune` takes it as it is.

  Attributes:
    reward_fn: log p(y | x, c) in nats, whatever c.
    controls: labels 0 ... n - 1, or real values of y to train.
    names: of the labels, in order; none for 0 ... n - 1 itself and for reals.
    metrics: on the held-out part: accuracy, nll, ece and temperature, or
      deviation, of what the mean misses, scale and nll.
    others_fn: log p_m(y | x) of others that labels allow, if there are labels.
  """

  reward_fn: RewardFn
  controls: np.ndarray
  names: tuple[str, ...]
  metrics: Mapping[str, float]
  others_fn: OthersFn | None


def fit(
  x: Any,
  labels: Any,
  *,
  key: jax.Array,
  network: nn.Module | None = None,
  held_out: float = 0.2,
  noise: float = 0.05,
  num_updates: int = 1000,
  batch_size: int = 128,
  learning_rate: float = 2e-3,
) -> Fitted:
  """Fits p(y | x) to examples.

  Args:
    x: data [N, ...], as the model's samples are (decoded, if it decodes).
    labels: [N] names or whole numbers, which are classes; or floats.
    key: of everything random.
    network: x, in units of its own deviation, -> logits [B, classes], or [B, 2]
      for floats, as `models.regression` reads it; None: an MLP.
    held_out: share of the examples, of every class, for calibration.
    noise: on x in training, in its deviations; it widens boundaries.
    num_updates: of the network.
    batch_size: examples an update.
    learning_rate: its peak.

  Raises:
    ValueError: lengths that differ, values that are not finite, one class
      only, fewer than two examples of one, or settings that cannot be.
  """
  x, given = np.asarray(x, np.float32), np.asarray(labels)
  if given.ndim != 1 or len(given) != len(x):
    told = f"labels have shape {given.shape} for {len(x)} examples"
    raise ValueError(f"{told}: one label each")
  if not (finite := np.isfinite(x.reshape(len(x), -1)).all(1)).all():
    raise ValueError(f"x[{int(finite.argmin())}] is not finite")
  if not 0 < held_out < 1 or num_updates < 1 or batch_size < 1:
    raise ValueError(
      f"held_out is {held_out}, num_updates {num_updates} and batch_size "
      f"{batch_size}: use a share in (0, 1), and 1 or more"
    )
  scale = float(np.sqrt(x.var(0).mean())) if len(x) else 0.0
  if not scale > 0:
    raise ValueError(f"the {len(x)} examples x are all the same")
  shift = x.mean(0)
  real = given.dtype.kind == "f"
  y, names = _measured(given) if real else _classes(given)
  split_key, init_key, noise_key = jax.random.split(key, 3)
  seed = int(jax.random.bits(split_key, dtype=jnp.uint32))
  train, held = _split(y, held_out, seed, stratified=not real)
  size = 2 if real else int(y.max()) + 1
  module = Classifier(size) if network is None else network
  centre, spread = (float(y.mean()), float(y.std())) if real else (0.0, 1.0)

  def loss_of(output: jax.Array, y: jax.Array) -> jax.Array:
    if real:
      return regression.loss(output, y)
    log_p = classifier.log_probs(output)
    return classifier.negative_log_likelihood(log_p, y)

  target = (y - centre) / spread if real else y
  params = fitting.train(
    module,
    loss_of,
    ((x - shift) / scale, target.astype(np.float32 if real else np.int32)),
    (train, held),
    size,
    (init_key, noise_key),
    seed,
    noise=noise,
    num_updates=num_updates,
    batch_size=batch_size,
    learning_rate=learning_rate,
  )

  def look(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    seen = (x - jnp.asarray(shift)[None]) / scale
    output, sown = module.apply(params, seen, mutable="intermediates")
    features = (jax.tree.leaves(sown) or [seen])[0]
    return features.reshape(len(x), -1), output

  apply = jax.jit(lambda x: look(x)[1])
  parts = np.array_split(held, -(-len(held) // batch_size))
  output = np.concatenate([np.asarray(apply(x[rows])) for rows in parts])
  draw: _Draw = (jax.random.fold_in(key, 3), x, y, held, batch_size)
  if not real:
    return _classifier(look, output, names, draw)
  return _regression(look, output, draw)


_Draw = tuple[jax.Array, np.ndarray, np.ndarray, np.ndarray, int]


def _regression(
  look: alternatives.Look, output: np.ndarray, draw: _Draw
) -> Fitted:
  """Calibrated on what the network says of held-out rows."""
  key, x, y, held, chunk = draw
  centre, spread = float(y.mean()), float(y.std())
  known, out = y[held], np.isin(np.arange(len(y)), held)
  mean, deviation = regression.moments(output)
  scale = regression.fit_scale(mean, deviation, (known - centre) / spread)

  def moments(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, deviation = regression.moments(output)
    return centre + spread * mean, spread * scale * deviation

  def measured(x: jax.Array) -> tuple[jax.Array, Any]:
    return (seen := look(x))[0], moments(seen[1])

  mean, deviation = moments(jnp.asarray(output))
  log_p = regression.log_density(mean, deviation, known)
  miss = np.asarray(mean) - known
  values = np.quantile(y, np.linspace(0.02, 0.98, VALUES)).astype(np.float32)
  return Fitted(
    reward_fn=rewards.gaussian(lambda x: moments(look(x)[1])),
    controls=values,
    names=(),
    metrics={
      "deviation": float(np.sqrt(np.mean(miss**2))),
      "scale": scale,
      "nll": float(-jnp.mean(log_p)),
    },
    others_fn=alternatives.among_regressions(
      key, measured, x, y, out, chunk=chunk
    ),
  )


def _classifier(
  look: alternatives.Look,
  logits: np.ndarray,
  names: tuple[str, ...],
  draw: _Draw,
) -> Fitted:
  """Calibrated on held-out logits."""
  key, x, labels, held, chunk = draw
  y, out = labels[held], np.isin(np.arange(len(labels)), held)
  temperature = classifier.fit_temperature(logits, y, bounds=TEMPERATURES)
  log_p = np.asarray(classifier.log_probs(logits, temperature), np.float64)

  def told(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (seen := look(x))[0], classifier.log_probs(seen[1], temperature)

  return Fitted(
    reward_fn=rewards.classifier(lambda x: look(x)[1], temperature=temperature),
    controls=np.arange(logits.shape[1], dtype=np.int32),
    names=names,
    metrics={
      "accuracy": float(np.mean(log_p.argmax(1) == y)),
      "nll": float(classifier.negative_log_likelihood(log_p, y)),
      "ece": classifier.calibration_error(np.exp(log_p), y),
      "temperature": temperature,
    },
    others_fn=alternatives.among_classifiers(
      key, told, x, labels, out, chunk=chunk
    ),
  )


def _measured(given: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """Real labels, float64."""
  if not np.isfinite(given).all():
    row = int(np.flatnonzero(~np.isfinite(given))[0])
    raise ValueError(f"labels[{row}] is {given[row]}: not a finite number")
  if len(given) < 4 or not given.std() > 0:
    raise ValueError(
      f"{len(given)} real labels with deviation {given.std():.3g}: needed are "
      "4 or more that differ"
    )
  return given.astype(np.float64), ()


def _classes(given: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """Labels 0 ... n - 1 and their names; none, if they were such numbers."""
  if given.dtype.kind == "O" and all(isinstance(v, str) for v in given):
    given = given.astype(str)
  if given.dtype.kind not in "biuU":
    raise ValueError(
      f"labels are of dtype {given.dtype}: needed are names, whole numbers, or "
      "floats for measurements"
    )
  values, y, counts = np.unique(given, return_inverse=True, return_counts=True)
  if len(values) < 2:
    raise ValueError(
      f"all {len(given)} labels are {values[:1].tolist()}: two classes or more "
      "are needed"
    )
  if counts.min() < 2:
    table = dict(zip(values.tolist(), counts.tolist(), strict=True))
    raise ValueError(f"every class needs 2 examples or more, got {table}")
  plain = given.dtype.kind in "biu" and np.array_equal(
    values.astype(int), np.arange(len(values))
  )
  return y, () if plain else tuple(str(v) for v in values.tolist())


def _split(
  y: np.ndarray, share: float, seed: int, *, stratified: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Rows to train on, and rows held out; some of every class in both."""
  rng, held = np.random.default_rng(seed), []
  for value in np.unique(y) if stratified else [None]:
    rows = rng.permutation(np.flatnonzero(y == value) if stratified else len(y))
    held.append(rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)])
  out = np.concatenate(held)
  return np.setdiff1d(np.arange(len(y)), out), out

# SPDX-License-Identifier: Apache-2.0
"""Trains the network of a classifier, or of a regression, on examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from ctrl_jax import learner, parallel
from ctrl_jax.datasets import labelled
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.types import LossFn, Params
from experiments.problems import keeping
from experiments.runtime import keys, loop

LossOf = Callable[[jax.Array, jax.Array], jax.Array]


class Fitted(NamedTuple):
  """A network, and what it says of the examples."""

  params: Params
  on: Callable[[np.ndarray], np.ndarray]  # rows -> its output
  features_fn: Callable[[jax.Array], jax.Array]


def fit(
  images: np.ndarray | ImageFolder,
  labels: np.ndarray,
  network: nn.Module,
  loss_of: LossOf,
  *,
  noise: float,
  train: np.ndarray,
  stage: str,
  optimizer: optax.GradientTransformation,
  seed: int,
  batch_size: int,
  **loop_settings: Any,
) -> Fitted:
  """Trains a network on rows of examples.

  Args:
    images: [N, height, width, channels], or features of them [N, d], or a
      folder that is read in parts.
    labels: of the images, [N].
    network: images -> output; sows its last hidden layer as an intermediate.
    loss_of: (output, labels) -> mean loss.
    noise: deviation of fresh Gaussian noise on the images of every batch.
    train: indices of images.
    stage: names its checkpoints and random numbers.
    optimizer: gradient transformation.
    seed: of the batches and of everything random.
    batch_size: examples an update.
    **loop_settings: what `loop.fit` takes besides.
  """
  some = (
    images.subset(train) if isinstance(images, ImageFolder) else images[train]
  )
  pairs: dict[str, Any] = {"x": some, "y": labels[train]}
  trained = loop.fit(
    stage,
    learner.make_learner(
      _loss(network, loss_of, noise), optimizer, ema_decay=0.0
    ),
    jax.jit(network.init)(
      keys.stage_key(seed, f"{stage}/init"), images[np.arange(1)]
    ),
    labelled.batches(pairs, seed=seed, batch_size=batch_size).__getitem__,
    batch_size=batch_size,
    seed=seed,
    live=("loss",),
    **loop_settings,
  )
  params = parallel.gather(trained.params)

  def features_fn(x):
    _, sown = network.apply(params, x, mutable="intermediates")
    return jax.tree.leaves(sown)[0]

  compiled = jax.jit(keeping.logits_fn(network, params))

  def on(rows):
    parts = np.array_split(rows, -(-len(rows) // batch_size))
    return np.concatenate([np.asarray(compiled(images[p])) for p in parts])

  return Fitted(params, on, features_fn)


def _loss(network: nn.Module, loss_of: LossOf, noise: float) -> LossFn:
  """The loss on images with fresh Gaussian noise of this deviation."""

  def loss_fn(params, example_keys, batch):
    x = batch["x"]
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
    output: Any = network.apply(params, x + noise * draw(example_keys))
    loss = loss_of(output, batch["y"])
    return loss, {"loss": loss}

  return loss_fn

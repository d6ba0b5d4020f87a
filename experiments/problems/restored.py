# SPDX-License-Identifier: Apache-2.0
"""The problem of a run that is over, with all that it learned and no data.

Weights that the run did not train, those of Stable Diffusion or CLIP, are read
from where its config says; all else is in the run's folder.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.types import RewardFn
from experiments.configs.effects import labels_itself
from experiments.problems import (
  clusters,
  exact,
  given_model,
  images,
  keeping,
  stable_diffusion,
  stable_quantities,
)
from experiments.problems.factors import Factor, Quantity, every_y
from experiments.problems.keeping import Kept
from experiments.problems.own import reals, seen
from experiments.problems.own.vectors import Units
from experiments.problems.problem import Problem, make_kernel
from experiments.runtime import inputs


def problem(config: ConfigDict, workdir: pathlib.Path, kept: Kept) -> Problem:
  """The problem whose model has parameters and whose factors have likelihoods.

  Args:
    config: of the run.
    workdir: of the run.
    kept: what the run learned: "pretrained", the parameters of a model that it
      trained, "sample_shape", and "classifier", of each factor of y.

  Raises:
    KeyError: something is not among what is kept.
    ValueError, FileNotFoundError: weights that are not the run's own are gone.
  """
  families: dict[str, Callable[[], Problem]] = {
    "digits": lambda: _images(config, workdir, kept),
    "fashion": lambda: _images(config, workdir, kept),
    "gaussian": lambda: exact.gaussian(config, workdir),
    "mixture": lambda: exact.mixture(config, workdir),
    "own": lambda: _own(config, workdir, kept),
    "stable_diffusion": lambda: _stable_diffusion(config, workdir, kept),
  }
  return families[config.problem.name]()


def _images(config: ConfigDict, workdir: pathlib.Path, kept: Kept) -> Problem:
  names = filter(None, (config.data.control, config.data.second_control))
  measured = [images.QUANTITIES[name] for name in names]
  alone = len(measured) == 1
  stage, factors = config.classifier, []
  num = config.data.num_controls
  for number, quantity in enumerate(measured, start=1):
    judge = kept["classifier"][str(number)]
    network = keeping.again(
      quantity.feature,
      num,
      tuple(stage.hidden),
      judge,
      pixels=stage.pixels,
      ordered=stage.ordered,
    )
    factors.append(_factor(quantity, num, keeping.reward_fn(network, judge)))
  model = given_model.trained(config, kept)
  return Problem(
    pretrained=model,
    kernel=make_kernel(config.kernel, model.sde),
    factors=tuple(factors),
    num_conditions=len(images.CONDITIONS),
    **every_y([num] * len(factors)),
    measure=measured[0].measure if alone else None,
    edges=inputs.numbers(workdir, "edges 1") if alone else np.zeros(0),
    property_name=measured[0].name if alone else "",
  )


def _own(config: ConfigDict, workdir: pathlib.Path, kept: Kept) -> Problem:
  factors = []
  units = Units(**kept["units"]) if "units" in kept else None
  given = given_model.find(config, workdir)
  if given is None:
    model = given_model.trained(config, kept)
    kernel = make_kernel(config.kernel, model.sde)
  else:
    model, kernel = given
  look = seen.again(config, workdir, kept, units)
  embedded = kept.get(seen.EMBEDDED)
  seen_shape = embedded["shift"].shape if embedded else model.sample_shape
  real, itself = "values" in kept, labels_itself(config)
  for number, judge in sorted(kept["classifier"].items()):
    names = () if real else tuple(kept["names"][number].tolist())
    network = seen.network(
      len(names), seen_shape, config.classifier, np.zeros(0, int)
    )
    learned = keeping.density_fn if real else keeping.reward_fn
    reward_fn = (
      learned(network, judge)
      if not itself
      else clusters.reward_fn(model, config.clusters, len(names), judge)
    )
    if look is not None or model.decode is not None:
      reward_fn = _after(reward_fn, model.decoded, look or _same)
    factors.append(
      Factor(
        name=str(kept["of"][number]),
        num_labels=len(names),
        names=names,
        reward_fn=reward_fn,
      )
    )
  if real:
    centre, spread = kept["control_units"].tolist()
    asked = reals.of_values(
      kept["values"], (centre, spread), config.reward.gamma
    )
  else:
    asked = every_y([factor.names for factor in factors])
  return Problem(
    pretrained=model,
    kernel=kernel,
    factors=tuple(factors),
    num_conditions=model.num_conditions,
    **asked,
  )


def _stable_diffusion(
  config: ConfigDict, workdir: pathlib.Path, kept: Kept
) -> Problem:
  loaded = stable_diffusion.load(config, workdir)
  clip = stable_quantities.read_clip(config, workdir)
  stage, factors = config.classifier, []
  num = config.data.num_controls
  measured = stable_quantities.quantities(config, clip, workdir)
  for number, quantity in enumerate(measured, start=1):
    judge = kept["classifier"][str(number)]
    network: nn.Module = ResidualClassifier(
      num, tuple(stage.widths), tuple(stage.strides)
    )
    if quantity.feature is not None:
      hidden = tuple(stage.hidden)
      network = keeping.again(_same, num, hidden, judge, pixels=False)
    of_seen = keeping.reward_fn(network, judge)
    looked = _after(
      of_seen, loaded.pretrained.decoded, quantity.feature or _same
    )
    factors.append(_factor(quantity, num, looked))
  return dataclasses.replace(loaded, factors=tuple(factors))


def _factor(quantity: Quantity, num: int, reward_fn: RewardFn) -> Factor:
  return Factor(name=quantity.name, num_labels=num, reward_fn=reward_fn)


def _same(x: jax.Array) -> jax.Array:
  return x


def _after(
  reward_fn: RewardFn,
  decode: Callable[[jax.Array], jax.Array],
  look: Callable[[jax.Array], jax.Array],
) -> RewardFn:
  """A reward of samples, of one of what is seen in their images."""
  return lambda x, c, y: reward_fn(look(decode(x)), c, y)

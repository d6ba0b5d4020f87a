# SPDX-License-Identifier: Apache-2.0
"""Anybody's data and labels: a folder of pictures, or an .npz file of arrays.

A model is trained on all the data, and a classifier of every column on those
that have a label in it. No oracle knows better than whoever filled in the
table: a second classifier, of other examples, is the judge.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets import labelled, oracles
from ctrl_jax.datasets.label_table import Column
from ctrl_jax.pretrained import Pretrained
from experiments.problems import given_model
from experiments.problems.factors import (
  Examples,
  Factor,
  check,
  every_y,
  of_bins,
)
from experiments.problems.own import clusters, reals, seen, sources, vectors
from experiments.problems.own.seen import IMAGES, Seen, network
from experiments.problems.own.sources import Source
from experiments.problems.problem import (
  Data,
  Problem,
  make_kernel,
  make_sde,
)


def make(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem of config.data, and of a model that is there or yet trained.

  Raises:
    FileNotFoundError: no such folder, file or table.
    ValueError: data or labels that cannot be used, told with a remedy.
  """
  given = given_model.find(config, workdir)
  source = sources.read(config, workdir, size=_size(config, given))
  units = None
  if source.x.ndim != 1 + IMAGES:
    units = vectors.measure(source.x)
    source = source._replace(x=units.encode(source.x))
  reals.check(source.columns, config)
  visible = seen.make(source.x, units, config, workdir)
  if given is None:
    sde = make_sde(config.sde)
    pretrained = given_model.untrained(config, source.x.shape[1:], sde, units)
    kernel = make_kernel(config.kernel, sde)
    data = Data(source.x, np.zeros(len(source.x), np.int32))
  else:
    pretrained, kernel = given
    data = None
    given_model.check(pretrained, source.x.shape[1:], config)
  factors = _factors(source, pretrained, config, visible)
  asked = (
    every_y([factor.names for factor in factors])
    if factors[0].num_labels
    else reals.asked(factors[0], config.reward.gamma)
  )
  alone = len(factors) == 1
  return Problem(
    pretrained=pretrained,
    kernel=kernel,
    factors=factors,
    data=data,
    num_conditions=pretrained.num_conditions,
    **asked,
    measure=_measure(source, pretrained),
    edges=factors[0].edges if alone else np.zeros(0),
    property_name=factors[0].name if alone else "",
    facts={"factors": [factor.name for factor in factors]},
    kept=visible.kept | ({"units": units._asdict()} if units else {}),
  )


def _size(config: ConfigDict, given: given_model.Source | None) -> int:
  """Pixels a side of the pictures that are read."""
  if given is None:
    return int(config.data.size)
  shape = given_model.picture_shape(given.model)
  return shape[0] if len(shape) == IMAGES else int(config.data.size)


def _measure(
  source: Source, pretrained: Pretrained
) -> Callable[[Any], np.ndarray] | None:
  """Samples -> the number that a function knows of each, if one does."""
  labeller = source.labeller
  if labeller is None or source.columns[0].names:
    return None
  return lambda x: labeller.measure(pretrained.decoded(jnp.asarray(x)))


def _factors(
  source: Source, pretrained: Pretrained, config: ConfigDict, seen: Seen
) -> tuple[Factor, ...]:
  """A factor for each column, or the one of data that label themselves."""
  num = clusters.number(config)
  if num is not None:
    return (clusters.factor(num, source.x, pretrained, config),)
  return tuple(
    _factor(column, source, config, seen) for column in source.columns
  )


def _factor(
  column: Column, source: Source, config: ConfigDict, seen: Seen
) -> Factor:
  """A column as a factor of y; a real one in bins of equal shares, if any."""
  told = f"{source.told}: column {column.name!r}"
  names, edges, y = column.names, np.zeros(0), column.values
  real = reals.is_real(column, config)
  if not names and not real:
    try:
      edges = oracles.quantile_edges(y[column.known], config.data.bins)
    except ValueError as error:
      raise ValueError(
        f"{told} in data.bins = {config.data.bins}: {error}"
      ) from None
    names = of_bins(edges)
    y = np.searchsorted(edges, y, side="right")
  rows = np.flatnonzero(column.known)
  splits = labelled.split(len(rows), seed=config.seed)
  examples = Examples(
    read=lambda: seen.x,
    y=y if real else np.where(column.known, y, -1).astype(np.int32),
    splits=tuple(rows[part] for part in splits),
    make_network=functools.partial(network, len(names), seen.x.shape[1:]),
    look=seen.look,
  )
  if real:
    return reals.factor(column.name, examples, told=told)
  counts = ", ".join(
    f"{name} {number}"
    for name, number in zip(
      names, np.bincount(examples.y[rows], minlength=len(names)), strict=True
    )
  )
  check(
    examples,
    len(names),
    told=f"{told} ({counts}): of its labels, in this order, there",
    remedy="leave out what is rare (data.columns), use fewer data.bins",
  )
  return Factor(
    name=column.name,
    num_labels=len(names),
    names=names,
    edges=edges,
    oracle=source.labeller.oracle(names, edges) if source.labeller else None,
    examples=examples,
  )

# SPDX-License-Identifier: Apache-2.0
"""A column of real numbers as y itself, where config.data.bins is 0.

Training and evaluation ask for VALUES quantiles of the labels, each as often,
so y is drawn as it is among the data. A head sees a real y as a number, and any
value between may be asked for afterwards. The likelihood may be as sharp as the
data are, and its gradient far too large to follow where x_0 is not yet known:
the head sees what `head_view` makes of it on the average.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets.label_table import Column
from experiments.problems.factors import Examples, Factor

VALUES = 12  # of y that are trained and evaluated
FEWEST = 20  # examples that a regression learns from
OUTPUTS = 2  # of its network: see `models.regression`


def is_real(column: Column, config: ConfigDict) -> bool:
  """Whether a column is y as a number; categories stay what they are."""
  return not column.names and not config.data.bins


def check(columns: Sequence[Column], config: ConfigDict) -> None:
  """Raises ValueError unless a real y is alone, and can be controlled so."""
  real = [c.name for c in columns if is_real(c, config)]
  if not real:
    return
  told = f"data.bins is 0 and column {real[0]!r} a real y"
  if len(columns) > 1:
    raise ValueError(
      f"{told}, which is a control by itself: use data.bins of 2 or more, or "
      f"one column, as in --config.data.columns=\"('{real[0]}',)\""
    )
  control = config.control
  if control.adapt != "none" or not control.head:
    raise ValueError(
      f"{told}, which a head alone sees: use control.adapt = none and a "
      "control.head, or data.bins of 2 or more"
    )
  for stage in ("classifier", "independent"):
    if config[stage].folds:
      raise ValueError(
        f"{told}: {stage}.folds is {config[stage].folds}, and only classifiers "
        "have folds; use 0"
      )
  learned = {"classifier", "classifier_free", "classifier_free_product"}
  if wrong := learned & {*config.compare.guidance}:
    raise ValueError(
      f"{told}: compare.guidance has {min(wrong)}, which learns labels; leave "
      "it out"
    )


def factor(name: str, examples: Examples, *, told: str) -> Factor:
  """A real y that is learned from examples.

  Raises:
    ValueError: there are too few of them, or they are about the same.
  """
  num = sum(map(len, examples.splits))
  if num < FEWEST:
    raise ValueError(
      f"{told}: {num} numbers are known, and {FEWEST} are the fewest that a "
      "regression learns from"
    )
  found = Factor(name=name, num_labels=0, examples=examples)
  if len(_values(found)[0]) < 2:
    raise ValueError(
      f"{told}: most of its {num} numbers are the same: use data.bins of 2"
    )
  return found


def _values(factor: Factor) -> tuple[np.ndarray, tuple[float, float]]:
  """What is asked for, and mean and deviation of what is known."""
  if factor.examples is None:
    raise ValueError(f"{factor.name} has no examples")
  known = factor.examples.y[np.concatenate(factor.examples.splits)]
  shares = (np.arange(VALUES) + 0.5) / VALUES
  values = np.unique(np.quantile(known, shares).astype(np.float32))
  return values, (float(known.mean()), float(known.std()))


def asked(factor: Factor, gamma: float) -> dict[str, Any]:
  """What a problem says of a real y that is learned; gamma is the reward's."""
  return of_values(*_values(factor), gamma)


def of_values(
  values: np.ndarray, units: tuple[float, float], gamma: float
) -> dict[str, Any]:
  """The same, of values, mean and deviation that are known."""
  return {
    "controls": values,
    "control_names": tuple(f"y = {value:.4g}" for value in values.tolist()),
    "control_units": units,
    "average": gamma,
  }

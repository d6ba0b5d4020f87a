# SPDX-License-Identifier: Apache-2.0
"""A run with a fault inside it, for `faults`.

  python -m experiments.faults.injected {nan,clock} FLAGS

FLAGS are those of `experiments.run`. `nan` makes a number of the data of one
update of the control NaN, and hence its gradient; `clock` has Python's clock
jump by a day, back and forth, all the time.
"""

import itertools
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments import run
from experiments.runtime import arguments, loop, outcome

STAGE, STEP = "control", 5  # update 6 of it
DAY = 86_400.0


def nan() -> None:
  """Has `loop.fit` find NaN in one batch."""
  fit = loop.fit

  def poisoned(
    stage: str, learner: Any, params: Any, batch_fn: Any, **settings: Any
  ) -> Any:
    def batch(step: int) -> Any:
      if (stage, step) != (STAGE, STEP):
        return batch_fn(step)
      return jax.tree.map(
        lambda leaf: leaf * np.nan if leaf.dtype == np.float32 else leaf,
        batch_fn(step),
      )

    return fit(stage, learner, params, batch_fn and batch, **settings)

  vars(loop)["fit"] = poisoned


def clock() -> None:
  """Has the clock be a day early at every seventh look."""
  now, looks = time.time, itertools.count()
  vars(time)["time"] = lambda: now() - DAY * (next(looks) % 7 == 0)


def main() -> None:
  """Injects what the command line says into its run."""
  injections = {"nan": nan, "clock": clock}
  parser = arguments.Parser(__doc__)
  parser.add_argument("fault", choices=injections)
  given, sys.argv[1:] = parser.parse_known_args()
  injections[given.fault]()
  run.run()


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))

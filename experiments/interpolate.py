# SPDX-License-Identifier: Apache-2.0
"""Are samples between the domains of several models worth training with?

  python -m experiments.interpolate [--config digits.py] [--seeds 0]
    [--angles 0 30 60] [--unseen 15 45 75 90] [--updates 500] [--rank 16]
    [--samples 3000] [--stretch 1.6] [--only erm weights]

A domain is all pictures turned by an angle. A model is trained on those at the
first angle, and fine-tuned on those at every other one; then the models are
interpolated in their weights, in adapters, and in their predictions, with
weights lambda from the simplex and beyond it, or switched in the middle of a
chain (style). Classifiers are trained on the domains' pictures,

    erm               these alone
    mixup             with mixtures of pairs of them
    uninterpolated    with samples of the models as they are
    weights, adapters, predictions, style    with such samples
    real              with the pictures at random angles, which is what
                      interpolation might reach

for as many updates each, and tested at home, at unseen angles between, and
beyond. A network that has seen all angles says how many samples are what they
are labelled, and which angle they have.

FILE[:VARIANT] of --config is one of experiments/configs whose data are pictures
with labels, digits.py, fashion.py or own.py, with --config.FIELD=VALUE as of
experiments.run; its seed is that of --seeds. Of a seed, WORKDIR/SEED gets
results.json, after every piece, samples/ and samples.png, and checkpoints, from
which the same command goes on. docs/interpolation.md says what to expect.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import rules
from experiments.reporting import interpolation_tables
from experiments.reporting.interpolation_tables import ARMS
from experiments.runtime import (
  arguments,
  devices,
  flags,
  lock,
  outcome,
  settings,
  workdir,
)

FAMILIES = ("digits", "fashion", "own")


def main() -> None:
  """Runs what the command line says and prints the tables."""
  parser = _parser()
  given, overrides = parser.parse_overrides()
  rules.check_local("--workdir", given.workdir)
  angles, unseen = sorted(set(given.angles)), sorted(set(given.unseen))
  if len(angles) < 2 or {*angles} & {*unseen}:
    parser.error("--angles are two or more, and none of them is --unseen")
  asked = {
    "angles": angles,
    "unseen": unseen,
    "updates": given.updates,
    "rank": given.rank,
    "samples": given.samples,
    "stretch": given.stretch,
  }
  root, seeds = pathlib.Path(given.workdir), list(dict.fromkeys(given.seeds))
  configs = {
    root / str(seed): _config(
      given.config, [*overrides, f"--config.seed={seed}"]
    )
    for seed in seeds
  }
  for folder, config in configs.items():
    settings.check(folder, asked)
    workdir.check(folder, config)
  devices.start(next(iter(configs.values())))
  runs = [
    _results(config, folder, asked, given.only)
    for folder, config in configs.items()
  ]
  print(interpolation_tables.markdown(runs, seeds, angles, unseen))
  print(f"\nsamples     {next(iter(configs)) / 'samples.png'}")


def _parser() -> arguments.Parser:
  parser = arguments.Parser(__doc__)
  number = arguments.at_least
  parser.add_argument("--config", default="digits.py")
  parser.add_seeds(0)
  parser.add_argument("--workdir", default="runs/interpolate")
  parser.add_argument(
    "--angles",
    type=_within(-180, 180),
    nargs="+",
    default=[0.0, 30.0, 60.0],
    help="domains",
  )
  parser.add_argument(
    "--unseen",
    type=_within(-180, 180),
    nargs="+",
    default=[15.0, 45.0, 75.0, 90.0],
  )
  parser.add_argument(
    "--updates", type=number(1), default=500, help="of a fine-tuning"
  )
  parser.add_argument("--rank", type=number(1), default=16, help="of adapters")
  parser.add_argument(
    "--samples", type=number(1), default=3000, help="of an arm"
  )
  parser.add_argument(
    "--stretch", type=_within(1, 100), default=1.6, help="beyond the simplex"
  )
  parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
  return parser


def _within(least: float, most: float) -> Callable[[str], float]:
  """Reads numbers from one to another."""

  def read(text: str) -> float:
    try:
      value = float(text)
    except ValueError:
      value = float("nan")
    if not least <= value <= most:
      raise argparse.ArgumentTypeError(
        f"{text!r} is no number from {least:g} to {most:g}"
      )
    return value

  return read


def _config(file: str, overrides: Sequence[str]) -> ConfigDict:
  """The config of one seed.

  Raises:
    ValueError: a mistake in it, or data that are not labelled pictures.
  """
  path = f"--config={file}"
  config, *_ = flags.parse(["", path, *overrides])
  if config.problem.name not in FAMILIES:
    raise ValueError(
      f"--config is {file}: only labelled pictures are turned, of "
      f"{', '.join(FAMILIES)}"
    )
  config.prior.dir = ""  # that of a run is of the test's pictures, too
  return config


def _results(
  config: ConfigDict,
  folder: pathlib.Path,
  asked: Mapping[str, Any],
  arms: list[str],
) -> dict[str, Any]:
  """results.json of one seed; does what is not done yet."""
  # Slow, as JAX is: not before the command line is known to be right.
  from experiments import interpolation_stages
  from experiments.runtime import logs
  from experiments.training.arms import Asked

  with lock.held(folder, field="workdir"), logs.Log(folder) as log:
    workdir.prepare(folder, config)
    workdir.write_json(folder / settings.FILE, asked)
    return interpolation_stages.run(config, folder, log, Asked(**asked), arms)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))

# SPDX-License-Identifier: Apache-2.0
"""Compares ways to train a prior on fewer images, or on weighed ones.

  python -m experiments.prune [--config fashion.py] [--seeds 0 1 2]
    [--fractions 0.05 0.1 0.2 0.5] [--rules random density stratified]
    [--weights] [--control] [--images] [--workdir DIR]
    [--config.FIELD=VALUE ...]

Every prior takes the config's updates, on a share of the images of each class:
drawn at random, those of the largest density in their class, or from all of its
strata (`ctrl_jax.coresets`); beside them stands the prior of all images. With
--weights each is trained again with classes weighed by group DRO, and with
--control a control is trained on top of every prior. A fifth of the images is
held out and judges samples:

    Fréchet     distance in features of a classifier of the classes
    worst       the same of the worst class
    MMD²        times 1000, in the same features
    reached %   held-out images that samples are near to (coverage); and of
                the worst class
    copies %    samples that are copies of a training image
                (`ctrl_jax.memorization`)
    gap         nats, of the control, and oracle %, samples as asked for

The row "images" has images of all that are not held out in place of samples;
with --images every row has those that were chosen, and nothing is trained but
the classifier: a sampler that copies its images would do as well.
DIR/SEED/NAME/results.json is written as soon as a prior is judged; the same
command goes on where it was stopped. A run of one's own gets what was best by
`--config.prior.fraction=0.1 --config.prior.select=stratified`.
docs/pruning.md says what to expect.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from ml_collections import ConfigDict

from experiments.configs import rules
from experiments.reporting import pruning, studies, style
from experiments.runtime import arguments, flags, lock, outcome, workdir

RULES = ("random", "density", "stratified")
OWN = (
  "seed",
  *(
    f"prior.{name}"
    for name in ("dir", "fraction", "select", "reweigh", "held_out")
  ),
)
IMAGES = "images"  # the row of all, and how folders of such figures end
PICTURES = 5  # axes of some of each class


class Arm(NamedTuple):
  """A way to train a prior."""

  rule: str  # ""; all images
  fraction: float
  reweigh: bool

  @property
  def name(self) -> str:
    """Of its row."""
    which = f"{self.rule} {100 * self.fraction:g} %" if self.rule else "all"
    return which + ", weighed" * self.reweigh

  @property
  def folder(self) -> str:
    """Of its prior, below that of the seed."""
    which = f"{self.rule}-{self.fraction:g}" if self.rule else "all"
    return which + "-weighed" * self.reweigh

  @property
  def settings(self) -> list[str]:
    """Fields of the config, as KEY=VALUE."""
    found = [f"prior.reweigh={self.reweigh}"] if self.reweigh else []
    if self.rule:
      found += [f"prior.fraction={self.fraction}", f"prior.select={self.rule}"]
    return found


def every(
  which: Sequence[str], fractions: Sequence[float], *, weights: bool
) -> list[Arm]:
  """All arms of a table, in its order."""
  plain = [Arm("", 1.0, False)]
  plain += [Arm(rule, f, False) for f in fractions for rule in which]
  reweighed = [False, True] if weights else [False]
  return [arm._replace(reweigh=w) for arm in plain for w in reweighed]


class Study(NamedTuple):
  """What the command line says."""

  file: str
  root: pathlib.Path
  settings: tuple[str, ...]  # of every prior, as KEY=VALUE
  arms: list[Arm]
  control: bool
  images: bool  # are judged, and no priors trained

  def folder(self, seed: int, name: str) -> pathlib.Path:
    """Of a prior, or of what those of its seed share."""
    return self.root / str(seed) / name

  def config(self, seed: int, arm: Arm) -> ConfigDict:
    """Of a prior."""
    settings = [*self.settings, f"seed={seed}", *arm.settings]
    settings.append(f"prior.dir={self.folder(seed, arm.folder) / 'prior'}")
    words = [f"--config.{setting}" for setting in settings]
    return flags.parse(["prune", f"--config={self.file}", *words])[0]


def measure(study: Study, seed: int) -> dict[str, dict[str, Any]]:
  """The figures of every arm by its name, and of images; trains what is not.

  Raises:
    ValueError: a fraction leaves a class empty, or a folder was begun with
      another config.
  """
  from experiments import prior_stages, stages  # slow, as JAX is

  shared, smallest = None, min(study.arms, key=lambda arm: arm.fraction)
  first = f"{study.arms[0].folder}-{IMAGES}"

  def judged(arm: Arm, folder: pathlib.Path, log: Any) -> dict[str, Any]:
    nonlocal shared
    if shared is None:
      base = study.folder(seed, first)
      shared = prior_stages.bench(study.config(seed, smallest), base, log)
    config = study.config(seed, arm)
    if folder.name.endswith(IMAGES):
      return prior_stages.images(config, shared)
    return prior_stages.run(config, folder, shared, log)

  def controlled(arm: Arm, folder: pathlib.Path, log: Any) -> dict[str, Any]:
    return stages.run(study.config(seed, arm), folder, log)

  found = {IMAGES: _made(study, seed, study.arms[0], first, judged)}
  for arm in study.arms[study.images :]:
    name = f"{arm.folder}-{IMAGES}" if study.images else arm.folder
    entry = _made(study, seed, arm, name, judged)
    if study.control:
      name = f"{arm.folder}/control"
      tuned = _made(study, seed, arm, name, controlled)["methods"]["ctrl"]
      entry |= {name: tuned[name] for name in ("gap", "oracle_accuracy")}
    found[arm.name] = entry
    print(f"seed {seed}", *pruning.row(arm.name, [entry]), sep=", ", flush=True)
  return found


def _made(
  study: Study,
  seed: int,
  arm: Arm,
  name: str,
  make: Callable[[Arm, pathlib.Path, Any], dict[str, Any]],
) -> dict[str, Any]:
  """results.json of a folder, which is made if it does not exist."""
  folder, config = study.folder(seed, name), study.config(seed, arm)
  path = folder / "results.json"
  if workdir.check(folder, config) or not path.exists():
    from experiments.runtime import logs

    workdir.prepare(folder, config)
    with logs.Log(folder) as log:
      workdir.write_json(path, make(arm, folder, log))
  found: dict[str, Any] = json.loads(path.read_text())
  return found


def _study() -> tuple[Study, list[int]]:
  """What the command line says, and the seeds."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--config", default="fashion.py", help="FILE[:VARIANT]")
  parser.add_seeds(0)
  parser.add_argument(
    "--fractions",
    type=arguments.share,
    nargs="+",
    default=[0.05, 0.1, 0.2, 0.5],
  )
  parser.add_argument("--rules", choices=RULES, nargs="+", default=RULES)
  parser.add_argument("--weights", action="store_true", help="group DRO, too")
  parser.add_argument("--control", action="store_true", help="on every prior")
  parser.add_argument(
    "--images", action="store_true", help="in place of priors' samples"
  )
  parser.add_argument("--held-out", type=arguments.share, default=0.2)
  parser.add_argument("--workdir", default="")
  given, overrides = parser.parse_overrides()
  changes = [text.removeprefix("--config.") for text in overrides]
  for text in changes:
    field = text.partition("=")[0]
    if field in OWN:
      raise ValueError(f"{field} is set for every prior: leave it out")
  name = given.config.replace(".py", "").replace(":", "-")
  rules.check_local("--workdir", given.workdir)
  if given.images and (given.weights or given.control):
    parser.error("--images trains no priors: no --weights, no --control")
  study = Study(
    given.config,
    pathlib.Path(given.workdir or f"runs/prune-{name}"),
    (*changes, f"prior.held_out={given.held_out}"),
    every(given.rules, given.fractions, weights=given.weights),
    given.control,
    given.images,
  )
  return study, given.seeds


def main() -> None:
  """Does what the command line says."""
  study, seeds = _study()
  configs = [study.config(seeds[0], arm) for arm in study.arms]
  from experiments.runtime import devices

  devices.start(configs[0])
  with lock.held(study.root, field="workdir"):
    found = [measure(study, seed) for seed in seeds]
  entries = {name: [one[name] for one in found] for name in found[0]}
  headings, lines = pruning.table(entries)
  print(studies.markdown(headings, lines, seeds, found[0][IMAGES]))
  _draw(study, entries, seeds[0])


def _draw(study: Study, entries: Mapping[str, Any], seed: int) -> None:
  """prune.png, figures by the share of images; of pictures shown.png, some."""
  lines: dict[str, dict[float, Any]] = {}
  least = min(arm.fraction for arm in study.arms)
  shown = {}
  for arm in study.arms[study.images :]:
    name = (arm.rule or "all images") + ", weighed" * arm.reweigh
    lines.setdefault(name, {})[arm.fraction] = entries[arm.name]
    if arm.fraction == least and not (arm.reweigh or study.images):
      with np.load(study.folder(seed, arm.folder) / "shown.npz") as saved:
        shown[arm.name] = dict(saved)
  with matplotlib.rc_context(style.STYLE):
    drawn = {"prune": pruning.by_fraction(lines, entries[IMAGES])}
    if any(each["images"].ndim == PICTURES for each in shown.values()):
      drawn["shown"] = pruning.pictures(shown)
    for name, figure in drawn.items():
      path = study.root / f"{name}.png"
      figure.savefig(path, dpi=80)
      print(f"figure      {path}")


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))

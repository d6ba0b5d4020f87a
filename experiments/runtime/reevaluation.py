# SPDX-License-Identifier: Apache-2.0
"""What may change of a run after its training: fields of the evaluation alone.

    evaluate.*, compare.*

The results so far go to the folder `previous`, and all are made again of what
was trained. Samples of the pre-trained model are kept unless their number or
their prompts change. These may not change where log Z is part of the training,
that is, with path consistency without groups and with reward-weighted
likelihood: no run would have such a result.
"""

import pathlib
import shutil
import sys
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

FIELDS = ("evaluate.", "compare.")
# Of these, what samples of the pre-trained model depend on, and what methods of
# the comparison that are trained do.
RESAMPLES = {"evaluate.num_reference", "evaluate.prompts"}
RETRAINS = (
  *("compare.gammas", "compare.num_steps", "compare.rates."),
  *("compare.classifier.", "compare.classifier_free."),
  "evaluate.num_reference",
)
LEFT = (
  *("results.json", "evaluation.npz", "comparison.json", "report.html"),
  "to_label.csv",
)


def may_change(
  workdir: pathlib.Path, control: ConfigDict, fields: Iterable[str]
) -> set[str]:
  """Those of some fields that may differ from what a run was begun with."""
  free = {field for field in fields if field.startswith(FIELDS)}
  told_log_z = control.objective == "reward_weighted" or (
    control.objective == "path_consistency"
    and not control.path_consistency.group
  )
  begun = (workdir / "checkpoints" / "control").exists()
  return free - RESAMPLES if told_log_z and begun else free


def set_aside(workdir: pathlib.Path, changed: Mapping[str, str]) -> None:
  """Moves results away, and removes what the changes would make wrong.

  changed has a line for each field that is another now.
  """
  previous, names = workdir / "previous", [*LEFT]
  if RESAMPLES & changed.keys():
    names.append("reference.npz")
  moved = [name for name in names if (workdir / name).exists()]
  for name in moved:
    previous.mkdir(exist_ok=True)
    (workdir / name).replace(previous / name)
  if any(field.startswith(RETRAINS) for field in changed):
    for pattern in ("control_*", "guide_*"):
      for stage in (workdir / "checkpoints").glob(pattern):
        shutil.rmtree(stage)
  kept = f" (what there was is in {previous})" if moved else ""
  print(f"changed: {'; '.join(changed.values())}{kept}", file=sys.stderr)

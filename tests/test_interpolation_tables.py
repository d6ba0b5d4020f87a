# SPDX-License-Identifier: Apache-2.0
"""The tables of an interpolation, of figures that are made up."""

import numpy as np

from experiments.reporting import interpolation_tables as tables

ANGLES, UNSEEN = [0.0, 30.0], [15.0, 45.0]


def _arm(home, between, beyond, **more):
  values = {"0": home, "30": home + 0.02, "15": between, "45": beyond}
  by_angle = {a: {"accuracy": v, "ece": v / 10} for a, v in values.items()}
  return {"by_angle": by_angle, **more}


def _run(shift):
  place = {"sought": 15.0, "fidelity": 0.9, "angle": 14.0, "angle_std": 6.0}
  return {
    "versions": {"jax": "1"},
    "device": "a device",
    "path": {"real": [place], "weights": [place]},
    "arms": {
      "erm": _arm(0.90, 0.70, 0.5),
      "mixup": _arm(0.88, 0.72, 0.5),
      "weights": _arm(0.89, 0.75 + shift, 0.6, fidelity=0.8, angle_error=7),
      "real": _arm(0.91, 0.90, 0.6),
    },
  }


def test_gains_are_over_the_best_arm_without_interpolation_seed_by_seed():
  text = tables.markdown([_run(0.0), _run(0.02)], [0, 1], ANGLES, UNSEEN)
  lines = {
    line.split(" | ")[0].strip("| "): line.split(" | ")
    for line in text.splitlines()
    if line.startswith("|")
  }
  stderr = np.std([3, 5], ddof=1) / 2**0.5
  assert lines["weights"][1:6] == [
    "90.0 ± 0.0",  # the mean over 0 and 30 degrees
    "76.0 ± 1.0",
    "60.0 ± 0.0",
    "-1.0 ± 0.0",  # over erm
    f"4.0 ± {stderr:.1f}",  # over mixup
  ]
  assert lines["weights"][8] == "80.0 ± 0.0"
  assert lines["erm"][4:6] == ["–", "–"] and lines["real"][4:6] == ["–", "–"]
  assert lines["15"][2] == "90.0 ± 0.0 %, 14° (6) |"
  assert "Seeds 0, 1; a device; jax 1." in text


def test_an_arm_that_a_seed_lacks_is_left_out():
  first, second = _run(0.0), _run(0.0)
  del second["arms"]["mixup"]
  text = tables.markdown([first, second], [0, 1], ANGLES, UNSEEN)
  assert "mixup" not in text and "| weights |" in text

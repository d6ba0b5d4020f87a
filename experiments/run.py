# SPDX-License-Identifier: Apache-2.0
"""Trains an experiment's control, measures how exact it is, and reports.

  python -m experiments.run --config=experiments/configs/digits.py

  --config=FILE[:VARIANT]   what to run; experiments/configs/base.py explains
                            every field
  --config.KEY=VALUE        changes one field, as in --config.reward.gamma=2
  --workdir=DIR             where results go: runs/EXPERIMENT[-VARIANT] if not
                            given
  --distributed             on every host of a pod, with one DIR for all; see
                            experiments/launch

The same command again continues where an interrupted run stopped, and prints
the result of a finished one; DIR/report.html shows more. Compiled programs are
kept in ~/.cache/ctrl_jax, or in the folder CTRL_JAX_CACHE.

Exit code: 0 done, or saved and stopped by SIGTERM, as the message says; 1
training diverged; 2 a mistake in the command, the config or a file, told in one
line; 130 stopped by Ctrl-C. DIR/results.json is there once a run is done.
"""

import sys

from experiments.configs import rules
from experiments.runtime import devices, flags, outcome, workdir


def run() -> None:
  """Does what the command line says."""
  if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
    print((__doc__ or "").strip())
    return
  config, folder, distributed = flags.parse(sys.argv)
  rules.validate(config)
  workdir.prepare(folder, config)
  if not (folder / "results.json").exists():
    leads = devices.start(config, distributed=distributed)
    # Slow, as JAX is: only for a new result.
    from experiments import stages
    from experiments.runtime import logs

    with logs.Log(folder, enabled=leads) as log:
      results = stages.run(config, folder, log)
    if not leads:  # one host of several writes what all of them know
      return
    workdir.write_json(folder / "results.json", results)
  from experiments.reporting import finished, report, tables

  page = folder / "report.html"
  if not page.exists():
    report.write(folder)
  print(tables.summary(finished.load(folder).results))
  print(f"report      {page}")


if __name__ == "__main__":
  sys.exit(outcome.exit_code(run))

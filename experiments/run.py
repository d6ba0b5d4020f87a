# SPDX-License-Identifier: Apache-2.0
"""Trains an experiment's control, measures how exact it is, and reports.

  python -m experiments.run --config=experiments/configs/digits.py

  --config=FILE[:VARIANT]   what to run, also as digits.py from any folder;
                            experiments/configs/base.py explains every field
  --config.KEY=VALUE        changes one field, as in --config.reward.gamma=2
  --workdir=DIR             where results go: runs/EXPERIMENT[-VARIANT] if not
                            given
  --distributed             on every host of a pod, with one DIR for all; see
                            experiments/launch

The same command again continues where an interrupted run stopped, and prints
the result of a finished one; DIR/report.html shows more. With other fields of
evaluate or compare it evaluates again what it has trained. Compiled programs
are kept in ~/.cache/ctrl_jax, or in the folder CTRL_JAX_CACHE.

Exit code: 0 done, or saved and stopped by SIGTERM, as the message says; 1
training diverged; 2 a mistake in the command, the config or a file, told in one
line; 130 stopped by Ctrl-C. DIR/results.json is there once a run is done.
"""

import contextlib
import sys

from experiments.runtime import devices, flags, lock, outcome, workdir


def run() -> None:
  """Does what the command line says."""
  if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
    print((__doc__ or "").strip())
    return
  config, folder, distributed = flags.parse(sys.argv)
  evaluates_again = workdir.check(folder, config)
  if evaluates_again or not (folder / "results.json").exists():
    leads = devices.start(config, distributed=distributed)
    # Slow, as JAX is: only for a new result.
    from experiments import stages
    from experiments.runtime import logs

    with contextlib.ExitStack() as held:
      if leads:  # one host of several writes what all of them know
        held.enter_context(lock.held(folder, field="workdir"))
        workdir.prepare(folder, config)
      log = held.enter_context(logs.Log(folder, enabled=leads))
      results = stages.run(config, folder, log)
      if not leads:
        return
      workdir.write_json(folder / "results.json", results)
  from experiments.reporting import finished, report, summary

  page = folder / "report.html"
  if not page.exists():
    report.write(folder)
  print(summary.text(finished.load(folder).results))
  print(f"report      {page}")


if __name__ == "__main__":
  sys.exit(outcome.exit_code(run))

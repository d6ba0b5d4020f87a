# SPDX-License-Identifier: Apache-2.0
"""Plants one fault after another and tells which the tests do not notice.

    python -m tests.mutants [-j 2] [word ...]

Words choose the mutants in whose line one of them is. The exit code is 1 if a
mutant survives.
"""

import argparse
import concurrent.futures
import os
import sys

import tqdm

from tests.mutants import trials


def main() -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
  parser.add_argument("words", nargs="*", help="in the mutants to try")
  flags = parser.parse_args()
  chosen = [
    mutant
    for mutant in trials.read()
    if not flags.words or any(word in str(mutant) for word in flags.words)
  ]
  wrong = [f"{m} {fault}" for m in chosen for fault in trials.faults(m)]
  living = [mutant for mutant in chosen if mutant.tests]
  tests = sorted({test for mutant in living for test in mutant.tests})
  if wrong or not tests:
    print("\n".join(wrong) or "no mutant has these words")
    return 1
  # Collected first, for workers do not say which of the tests is not there.
  spread = ("-n", str(flags.jobs), "--dist", "loadfile")
  for options in (("--collect-only",), spread):
    code, said = trials.pytest(tests, options=options, timeout=3600)
    if code:
      print(f"the tests fail without any mutant:\n{said}")
      return 1
  with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
    trying = pool.map(trials.verdict, living)
    alive = 0
    for said in tqdm.tqdm(trying, total=len(living), disable=None):
      if said:
        alive += 1
        tqdm.tqdm.write(said)
  print(
    f"{len(living)} mutants: {len(living) - alive} died, {alive} did not; "
    f"{len(chosen) - len(living)} more are equivalent, for stated reasons"
  )
  return 1 if alive else 0


if __name__ == "__main__":
  sys.exit(main())

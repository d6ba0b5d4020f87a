# SPDX-License-Identifier: Apache-2.0
"""Experiments with `ctrl_jax`: runs, their reports, and what measures them.

They import more than the library does, the extra `experiments`. Every command
is a module of this package, which Python imports first: without the extra it
ends here, in one line and with exit code 2. Only the workers of
`benchmarks.peers` run without, in environments of PyTorch's.
"""

import importlib.util
import sys

NEEDED = (  # modules of the extra
  "absl",
  "array_record",
  "importlib_resources",
  "jinja2",
  "matplotlib",
  "ml_collections",
  "sklearn",
  "tensorboardX",
  "tensorflow_datasets",
  "tqdm",
)
_MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
_WORKER = any(
  word.startswith("experiments.benchmarks.peers.") for word in sys.orig_argv
)

if _MISSING and not _WORKER:
  _SAID = (
    f"experiments need {', '.join(_MISSING)}: pip install "
    "'ctrl-jax[experiments]', or `make setup` in a checkout"
  )
  if sys.argv[:1] != ["-m"]:  # imported by other code than `python -m`
    raise ImportError(_SAID)
  print("error:", _SAID, file=sys.stderr)
  raise SystemExit(2)

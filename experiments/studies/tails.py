# SPDX-License-Identifier: Apache-2.0
r"""Whether a classifier is too sure of what it gets wrong.

  python -m experiments.studies.tails --workdir=RUN

A temperature is fitted to all that is held out, most of which is easy, and a
classifier may still say e^-40 of a label that one image in a thousand has: in a
reward of gamma log p(y | x) that is 40 gamma nats. Mixed with ignorance,

    p'(y | x) = (1 - eps) p(y | x) + eps / Y                              (1)

is never below eps / Y. The eps of the largest likelihood is fitted to what the
oracle says of the run's samples of the pre-trained model, the law that the
target weighs. If it is 0, the tails are right as they are. The table has, of
that eps and of others, the mean of -log p', the mean of log Z over (c, y), and
of the (c, y) that is known least log Z and the Pareto k of its weights.
"""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import scipy.optimize

from ctrl_jax import paths, trust
from ctrl_jax.datasets import oracles
from experiments import sampler
from experiments.measures import evidence
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

SHARES = (
  1e-3,
  3e-3,
  1e-2,
  3e-2,
  1e-1,
)  # eps of the table, besides 0 and the best


def mixed(log_p: np.ndarray, num_labels: int, eps: float) -> np.ndarray:
  """log p' by (1), of log p(y | x) of any shape, nats."""
  with np.errstate(divide="ignore"):  # eps = 0
    return np.logaddexp(np.log1p(-eps) + log_p, np.log(eps / num_labels))


def fit(log_p: np.ndarray, num_labels: int) -> float:
  """The eps of the largest likelihood.

  Args:
    log_p: log p(y | x) of labels that were observed [n], nats.
    num_labels: Y.
  """
  # The likelihood is concave in eps, and this is its slope at 0.
  if np.expm1(-log_p - np.log(num_labels)).mean() <= 0:
    return 0.0
  found = scipy.optimize.minimize_scalar(
    lambda eps: -mixed(log_p, num_labels, eps).mean(),
    bounds=(0, 1 - 1e-9),
    method="bounded",
    options={"xatol": 1e-7},
  )
  return float(found.x)


def table(log_p: np.ndarray, observed: np.ndarray, gamma: float) -> str:
  """Of the fitted eps and others; markdown.

  Args:
    log_p: log p(y | x) of every label of samples [n, C, Y], nats.
    observed: what the oracle says of them [n, C]; -1: of one that diverged.
    gamma: strength of the control.
  """
  asked = np.take_along_axis(log_p, observed[..., None], axis=-1)[..., 0]
  asked, num_labels = asked[observed >= 0], log_p.shape[-1]
  best = fit(asked, num_labels)
  rows = []
  for eps in sorted({0.0, best, *SHARES}):
    found = mixed(log_p, num_labels, eps)
    log_z = np.asarray(paths.log_evidence(jnp.asarray(found), gamma=gamma).mean)
    trusted = trust.judge(gamma * found, found)
    cell = evidence.worst(trusted)
    numbers = (
      -mixed(asked, num_labels, eps).mean(),
      log_z.mean(),
      log_z[cell],
      trusted.pareto_k[cell],
    )
    said = f"{eps:.2g}" + " (fitted)" * (eps == best)
    rows.append([said, *(tables.number(number) for number in numbers)])
  return tables.markdown(
    ["eps", "-log p'", "log Z", "of the worst (c, y)", "its Pareto k"], rows
  )


def parser() -> arguments.Parser:
  """Flags of the command."""
  made = arguments.Parser(__doc__)
  made.add_argument(
    "--workdir",
    type=pathlib.Path,
    required=True,
    metavar="RUN",
    help="a finished run whose oracle measures a sample",
  )
  return made


def main() -> None:
  """Prints the table of a run."""
  run = parser().parse_args().workdir
  found = sampler.load(run)
  problem = found.problem
  if problem.measure is None or not problem.edges.size:
    raise ValueError(f"{run}: no oracle measures what y is of a sample")
  with np.load(run / "reference.npz") as saved:
    samples, log_p = saved["samples"], saved["log_likelihood"]
  values = problem.measure(
    jnp.asarray(samples.reshape(-1, *problem.sample_shape))
  )
  observed = np.asarray(oracles.bin_of(values, jnp.asarray(problem.edges)))
  print(
    table(log_p, observed.reshape(log_p.shape[:2]), found.config.reward.gamma)
  )


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))

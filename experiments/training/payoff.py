# SPDX-License-Identifier: Apache-2.0
"""Draws from the pay-off distribution, for `ctrl_jax.objectives.payoff`.

They are the chains of the pre-trained model that log Z was estimated from,
resampled in proportion to p(y | x, c)^gamma for every request (c, y): as often
as training asks for it, but at most as many as there are. A batch has their
ends, or the keys that make them again.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import paths, trust
from ctrl_jax.datasets.labelled import Rows
from experiments.measures.evaluation import Reference
from experiments.problems.problem import Problem
from experiments.runtime import keys
from experiments.training import algorithms


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Those of many that were drawn, as `labelled.Rows`."""

  many: np.ndarray
  chosen: np.ndarray  # rows of many

  def __len__(self) -> int:
    """Number of draws."""
    return len(self.chosen)

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """Returns these draws as one array."""
    found: np.ndarray = self.many[self.chosen[rows]]
    return found


def drawn(
  config: ConfigDict,
  problem: Problem,
  reference: Reference,
  requests: dict[str, np.ndarray],
) -> dict[str, np.ndarray | Rows]:
  """The requests, each as often as it has draws, with a column "drawn".

  Says on stderr where few chains are behind the draws of a request.

  The keys of the reference's chains are those of `evaluation.reference`.

  Raises:
    ValueError: p(y | x, c) of a request is 0 for all chains.
  """
  control, gamma = config.control, config.reward.gamma
  number, conditions = reference.log_likelihood.shape[:2]
  asked = -(-control.num_steps * control.batch_size // len(requests["y"]))
  each = min(asked, number)
  column = {y: i for i, y in enumerate(problem.controls.tolist())}
  key = keys.stage_key(config.seed, "payoff")
  chosen, effective = [], []
  for i, (c, y) in enumerate(zip(requests["c"], requests["y"], strict=True)):
    log_p = reference.log_likelihood[:, c, column[y.item()]]
    if not np.isfinite(log_p).any():
      raise ValueError(
        f"control.reward_weighted.behaviour is payoff, and none of {number} "
        f"samples under c = {c} is a {y}: use policy"
      )
    log_w = gamma * jnp.asarray(log_p)
    rows = paths.resample(jax.random.fold_in(key, i), log_w, num=each)
    chosen.append(np.asarray(rows) * conditions + c)
    effective.append(number * paths.effective_sample_size(log_w).item())
  if min(effective) < trust.LEAST:
    c, y = (requests[name][int(np.argmin(effective))] for name in ("c", "y"))
    print(
      f"warning: {number} samples under c = {c} are worth {min(effective):.1f} "
      f"of y = {y}: more of evaluate.num_reference make more of its paths",
      file=sys.stderr,
    )
  many = reference.samples.reshape(-1, *problem.sample_shape)
  if not algorithms.denoises(control):
    chains = keys.example_keys(config.seed, "reference", len(many))
    many = np.asarray(jax.random.key_data(chains))
  repeated = {k: np.repeat(rows, each) for k, rows in requests.items()}
  return {**repeated, "drawn": Drawn(many, np.concatenate(chosen))}

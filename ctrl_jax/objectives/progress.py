# SPDX-License-Identifier: Apache-2.0
"""The metrics that every policy update reports, of the policy's own chains.

J is estimated by the mean of log w (see `paths`), whose variance vanishes at
the optimum, whatever loss is trained.
"""

import jax

from ctrl_jax.types import Metrics, PerExample


def metrics(
  log_weights: PerExample,
  kl: PerExample,
  log_likelihood: PerExample,
  log_evidence: PerExample,
) -> Metrics:
  """Means over a minibatch of chains, in nats.

  Args:
    log_weights: log w of `paths.log_weights` [batch].
    kl: path KL of every chain [batch].
    log_likelihood: log p(y | x_K, c) [batch], without gamma.
    log_evidence: log Z(c, y) [batch].
  """
  objective, evidence = log_weights.mean(), log_evidence.mean()
  found = {
    "objective": objective,
    "log_evidence": evidence,
    "gap": evidence - objective,
    "kl": kl.mean(),
    "log_likelihood": log_likelihood.mean(),
  }
  return jax.lax.stop_gradient(found)

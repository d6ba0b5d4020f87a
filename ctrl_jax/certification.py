# SPDX-License-Identifier: Apache-2.0
r"""How far a tuned sampler is from its target, measured from samples alone.

    gap(c, y) = log Z(c, y) - J(c, y)                                     (1)

J is the mean log-weight of the sampler's own chains (`paths`), and log Z that
of `evidence`. Where log Z of a (c, y) is a lower bound, so are the gap and
every mean, and they are printed as such. Where other classifiers are given that
the labels allow, the certificate says what the gap is worth to whoever does not
believe this one (`doubt`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import alternatives, doubt, evidence, paths, sampling, trust
from ctrl_jax.evidence import LogZ, Sampler
from ctrl_jax.metrics import Estimate, mean_estimate
from ctrl_jax.paths import Certificate
from ctrl_jax.policy import Policy
from ctrl_jax.types import OthersFn


@dataclasses.dataclass(frozen=True)
class Certified:
  """A certificate and what it was made of; prints as one line.

  Attributes:
    certificate: averaged over every (c, y); its gap has the error of log Z in
      its own.
    before: gap of the pre-trained model, nats.
    log_z: of every (c, y), [C, Y], nats.
    gaps: of every (c, y), [C, Y], nats, with the error of J alone.
    pareto_k: of the sampler's weights; above 0.7 its ESS means nothing.
    doubts: of every (c, y), [C, Y], nats that the gap may be larger by if the
      classifier is wrong; None of a reward that is not a learned one.
  """

  certificate: Certificate
  before: float
  log_z: LogZ
  gaps: Estimate
  pareto_k: float
  doubts: Estimate | None = None

  @property
  def is_bound(self) -> bool:
    """Whether log Z of some (c, y), hence the gap, is a lower bound only."""
    return not bool(self.log_z.trust.known.all())

  def __str__(self) -> str:
    """One line for a reader."""
    least = "≥ " if self.is_bound else ""
    line = f"gap {least}{in_digits(self.certificate.gap)} nats"
    if self.pareto_k <= trust.HEAVY:
      line += f", ESS {100 * float(self.certificate.ess):.0f} %"
    else:
      line += f", ESS not to be trusted (Pareto k {self.pareto_k:.2f})"
    line += f", gap of the pre-trained model {least}{_rounded(self.before)}"
    if self.doubts is not None:
      more = float(doubt.pooled(self.doubts).mean)
      line += f"; not believing the classifier up to {_rounded(more)} nats more"
    if self.is_bound:
      known = self.log_z.trust.known
      line += f"; log Z is a lower bound of {(~known).sum()} in {known.size}"
    return line


def in_digits(estimate: Estimate) -> str:
  """Mean ± standard error, to two digits of the error and four at most."""
  mean, stderr = float(estimate.mean), float(estimate.stderr)
  if not (math.isfinite(stderr) and math.isfinite(mean)):
    return _rounded(mean)
  digits = _decimals(stderr) if stderr > 0 else 4
  return f"{mean:.{digits}f} ± {stderr:.{digits}f}"


def _rounded(value: float) -> str:
  """Two digits, and no power of ten."""
  if value == 0 or not math.isfinite(value):
    return f"{value:g}"
  return f"{value:.{_decimals(abs(value))}f}"


def _decimals(size: float) -> int:
  """How many show two digits of a number above 0, at most four."""
  return min(max(1 - math.floor(math.log10(size)), 0), 4)


def certify(
  sampler: Sampler,
  controls: np.ndarray,
  key: jax.Array,
  *,
  num: int,
  num_reference: int,
  num_bridge: int,
  others_fn: OthersFn | None = None,
) -> Certified:
  """Measures (1) for every condition and each of the controls.

  Args:
    sampler: what is measured.
    controls: values of y that are looked at [Y].
    key: of everything random.
    num: chains of the sampler in all, the same number of every (c, y).
    num_reference: chains of the pre-trained model in all, the same of every c.
    num_bridge: chains of each (c, y) whose log Z these do not know.
    others_fn: log p_m(y | x) of other classifiers, if there are some.

  Raises:
    ValueError: a reward that is undefined; see `evidence.reference`.
  """
  ours, theirs, between = jax.random.split(key, 3)
  gamma, model = sampler.gamma, sampler.pretrained
  x, log_p = evidence.reference(
    model,
    sampler.reward_fn,
    sampler.kernel,
    controls,
    theirs,
    num=num_reference,
  )
  cells = (model.num_conditions, len(controls))
  each = max(num // (cells[0] * cells[1]), 2)

  @jax.jit
  def chains(keys, c, y):
    start = sampling.initial_noise(keys, model.sample_shape, sampler.kernel)
    pair_fn = sampler.policy.pair_fn(sampler.params, sampler.condition(c), y)
    chain = sampling.rollout(keys, start, sampler.kernel, pair_fn)
    log_p = sampler.log_p(chain.x, c, y)
    log_w = paths.log_weights(chain, log_p, gamma=gamma)
    # What diverged has no weight, and leaves no finite gap.
    log_w = jnp.where(log_w < jnp.inf, log_w, -jnp.inf)
    if others_fn is None:
      return log_w, log_p, chain.kl, jnp.zeros((len(y), 0))
    return log_w, log_p, chain.kl, others_fn(model.decoded(chain.x), y)

  _, c, y = np.indices((each, *cells), np.int32)
  keys = jax.random.split(ours, c.size)
  log_w, likelihood, kl, others = evidence.in_chunks(
    chains, keys, c.ravel(), controls[y.ravel()]
  )
  log_w = log_w.reshape(each, *cells)
  log_z = evidence.log_z(
    sampler, controls, log_p, log_w, between, num_bridge=num_bridge
  )
  excess = jnp.asarray(np.asarray(log_z.table.mean)[None] - log_w)
  gap = _pooled(excess)
  found = Certificate(
    objective=_pooled(jnp.asarray(log_w)),
    gap=Estimate(gap.mean, jnp.hypot(gap.stderr, log_z.stderr)),
    path_kl=mean_estimate(jnp.asarray(kl)),
    log_likelihood=mean_estimate(jnp.asarray(likelihood)),
    ess=paths.effective_sample_size(-excess.ravel()),
  )
  return Certified(
    found,
    before=float(np.mean(log_z.table.mean - gamma * log_p.mean(0))),
    log_z=log_z,
    gaps=mean_estimate(excess),
    pareto_k=trust.tail(-np.asarray(excess).ravel()),
    doubts=None
    if others_fn is None
    else doubt.of_draws(
      doubt.excesses(
        jnp.asarray(likelihood.reshape(log_w.shape)),
        jnp.asarray(others.reshape(*log_w.shape, -1)),
        jnp.asarray(log_p),
        jnp.asarray(_others(sampler, x, controls, others_fn)),
        gamma=gamma,
      )
    ),
  )


def _others(
  sampler: Sampler, x: np.ndarray, controls: np.ndarray, others_fn: OthersFn
) -> np.ndarray:
  """log p_m(y | x) of samples [n, C, ...], for every y: [n, C, Y, M]."""
  decoded = sampler.pretrained.decoded
  of_every_y = alternatives.of_every_y(others_fn, controls)
  compiled = jax.jit(lambda x: of_every_y(decoded(x)))
  shape = sampler.pretrained.sample_shape
  found = evidence.in_chunks(compiled, x.reshape(-1, *shape))
  table: np.ndarray = found.reshape(*x.shape[:2], *found.shape[1:])
  return table


def _pooled(values: jax.Array) -> Estimate:
  """Mean over all of [m, C, Y], where each cell is a stratum."""
  cells = mean_estimate(values)
  stderr = jnp.sqrt((cells.stderr**2).sum()) / cells.stderr.size
  return Estimate(cells.mean.mean(), stderr)


def draw(
  sampler: Sampler, key: jax.Array, c: np.ndarray, y: np.ndarray
) -> np.ndarray:
  """One sample, decoded, of every (c, y)."""
  model: Policy = sampler.policy

  @jax.jit
  def chains(keys, c, y):
    shape = sampler.pretrained.sample_shape
    start = sampling.initial_noise(keys, shape, sampler.kernel)
    pair_fn = model.pair_fn(sampler.params, sampler.condition(c), y)
    x = sampling.rollout(keys, start, sampler.kernel, pair_fn, compare=False).x
    return sampler.pretrained.decoded(x)

  found: np.ndarray = evidence.in_chunks(
    chains, jax.random.split(key, len(c)), c, y
  )
  return found

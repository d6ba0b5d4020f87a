# SPDX-License-Identifier: Apache-2.0
r"""The KL of two laws in nats, from their noise predictions.

Of laws p and q that are noised, x_t = alpha x + std eps, with lambda = log
(alpha^2 / std^2) and eps_p = -std grad log p_t,

    d KL(p_t || q_t) / d lambda = 1/2 E_{p_t} ||eps_p - eps_q||^2,        (1)

whence, over the times of a sampler, by the trapezoid rule,

    KL(p_min || q_min) - KL(p_max || q_max)
      = 1/2 int E_{p_t} ||eps_p - eps_q||^2 dlambda.                      (2)

At t_max little is left of either law, and the second KL is about 0; it would
add to the first. The integral is cut at t_min, for it diverges where one of the
laws has an edge: what is finer than the noise there is not seen.

Of a generator, eps_p is an auxiliary network's (`distillation`). (2) is then an
ESTIMATE and no certificate: a network that has not learned the generator's
score errs either way, and q is the law that has the teacher's score, which is
not quite that of the teacher's samples.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import sampling
from ctrl_jax.sampling import fold_in
from ctrl_jax.sde import SDE
from ctrl_jax.types import EpsFn, Keys, PerExample, Sample


def integrated(
  x: Sample,
  keys: Keys,
  times: np.ndarray,
  sde: SDE,
  own_fn: EpsFn,
  other_fn: EpsFn,
) -> PerExample:
  """(2) of each sample of p, [batch], nats; the mean is the KL.

  Args:
    x: samples of p.
    keys: of the noise, one each.
    times: falling; of the last comes t_min.
    sde: the forward process.
    own_fn: eps_p.
    other_fn: eps_q.
  """
  log_snr = 2 * np.log(sde.alpha(times) / sde.std(times))
  gaps = np.diff(log_snr) / 2
  widths = np.append(gaps, 0.0) + np.append(0.0, gaps)

  def add(total: PerExample, row: Any) -> tuple[PerExample, None]:
    index, t, alpha, std, width = row
    eps = sampling.gaussian(fold_in(keys, index), x.shape[1:], x.dtype)
    noised = alpha * x + std * eps
    apart = own_fn(noised, t) - other_fn(noised, t)
    square = jnp.sum(apart**2, axis=tuple(range(1, x.ndim)))
    return total + width * square / 2, None

  columns = (times, sde.alpha(times), sde.std(times), widths)
  rows = [jnp.asarray(column, jnp.float32) for column in columns]
  total = jnp.zeros(len(x), jnp.float32)
  return jax.lax.scan(add, total, (jnp.arange(len(times)), *rows))[0]

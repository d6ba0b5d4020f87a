# SPDX-License-Identifier: Apache-2.0
r"""Forward diffusion processes and their reverse.

Time runs from 0 (data) to 1 (noise), the other way round from the CTRL paper,
which counts from noise to data. Every process here is linear in x,

    dx = F(t) x dt + g(t) dW,                                             (1)

so that its marginals are Gaussian with coefficients alpha and std,

    x_t = alpha(t) x_0 + std(t) eps,      eps ~ N(0, I),                  (2)
    F = d log(alpha) / dt,    g^2 = d(std^2)/dt - 2 F std^2.              (3)

The reverse SDE (Anderson 1982; Song et al., arXiv 2011.13456), with the score
written through the noise prediction, score = -eps / std, is

    dx = [F(t) x + g(t)^2 eps(x, t) / std(t)] dt + g(t) dW,   t: 1 -> 0.  (4)

A reversed chain that begins at time t starts from noise alone,

    x_t ~ N(0, start_std(t)^2 I),                                         (5)

which is one for a variance-preserving process, whose x_t has the variance 1 of
its data, and std(t) for an exploding one, beside which its data vanish.

Another noise eta g has the same marginals if the drift makes up for it:

    dx = [F x + (1 + eta^2) g^2 eps / (2 std)] dt + eta g dW,   t: 1 -> 0, (6)

for with c = (eta g)^2 / 2 it takes p to (Fokker-Planck, backwards in t)

    div[(F x - g^2/2 grad log p - c grad log p) p] + c lap p,             (7)

in which c cancels, as grad log p times p is grad p. eta = 1 is (4), and eta = 0
an ODE, the "probability flow". Under eta = 1 a chain forgets where it began as
the forward process forgets its data; a smaller eta remembers more.

Methods take NumPy arrays (and then compute in their float64) or JAX arrays
(and may be traced and differentiated).
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Time = Any  # a float, a NumPy array or a JAX array, of any shape


def _numpy_of(t: Time) -> Any:
  """jax.numpy for JAX arrays; NumPy, hence float64, for everything else."""
  return jnp if isinstance(t, jax.Array) else np


@runtime_checkable
class SDE(Protocol):
  """What kernels and networks ask of a forward process."""

  def alpha(self, t: Time) -> Any:
    """Signal coefficient of (2)."""
    ...

  def std(self, t: Time) -> Any:
    """Noise coefficient of (2)."""
    ...

  def drift(self, t: Time) -> Any:
    """F(t) of (1), per unit of diffusion time."""
    ...

  def diffusion(self, t: Time) -> Any:
    """g(t) of (1)."""
    ...

  def start_std(self, t: Time) -> Any:
    """Deviation (5) of the starts of chains that begin at t."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class VP:
  """Variance preserving: beta(t) linear in t, alpha^2 + std^2 = 1.

  Attributes:
    beta_min: noise rate at t = 0.
    beta_max: noise rate at t = 1.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0

  def __post_init__(self) -> None:
    """Raises ValueError unless both rates are positive and finite."""
    if not (0 < self.beta_min < np.inf and 0 < self.beta_max < np.inf):
      raise ValueError(f"noise rates must be positive and finite: {self}")

  def _integral(self, t: Time) -> Any:
    return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

  def alpha(self, t: Time) -> Any:
    """exp(-1/2 int_0^t beta)."""
    return _numpy_of(t).exp(-0.5 * self._integral(t))

  def std(self, t: Time) -> Any:
    """sqrt(1 - alpha^2), by expm1: exact to the last digit near t = 0."""
    xp = _numpy_of(t)
    return xp.sqrt(-xp.expm1(-self._integral(t)))

  def drift(self, t: Time) -> Any:
    """-beta(t) / 2."""
    return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

  def diffusion(self, t: Time) -> Any:
    """sqrt(beta(t))."""
    return _numpy_of(t).sqrt(-2.0 * self.drift(t))

  def start_std(self, t: Time) -> Any:
    """One."""
    return _numpy_of(t).ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VE:
  """Variance exploding: std geometric in t from std_min to std_max, alpha 1.

  Attributes:
    std_min: noise level at t = 0, small against the data.
    std_max: noise level at t = 1, large against the data.
  """

  std_min: float = 0.01
  std_max: float = 50.0

  def __post_init__(self) -> None:
    """Raises ValueError unless 0 < std_min < std_max < infinity."""
    if not 0 < self.std_min < self.std_max < np.inf:
      raise ValueError(f"need 0 < std_min < std_max < infinity: {self}")

  def alpha(self, t: Time) -> Any:
    """One: the signal is never scaled."""
    return _numpy_of(t).ones_like(t)

  def std(self, t: Time) -> Any:
    """std_min (std_max / std_min)^t."""
    return self.std_min * (self.std_max / self.std_min) ** t

  def drift(self, t: Time) -> Any:
    """Zero."""
    return _numpy_of(t).zeros_like(t)

  def diffusion(self, t: Time) -> Any:
    """std(t) sqrt(2 log(std_max / std_min))."""
    return self.std(t) * np.sqrt(2 * np.log(self.std_max / self.std_min))

  def start_std(self, t: Time) -> Any:
    """std(t)."""
    return self.std(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated:
  """A discrete-time VP schedule, such as Stable Diffusion's, as an SDE.

  Training step i of N sits at t = (i + 1) / N; t = 0 has alpha_bar = 1.
  log(alpha_bar) is linear between the knots, so F is constant on each.

  Attributes:
    alpha_bar: decreasing products of (1 - beta), in (0, 1), one per step.
  """

  alpha_bar: tuple[float, ...]

  def __post_init__(self) -> None:
    """Raises ValueError unless alpha_bar decreases within (0, 1)."""
    table = np.array((1.0, *self.alpha_bar))
    if len(table) < 2 or table[-1] <= 0 or not np.all(np.diff(table) < 0):
      raise ValueError(
        "alpha_bar must decrease within (0, 1), one value a training step; got "
        f"{len(self.alpha_bar)} values from {self.alpha_bar[:1]} to "
        f"{self.alpha_bar[-1:]}"
      )

  def _log_alpha_bar(self, t: Time) -> Any:
    table = np.log(np.array((1.0, *self.alpha_bar)))
    return _numpy_of(t).interp(t, np.linspace(0.0, 1.0, len(table)), table)

  def alpha(self, t: Time) -> Any:
    """sqrt(alpha_bar)."""
    return _numpy_of(t).exp(0.5 * self._log_alpha_bar(t))

  def std(self, t: Time) -> Any:
    """sqrt(1 - alpha_bar)."""
    xp = _numpy_of(t)
    return xp.sqrt(-xp.expm1(self._log_alpha_bar(t)))

  def drift(self, t: Time) -> Any:
    """Half the slope of log(alpha_bar) on the piece that ends at t."""
    xp = _numpy_of(t)
    steps = len(self.alpha_bar)
    slope = np.diff(np.log(np.array((1.0, *self.alpha_bar)))) * steps
    # A margin for rounding: t = i / N ends its own piece in float32 too.
    index = xp.ceil(t * steps - 1e-3).astype(int) - 1
    return 0.5 * xp.take(slope, xp.clip(index, 0, steps - 1))

  def diffusion(self, t: Time) -> Any:
    """sqrt(-2 F): what keeps alpha^2 + std^2 = 1 in (3)."""
    return _numpy_of(t).sqrt(-2.0 * self.drift(t))

  def start_std(self, t: Time) -> Any:
    """One."""
    return _numpy_of(t).ones_like(t)


def reverse_drift(sde: SDE, x: jax.Array, t: jax.Array, eps: jax.Array) -> Any:
  """Drift of the reverse SDE (4) in increasing t, of the shape of x.

  Args:
    sde: the forward process.
    x: states [batch, ...].
    t: diffusion time [].
    eps: noise prediction at (x, t), of the shape of x.
  """
  return sde.drift(t) * x + sde.diffusion(t) ** 2 / sde.std(t) * eps


def diffuse(
  keys: jax.Array, x: jax.Array, sde: SDE, *, t_min: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Samples (2) at random times: t [B], eps and x_t [B, ...].

  Args:
    keys: one a sample [B].
    x: x_0 [B, ...].
    sde: gives alpha and std.
    t_min: times are uniform between it and 1.
  """

  def one(key, x0):
    time_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(time_key, minval=t_min, maxval=1.0)
    eps = jax.random.normal(noise_key, x0.shape)
    return t, eps, sde.alpha(t) * x0 + sde.std(t) * eps

  return jax.vmap(one)(keys, x)

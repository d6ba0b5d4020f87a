# SPDX-License-Identifier: Apache-2.0
r"""Labels that nobody gave: clusters of a diffusion model's own features.

A model p_pre(x) knows what its data are like. Noised to a set level,

    x_t = alpha(t) x + std(t) eps,      std(t) / alpha(t) = noise,         (1)

they make tokens in the middle of its network: h has their means over regions of
the picture. It is projected to an embedding of length 1 by a linear map, or a
small network, and compared with prototypes, columns of C of length 1:

    e = project(h) / |project(h)|,   l = C^T e   in [-1, 1]^K.             (2)

Targets are the plan of least cost -l, entropy epsilon, that gives every example
one and every prototype as many, B / K: q = diag(a) exp(l / epsilon) diag(b).
Some iterations of Sinkhorn find a and b (Caron et al., arXiv 2006.09882). The
projection learns to say the same without seeing the other examples,

    L = -mean_i sum_k q_ik log softmax(l_i / 0.1)_k,   q held still.       (3)

Equal shares for all prototypes keep them from collapsing to one. (1) to (3) are
those of self-supervised guidance (Hu et al., arXiv 2312.08825), in whose
released code no gradient of (3) reaches the diffusion network (h is detached),
although the paper has (3) make its features better. Here that network is there
already and stays as it is.

Theirs has q and l of the same look at x, under the same eps. A projection can
then learn any plan by heart, noise and all. With several looks at each x, each
is here to say what the others do, as in the work on Sinkhorn's targets: q of
(3) is the mean of the other looks'. With one look (3) is theirs.

What comes of it is a reward like any other: with the noise of (1) drawn once
and for all, so that y is a function of x,

    log p(y | x) = log softmax(C^T e(x) / T)_y    in nats.                 (4)

T is calibrated: held-out examples are looked at again under other noise, and
p(y | x) is how probable it is that this second look says y.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE

EPSILON = 0.05  # of (3)'s targets
ITERATIONS = 3
TEMPERATURE = 0.1  # of (3)
REGIONS = 4  # at most so many along a side of a picture
VIEWS = 4  # looks at an example in training, each under noise of its own
LOOKS = 2  # at a sample under noise that is the same for all, of which the mean
DRAWS = 20  # labels that stand for an example's target in calibration
FEWEST = 10  # examples of a cluster, on the average


def sinkhorn(
  logits: Float[Array, "b k"],
  *,
  epsilon: float = EPSILON,
  iterations: int = ITERATIONS,
  axis_name: str | None = None,
) -> Float[Array, "b k"]:
  """Targets q: rows of sum 1, whose columns have nearly equal sums.

  Args:
    logits: cosines of examples with prototypes.
    epsilon: entropy of the plan; the smaller, the harder its labels.
    iterations: of the two projections; sums of columns get equal with them.
    axis_name: mapped axis that the examples are spread over, if any.
  """

  def over_examples(log_q: jax.Array) -> jax.Array:
    if axis_name is None:
      return jax.nn.logsumexp(log_q, axis=0, keepdims=True)
    top = jax.lax.pmax(log_q.max(0, keepdims=True), axis_name)
    total = jnp.exp(log_q - top).sum(0, keepdims=True)
    return top + jnp.log(jax.lax.psum(total, axis_name))

  log_q = jax.lax.stop_gradient(logits) / epsilon
  for _ in range(iterations):
    log_q = log_q - over_examples(log_q)
    log_q = jax.nn.log_softmax(log_q, axis=1)
  return jnp.exp(log_q)


def loss(
  logits: Float[Array, "b looks k"],
  *,
  epsilon: float = EPSILON,
  temperature: float = TEMPERATURE,
  axis_name: str | None = None,
) -> Float[Array, ""]:
  """Equation (3), nats a look; arguments as of `sinkhorn`, for each look."""
  looks = logits.shape[1]
  q = jax.vmap(
    lambda one: sinkhorn(one, epsilon=epsilon, axis_name=axis_name),
    in_axes=1,
    out_axes=1,
  )(logits)
  if looks > 1:
    q = (q.sum(1, keepdims=True) - q) / (looks - 1)
  log_p = jax.nn.log_softmax(logits / temperature, axis=2)
  return -jnp.sum(q * log_p, axis=2).mean()


def look(
  model: Pretrained,
  x: Float[Array, "b ..."],
  eps: Float[Array, "m ..."] | Float[np.ndarray, "m ..."],
  *,
  noise: float,
) -> Float[Array, "b d"]:
  """h of (1), the mean over looks under different noise.

  Args:
    model: with parameters and features.
    x: samples.
    eps: noise of each look, which all samples have alike.
    noise: std / alpha of it.

  Raises:
    ValueError: the network shows no tokens, or the noise is that of no time.
  """
  looks = jnp.asarray(eps)[:, None]
  both = jnp.broadcast_arrays(x[None], looks)
  flat = [a.reshape(-1, *x.shape[1:]) for a in both]
  h = look_each(model, *flat, noise=noise)
  return h.reshape(len(looks), len(x), -1).mean(0)


def look_each(
  model: Pretrained,
  x: Float[Array, "b ..."],
  eps: Float[Array, "#b ..."],
  *,
  noise: float,
) -> Float[Array, "b d"]:
  """The same of one look at each sample, under noise of its own."""
  if model.features is None:
    raise ValueError("the model's network shows no tokens: it has no features")
  t = time_of(model.sde, noise)
  alpha, std = float(model.sde.alpha(t)), float(model.sde.std(t))
  noised = alpha * x + std * jnp.broadcast_to(eps, x.shape)
  return _regions(model.features(model.params, noised, jnp.float32(t)))


def _regions(tokens: jax.Array) -> jax.Array:
  """Tokens [B, ..., d] as one row each: their means over regions."""
  for axis in range(1, tokens.ndim - 1):
    size = tokens.shape[axis]
    parts = jnp.array_split(tokens, min(size, REGIONS), axis=axis)
    tokens = jnp.concatenate(
      [part.mean(axis, keepdims=True) for part in parts], axis=axis
    )
  return tokens.reshape(len(tokens), -1)


def time_of(sde: SDE, noise: float) -> float:
  """The diffusion time at which std / alpha is `noise`, (1).

  Raises:
    ValueError: there is so little noise, or so much, at no time.
  """

  def over(t: float) -> float:
    return float(sde.std(t) - noise * sde.alpha(t))

  if not over(0.0) <= 0 <= over(1.0):
    raise ValueError(
      f"noise is {noise}: it is from {sde.std(0.0) / sde.alpha(0.0):.3g} on in "
      "this process"
    )
  return float(scipy.optimize.brentq(over, 0.0, 1.0, xtol=1e-10))


def labels_of(
  q: Float[np.ndarray, "n k"], num: int
) -> Int[np.ndarray, "n num"]:
  """Targets as labels: num of each example, by the quantiles of q."""
  quantiles = (np.arange(num) + 0.5) / num
  cumulative = np.cumsum(q, axis=1)
  found = (cumulative[:, None] < quantiles[None, :, None]).sum(-1)
  return np.minimum(found, q.shape[1] - 1)


def matched(
  first: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"], num: int
) -> Int[np.ndarray, "num"]:
  """Of each cluster of one clustering, which of the other is its own.

  One to one, so that as many examples as can be are in both.

  Args:
    first: clusters of examples, 0 ... num - 1.
    second: of the same examples, by somebody else.
    num: of clusters.
  """
  table = np.zeros((num, num))
  np.add.at(table, (first, second), 1)
  return scipy.optimize.linear_sum_assignment(-table)[1]

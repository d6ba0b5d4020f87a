# SPDX-License-Identifier: Apache-2.0
r"""Interpolation of denoisers that were fine-tuned from one, and beyond them.

Networks theta_1 ... theta_n of n domains, such as pictures turned by 0, 30 and
60 degrees, that come from one pre-trained network lie near each other, and what
lies between their weights may be a model of what lies between the domains
(arXiv 2307.12219, there of GANs). With weights lambda of sum 1,

    theta(lambda)     = sum_i lambda_i theta_i,                           (1)
    eps(x, t; lambda) = sum_i lambda_i eps_i(x, t),                       (2)

of which (1) costs one evaluation and (2) n. They are equal where the network is
linear in its weights. Adapters are interpolated by (1), too: merged networks
theta_0 + A_i B_i become theta_0 + sum_i lambda_i A_i B_i, for the weights sum
to 1.

Where all eps_i are exact, (2) has the score of prod_i p_i(x, t)^lambda_i at
every t. Of Gaussians N(mu_i, v) of one variance that is, exactly, the denoiser
of N(sum_i lambda_i mu_i, v): means are interpolated, and beyond the simplex
extrapolated. Of laws that hardly overlap it is neither their mixture nor what
is between them; how much of it is, is to be measured.

    lambda = 1 / n + s (d - 1 / n),    d ~ Dirichlet(1, ..., 1),          (3)

is uniform on the simplex for a stretch s of 1, and for a larger one on a
simplex about the same centre that reaches beyond it: down to (1 - s) / n.

    eps(x, t) = eps_1(x, t) if t > t_s, else eps_2(x, t)                  (4)

mixes styles: what is coarse is settled early, at large t, by the first network,
and what is fine by the second.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import composition
from ctrl_jax.sampling import Predictions
from ctrl_jax.types import EpsFn, Params

Weights = Float[Array, "n"]


def parameters(trees: Sequence[Params], weights: Weights) -> Params:
  """Equation (1). A corner of the simplex is that network, bit for bit.

  For many lambda at once: jax.vmap over the weights.

  Args:
    trees: parameters of the n networks, alike in structure and shapes.
    weights: of sum 1, one for each; they may be negative.

  Raises:
    ValueError: trees that are not alike, weights of another number or, where
      they are not traced, of another sum.
  """
  trees = tuple(trees)
  _check(weights, len(trees))
  structures = [jax.tree.structure(tree) for tree in trees]
  for number, structure in enumerate(structures):
    if structures.index(structure) != 0:
      raise ValueError(f"network {number} has other parameters than network 0")

  def mean(path, *leaves):
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if len(set(shapes)) > 1:
      name = jax.tree_util.keystr(path)
      raise ValueError(f"networks differ in the shape of {name}: {shapes}")
    total = sum(w * leaf for w, leaf in zip(weights, leaves, strict=True))
    return jnp.asarray(total, jnp.result_type(leaves[0]))

  return jax.tree_util.tree_map_with_path(mean, *trees)


def predictions(eps_fns: Sequence[EpsFn], weights: Weights) -> EpsFn:
  """Equation (2): a composition of the networks, none of which is a reference.

  Args:
    eps_fns: of the n networks.
    weights: as of `parameters`.

  Raises:
    ValueError: as of `parameters`.
  """
  _check(weights, len(eps_fns))

  def alone(eps_fn):
    # Beside a prediction of 0, so that all of it is what the network adds.
    return lambda x, t: Predictions(eps_fn(x, t), jnp.zeros_like(x))

  pair_fn = composition.combined([alone(f) for f in eps_fns], list(weights))
  return lambda x, t: pair_fn(x, t).eps


def draws(
  key: jax.Array, num: int, size: int, *, stretch: float = 1.0
) -> Float[Array, "num size"]:
  """Equation (3): weights of `size` networks, `num` times, each of sum 1.

  Args:
    key: of the draws.
    num: of them.
    size: n.
    stretch: s; 1 stays on the simplex.

  Raises:
    ValueError: fewer than two networks, or a negative stretch.
  """
  if size < 2 or stretch < 0:
    raise ValueError(
      f"need 2 networks or more and a stretch that is not negative, got {size} "
      f"and {stretch}"
    )
  inside = jax.random.dirichlet(key, jnp.ones(size), (num,))
  return 1 / size + stretch * (inside - 1 / size)


def along(position: float | jax.Array, size: int) -> Float[Array, "size"]:
  """Weights on the way from network to network, and on beyond both ends.

  The numbers 0, 1, ... are the networks themselves; between two of them only
  these have weight, and beyond an end the last two.

  Raises:
    ValueError: fewer than two networks.
  """
  if size < 2:
    raise ValueError(f"need 2 networks or more, got {size}")
  lower = jnp.clip(jnp.floor(position), 0, size - 2).astype(int)
  share = position - lower
  ends = jax.nn.one_hot(jnp.stack([lower, lower + 1]), size)
  return (1 - share) * ends[0] + share * ends[1]


def switched(first: EpsFn, second: EpsFn, time: float | jax.Array) -> EpsFn:
  """Equation (4); evaluates one network, but both where it is mapped by vmap.

  Args:
    first: predicts the noise above the time.
    second: predicts it at the time and below; of all steps, if that is 1.
    time: t_s, a diffusion time [].
  """
  return lambda x, t: jax.lax.cond(t > time, first, second, x, t)


def _check(weights: jax.Array, number: int) -> None:
  """Raises ValueError unless there is a weight for each, of sum 1."""
  if not number or weights.shape != (number,):
    raise ValueError(
      f"need one weight for each of {number} networks, got weights of shape "
      f"{weights.shape}"
    )
  if not isinstance(weights, jax.core.Tracer):
    total = float(weights.sum())
    if not abs(total - 1) < 1e-3:
      raise ValueError(f"weights must sum to 1, got {total:.4g}")

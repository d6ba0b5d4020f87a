# SPDX-License-Identifier: Apache-2.0
r"""A diffusion model that is told what it sees, by its own features.

A condition c makes a model better: the more it is told of x, the less is left
to guess. Where nobody labelled anything, it can tell itself. While p_pre
learns, its moving average looks at every example as in `self_labels`, (1) and
(2) there: noised to a set level, tokens in the middle of the network, an
embedding e(x) of length 1 and its cosines with K prototypes, the columns of C.
Two losses are one update:

    E w(t) ||eps_theta(x_t, t; b W e(x)) - eps||^2 / dims,                (1)
    L = -mean_i sum_k q_ik log softmax(l_i / 0.1)_k,                      (2)

(1) that of `objectives.denoising` of the network and of W, a linear map from
embeddings to the vector that it takes as a control; (2) that of `self_labels`
of the projection and C, q by Sinkhorn. b is 0 or 1: 0 in the first updates,
whose features mean nothing yet, and afterwards in 15 % of examples. So the
network stays a model of all x, and classifier-free guidance has both parts,

    eps = eps(x, t; 0) + s [eps(x, t; W e) - eps(x, t; 0)].               (3)

This is online self-guidance (Hu et al., arXiv 2312.08825). As in its released
code no gradient of (2) reaches the network. Features are standardised by moving
means, and a moving mean of what examples of a cluster are told stands for it,

    c = k:   W E[p_k e] / E[p_k],  p = softmax(l / 0.1);      c = -1:   0, (4)

so that what is learned is a `Pretrained` with K conditions like any other:
a control of p_pre(x | c) may be added, and certified. (A prototype itself does
not do for (4): no example's embedding is near it, only nearer than to others.)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import self_labels
from ctrl_jax.models.prototypes import Prototypes
from ctrl_jax.policy import Condition, Output, rows_of
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import EpsFn, Params

NOISE = 0.35  # std / alpha at which the network looks at an example
DIMS = 32  # of an embedding
_TINY = 1e-6


def conditioned(model: Pretrained, num: int) -> Pretrained:
  """A model whose conditions are clusters that it finds itself, (4).

  Its parameters are {"network", "clusters", "map", "moments"}.

  Args:
    model: yet to be trained, of pixels, without conditions.
    num: K, clusters.

  Raises:
    ValueError: the network shows no features or takes no control, or has
      conditions.
  """
  features, begin = model.features, model.init
  if features is None or begin is None or not model.control_dim:
    raise ValueError(
      "a network that tells itself what it sees must be one that is trained "
      "here, with features and a control"
    )
  if model.conditions:
    raise ValueError(f"the model has conditions already: {model.conditions}")
  prototypes = Prototypes(num, (), DIMS)

  def network(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: Condition,
    control: jax.Array | None,
  ) -> Output:
    if c is not None:
      own = rows_of(centres(params), c) @ params["map"]
      control = own if control is None else own + control
    return model.network(params["network"], x, t, None, control)

  def init(key: jax.Array) -> Params:
    first, second, third = jax.random.split(key, 3)
    inner = begin(first)
    h = jax.eval_shape(
      lambda p, x: self_labels.look_each(
        model.with_params(p), x, x, noise=NOISE
      ),
      inner,
      jnp.zeros((1, *model.sample_shape)),
    )
    moments = {
      "mean": jnp.zeros(h.shape[1]),
      "square": jnp.ones(h.shape[1]),
      "told": jnp.zeros((num, DIMS)),
      "share": jnp.full(num, 1 / num),
    }
    return {
      "network": inner,
      "clusters": prototypes.init(second, jnp.zeros(h.shape)),
      "map": jax.random.normal(third, (DIMS, model.control_dim)),
      "moments": moments,
    }

  return dataclasses.replace(
    model,
    network=network,
    init=init,
    conditions=tuple(f"cluster {k}" for k in range(num)),
    features=lambda params, x, t: features(params["network"], x, t),
    select=lambda path, leaf: (
      path.startswith("network/")
      and model.select(path.removeprefix("network/"), leaf)
    ),
  )


def centres(params: Params) -> Float[Array, "k d"]:
  """What stands for each cluster, a mean of embeddings by (4)."""
  moments = params["moments"]
  return jnp.asarray(moments["told"] / moments["share"][:, None])


def embed(
  model: Pretrained,
  params: Params,
  x: Float[Array, "b ..."],
  eps: Float[Array, "#b ..."],
) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
  """Embeddings e(x), and cosines with prototypes, of one look at each sample.

  Args:
    model: of `conditioned`.
    params: its own.
    x: samples.
    eps: noise of the look [b, ...], or [1, ...] for all.
  """
  seen = model.with_params(params)
  h = self_labels.look_each(seen, x, eps, noise=NOISE)
  return projected(
    params, standardised(params["moments"], h), model.num_conditions
  )


def guided(
  model: Pretrained,
  params: Params,
  e: Float[Array, "b d"],
  *,
  strength: float = 1.0,
) -> EpsFn:
  """The prediction (3) for samples like those of e.

  Args:
    model: of `conditioned`.
    params: its own.
    e: embeddings, of `embed` or `centres`.
    strength: s; 0 is told nothing, and 1 takes one evaluation.
  """
  control = e @ params["map"]

  def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
    told = model.network(params, x, t, None, control).eps
    if strength == 1:
      return told
    untold = model.network(params, x, t, None, None).eps
    return untold + strength * (told - untold)

  return eps_fn


def standardised(moments: Params, h: jax.Array) -> jax.Array:
  """Features of mean 0 and deviation 1."""
  mean = moments["mean"]
  variance = jnp.maximum(moments["square"] - mean**2, 0) + _TINY
  scale = jax.lax.rsqrt(variance)
  shift, scale = (jnp.broadcast_to(row, h.shape) for row in (mean, scale))
  return (h - shift) * scale


def projected(
  params: Params, h: jax.Array, num: int
) -> tuple[jax.Array, jax.Array]:
  """Embeddings and cosines of standardised features."""
  network = Prototypes(num, (), DIMS)
  cosines, sown = network.apply(params["clusters"], h, mutable="intermediates")
  e = sown["intermediates"]["features"][0]
  return e.reshape(*h.shape[:-1], DIMS), cosines

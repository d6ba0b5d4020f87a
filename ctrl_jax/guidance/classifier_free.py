# SPDX-License-Identifier: Apache-2.0
r"""Classifier-free guidance: a conditional model instead of a classifier.

The gradient that `classifier` takes from a noisy classifier is, by Bayes' rule,
a difference of two scores,

    grad log p_t(y | x, c) = grad log p_t(x | c, y) - grad log p_t(x | c). (1)

Ho and Salimans (arXiv 2207.12598) learn both with one network, whose labels are
at times replaced by a null label, 0 in what follows and -1 in arrays:

    E ||eps(x_t, t; c', y') - eps||^2 / dims,                             (2)
    c' = 0 with probability drop_c, else c;   y' = 0 with drop_y, else y,

independently. Given (c', y') the minimiser is the noise prediction of the data
under these labels, an omitted one being averaged over: eps(c, 0) of p(x | c),
eps(0, y) of p(x | y), eps(0, 0) of p(x). From triples (x, c, y), `pair_fn`:

    eps = eps(c, 0) + (strength_c - 1) [eps(c, 0) - eps(0, 0)]
                    + strength [eps(c, y) - eps(c, 0)].                   (3)

From pairs (x, y), c not having been recorded, `product_pair_fn` multiplies the
pre-trained model by an expert of y:

    eps = eps_pre(c) + strength [eps(0, y) - eps(0, 0)].                  (4)

Which law. (3) at strengths 1 is eps(c, y): exactly trained and with many steps
it samples p(x | c, y) of the data, the optimal policy for gamma = 1 and the
TRUE p(y | x, c) if the data are distributed as p_pre given c. No classifier,
and so none of its errors, is part of it.

Bias. At another strength (3) follows s grad log E[p(y | x_0, c) | x_t] rather
than the gradient of log E[p(y | x_0, c)^s | x_t]: near the data alone does it
agree with p^s p_pre, which is not what it samples, as for `classifier` and for
strength_c likewise. It overdoes it: on a Gaussian, for gamma = 3, the gap is
0.9 nats at strength 3 and 0.15 at strength 2. Where the trained eps(c, 0) is
not eps_pre(c), (3) changes what c means without being asked to.

(4) puts grad log p_t(y | x) for grad log p_t(y | x, c), equal if y is
independent of c given x_t. That may hold of the data, x_0; of noise it is
false, as soon as c tells more about x_0 than x_t does: even at strength 1 with
exact networks (4) samples no law of the data. The certificate of `paths`
measures all of it.

Cost. (3) evaluates the network twice a step, three times if strength_c is not
1, and once more for the reference, which only the certificate needs; (4) twice,
and the reference, which is part of it. Before that, fine-tuning on labelled
samples: one forward and backward pass an example, no sampler, no reward.

Choose it when labelled samples abound (of triples, for a control that c bears
upon), and the pre-trained network may be changed. A reward is not needed.
"""

import jax
import jax.numpy as jnp

from ctrl_jax.policy import Policy
from ctrl_jax.sampling import PairFn, Predictions, fold_in
from ctrl_jax.sde import SDE, diffuse
from ctrl_jax.types import EpsFn, LossFn, Metrics, Params

NULL = -1  # the label that stands for none


def _null(labels: jax.Array) -> jax.Array:
  return jnp.full_like(labels, NULL)


def make_loss(
  policy: Policy,
  sde: SDE,
  *,
  drop_c: float = 0.1,
  drop_y: float = 0.1,
  t_min: float = 1e-3,
) -> LossFn:
  """The loss (2), for batches {"x": [B, ...], "c": [B], "y": [B]}.

  Samples are diffused as in `objectives.denoising`, to the same times and with
  the same noise for the same keys. Data whose c was not recorded are batches
  with c = -1 everywhere; labels that are -1 stay so, and a batch may mix them.

  Args:
    policy: what is trained; its network must know the null class c = -1. One
      of `policy.full` or `policy.lora` should scale its control by a constant,
      `lambda t: jnp.ones(())`: equation (2) there suits a KL, which this loss
      has not, and a scale that varies with t makes one copy of the weights for
      every example of the batch.
    sde: gives alpha and std.
    drop_c: probability that an example's c is replaced by the null label.
    drop_y: the same of y.
    t_min: smallest diffusion time trained on.

  Raises:
    ValueError: a probability outside [0, 1].
  """
  for name, drop in (("drop_c", drop_c), ("drop_y", drop_y)):
    if not 0 <= drop <= 1:
      raise ValueError(f"{name} must lie in [0, 1], got {drop}")

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    t, eps, x_t = diffuse(keys, batch["x"], sde, t_min=t_min)
    # Splitting a key in two, as `diffuse` does, is folding in 0 and 1.
    coins = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(
      fold_in(keys, 2)
    )
    c = jnp.where(coins[:, 0] < drop_c, NULL, batch["c"])
    y = jnp.where(coins[:, 1] < drop_y, NULL, batch["y"])

    def predict(x, t, c, y):
      # A policy takes a batch at one time; here each example has its own.
      return policy.eps_fn(params, c[None], y[None])(x[None], t)[0]

    loss = jnp.mean((jax.vmap(predict)(x_t, t, c, y) - eps) ** 2)
    return loss, {"loss": loss}

  return loss_fn


def pair_fn(
  policy: Policy,
  params: Params,
  reference_fn: EpsFn,
  c: jax.Array,
  y: jax.Array,
  *,
  strength: float | jax.Array,
  strength_c: float | jax.Array = 1.0,
) -> PairFn:
  """The policy (3) and its reference, for `sampling.rollout`.

  Args:
    policy: as trained by `make_loss` on triples (x, c, y).
    params: its parameters.
    reference_fn: noise prediction of the pre-trained model, of these c.
    c: conditions of the chains [batch].
    y: requested controls [batch].
    strength: of y; 0 is eps(c, 0), 1 the conditional model. May be traced.
    strength_c: of c; unless it is the number 1, a third evaluation of the
      network. May be traced.
  """
  both = policy.eps_fn(params, c, y)
  c_alone = policy.eps_fn(params, c, _null(y))
  neither = policy.eps_fn(params, _null(c), _null(y))
  plain = not isinstance(strength_c, jax.Array) and strength_c == 1

  def pair(x, t):
    start = c_alone(x, t)
    eps = start + strength * (both(x, t) - start)
    if not plain:
      eps += (strength_c - 1) * (start - neither(x, t))
    return Predictions(eps, reference_fn(x, t))

  return pair


def product_pair_fn(
  policy: Policy,
  params: Params,
  reference_fn: EpsFn,
  y: jax.Array,
  *,
  strength: float | jax.Array,
) -> PairFn:
  """The policy (4) and its reference, for data without c; see Bias above.

  Args:
    policy: as trained by `make_loss` on pairs (x, y), with c = -1.
    params: its parameters.
    reference_fn: noise prediction of the pre-trained model, of the chains'
      conditions; a strength of c is its business.
    y: requested controls [batch].
    strength: of y; 0 is the reference. May be traced.
  """
  nothing = _null(y)
  expert = policy.eps_fn(params, nothing, y)
  neither = policy.eps_fn(params, nothing, nothing)

  def pair(x, t):
    reference = reference_fn(x, t)
    change = expert(x, t) - neither(x, t)
    return Predictions(reference + strength * change, reference)

  return pair

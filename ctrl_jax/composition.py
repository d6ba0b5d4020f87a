# SPDX-License-Identifier: Apache-2.0
r"""Composition: strengths, mixed labels and several factors, when sampling.

A policy adds delta(x, t; c, y) = eps_theta - eps_pre to its reference, and what
is added can be weighed, mixed and summed without any training:

    eps = eps_pre(c) + sum_i s_i delta_i                                  (1)
          + (s_c - 1) (eps_pre(c) - eps_pre(null)).                       (2)

Below, E_t stands for the mean over ends x_0 of the reference given x_t = x.
A policy trained to the end for one label and gamma has

    delta(y) = -std grad log E_t[p(y | x_0, c)^gamma],                    (3)

in the limit of small steps. From it, each composition means to sample

    strength s of y       p(y | x, c)^(s gamma)                           (4)
    weights w_y           exp(gamma sum_y w_y log p(y | x, c))            (5)
    factors y_i           prod_i p(y_i | x, c)^(s_i gamma_i)              (6)
    strength s_c of c     (p_pre(x | c) / p_pre(x))^(s_c - 1)             (7)

times p_pre(x | c). All would hold if a logarithm could pass through the mean
of (3); it can where x_0 is all but known, so near the data, but not before:

  (4) is biased in general, for delta is not linear in gamma.
  (5) is exact for weights of sum 1 in a Gaussian problem where y is measured
      linearly: delta is affine in y, and the target that of y = sum_y w_y y.
      Else biased, the less the nearer the labels. A mixture of samples would
      be the arithmetic mean of their laws; this is the geometric one.
  (6) is exact if the factors concern parts of x that are independent given c,
      in the reference and in its noise predictions; factors that pull on the
      same part are biased as in (4).
  (7) is classifier-free guidance (arXiv 2207.12598), biased likewise.

A step's noise can be squeezed in one direction only (`squeeze`), and is by what
squeezes it most, of all that is composed and after its strength or weight.

The certificate. Whatever the composition, its steps are Gaussian like those of
the reference, so path KL, log_ratio and the weights of `paths` are exact.
Gap, effective sample size and resampling are right against any target that is
stated with its own log-likelihood and its own log Z; the bias is in the gap.
For (1): log_likelihood = sum_i s_i log p_i(y_i | x, c), with the gamma_i of
training, and log Z from the same function of pre-trained samples. What no
longer applies is the table log Z(c, y) of the trained labels, and every gap
that was measured with it.
The reference stays eps_pre(c), also under (2): KL and target are against the
model as it was pre-trained, not against one sharpened in c.

Everything nests, for a composition is a `PairFn` or a `Policy` again. A
strength is a number, traced or not, or one for each chain.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import squeeze
from ctrl_jax.policy import Condition, Policy
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.types import EpsFn, Params, RewardFn

Strength = float | jax.Array  # [] or [batch]
Labels = jax.Array | Sequence[int] | Sequence[float]


def combined(
  pair_fns: Sequence[PairFn], strengths: Sequence[Strength]
) -> PairFn:
  """Equation (1): one policy with a strength, or several composed.

  Every policy brings a reference of its own, which should be the same model;
  that of the first is the reference of the whole. Where a policy adds exactly
  0, or its strength is 0, the reference is left as it is, bit for bit.

  Cost: that of all policies; under jit, XLA evaluates a common reference, and
  a frozen network below several heads, once.

  Args:
    pair_fns: of the policies, each for its own y.
    strengths: one for each policy; 1 is the policy as trained.

  Raises:
    ValueError: no policies, or strengths of another number or shape.
  """
  pair_fns, strengths = tuple(pair_fns), tuple(strengths)
  if not pair_fns or len(pair_fns) != len(strengths):
    raise ValueError(f"{len(strengths)} strengths for {len(pair_fns)} policies")

  def pair(x, t):
    found = [pair_fn(x, t) for pair_fn in pair_fns]
    changes = [
      _per_chain(strength, x) * (one.eps - one.reference)
      for strength, one in zip(strengths, found, strict=True)
    ]
    squeezed = [
      one.squeeze.share(strength)
      for strength, one in zip(strengths, found, strict=True)
      if one.squeeze is not None
    ]
    # Zeros add up to zero, so that no control is no KL, exactly.
    return Predictions(
      found[0].reference + sum(changes),
      found[0].reference,
      squeeze=squeeze.strongest(
        jax.tree.map(lambda *a: jnp.stack(a), *squeezed)
      )
      if squeezed
      else None,
    )

  return pair


def condition_strength(
  pair_fn: PairFn, null_fn: EpsFn, strength: Strength
) -> PairFn:
  """Equation (2): adds a strength for c to a policy, beside those for y.

  To be applied last: `combined` around it would weigh this change as well.

  Cost: one evaluation of the pre-trained network more.

  Args:
    pair_fn: of the policy, whose reference is eps_pre(c).
    null_fn: eps_pre of the null condition.
    strength: s_c; 1 changes nothing, 0 takes c out of the pre-trained part.

  Raises:
    ValueError: a strength of another shape.
  """

  def pair(x, t):
    found = pair_fn(x, t)
    change = found.reference - null_fn(x, t)
    # Subtracted first: a strength of 1 then adds zeros.
    return found._replace(
      eps=found.eps + (_per_chain(strength, x) - 1) * change
    )

  return pair


def soft_label_policy(policy: Policy, labels: Labels) -> Policy:
  """Equation (5): the policy whose y is a distribution over labels.

  `pair_fn(control, c, weights)` takes weights [batch, labels]. They need not
  sum to 1, nor be positive: their sum acts as a strength.

  Cost: what depends on the label is evaluated for all labels at once, the rest
  once: with an output head, one evaluation of the network and of the
  classifier, and a head and a classifier's gradient for each label; with
  `policy.lora`, one evaluation of the network for each label and one for the
  reference. Memory grows with the number of labels: name only those needed.
  Batched over labels, a network rounds differently than alone: a new `lora`,
  without control, is the reference up to that.

  Args:
    policy: for one label a chain.
    labels: what the columns of the weights stand for.

  Raises:
    ValueError: labels that are no vector, or weights of another shape.
  """
  labels = _vector(labels)

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    weights = _checked(y, labels)

    def pair(x, t):
      def weighted(label, weight):
        one = policy.pair_fn(control, c, jnp.full(len(weights), label))(x, t)
        change = _per_chain(weight, x) * (one.eps - one.reference)
        return change, one.reference, one.squeeze and one.squeeze.share(weight)

      # vmap leaves alone what the label does not reach, the reference above
      # all: it is computed once, then repeated, and the repeats are unused.
      changes, references, every = jax.vmap(weighted)(labels, weights.T)
      return Predictions(
        references[0] + changes.sum(0),
        references[0],
        squeeze=every and squeeze.strongest(every),
      )

    return pair

  return Policy(policy.init, pair_fn)


def soft_label_reward(reward_fn: RewardFn, labels: Labels) -> RewardFn:
  """sum_y w_y log p(y | x, c) of (5), for its certificate; nats.

  Args:
    reward_fn: log p(y | x, c) of one label a chain.
    labels: as for `soft_label_policy`.

  Returns:
    A reward whose y is weights [batch, labels].

  Raises:
    ValueError: labels that are no vector, or weights of another shape.
  """
  labels = _vector(labels)

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    weights = _checked(y, labels)
    log_p = jax.vmap(
      lambda label: reward_fn(x, c, jnp.full(len(weights), label))
    )(labels)
    return jnp.sum(weights.T * log_p, axis=0)

  return reward


def between(
  first: jax.Array, second: jax.Array, fraction: Strength, *, num_labels: int
) -> Float[Array, "batch labels"]:
  """Weights on the way from one label to another.

  Args:
    first: indices of labels [batch], for fraction 0.
    second: indices of labels [batch], for fraction 1.
    fraction: one number, or one for each chain; may leave [0, 1].
    num_labels: number of columns.
  """
  one_hot = [jax.nn.one_hot(y, num_labels) for y in (first, second)]
  fraction = _per_chain(fraction, one_hot[0])
  return (1 - fraction) * one_hot[0] + fraction * one_hot[1]


def _per_chain(value: Strength, x: jax.Array) -> jax.Array:
  """A strength of the dtype of x, shaped to multiply it."""
  value = jnp.asarray(value, x.dtype)
  if value.shape not in ((), x.shape[:1]):
    raise ValueError(
      f"strengths must be one number or of shape {x.shape[:1]}, one for each "
      f"chain; got {value.shape}"
    )
  return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value


def _vector(labels: Labels) -> jax.Array:
  labels = jnp.asarray(labels)
  if labels.ndim != 1 or not labels.size:
    raise ValueError(f"labels must be a vector, got shape {labels.shape}")
  return labels


def _checked(weights: jax.Array, labels: jax.Array) -> jax.Array:
  if weights.ndim != 2 or weights.shape[1] != labels.size:
    raise ValueError(
      f"weights must be of shape [batch, {labels.size}], one for each label; "
      f"got {weights.shape}"
    )
  return weights

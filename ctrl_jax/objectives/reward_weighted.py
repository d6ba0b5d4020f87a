# SPDX-License-Identifier: Apache-2.0
r"""Reward-weighted maximum likelihood (RGDM; Zhang and Xu, arXiv 2304.07132).

The target is the pre-trained chain with every path weighed by p(y | x_K)^gamma.
Maximum likelihood of weighed paths of a behaviour b,

    L(theta) = -E_b[(w / Z) log P_theta(path)],                           (1)
    w = p(y | x_K, c)^gamma dP_pre/dP_b,

is KL(P* || P_theta) up to a constant: the divergence that `ctrl` and
`path_consistency` minimise, the other way round. It covers modes rather than
avoid what the target avoids. b is

- the pre-trained model ("pretrained"): w = p(y | x_K, c)^gamma, no ratio of
  densities, but only as many useful paths as Z allows;
- the policy itself ("policy"): ever more useful paths as it learns. Its score
  has mean zero on its own paths, so w / Z - 1 may stand for w / Z: a gradient
  whose variance vanishes at the optimum. That gradient is
  `path_consistency`'s but for e^r - 1 in place of the residual r = log w - log
  Z: both agree near the optimum, and far from it this one listens to a few
  lucky paths;
- the target itself ("payoff"), b = P* and w = Z: paths drawn beforehand, in
  place of weighed, as RGDM has it; see `payoff`.

RGDM's target is p ~ exp(reward / temperature), of a maximum-entropy policy;
this is RGDM with p_pre as base measure and the temperature 1 / gamma.

Weights w / Z are cut at `max_weight`, a bias that fades as they approach 1.

Choose it when the reward has no gradient and modes must not be lost, and the
target is not rare: with gamma = 10 hardly a path of a batch has any weight, and
"payoff" is what is left.
"""

import jax
import jax.numpy as jnp

from ctrl_jax import learner, paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import payoff, progress
from ctrl_jax.policy import Policy
from ctrl_jax.sde import SDE
from ctrl_jax.types import LossFn, Metrics, Params, RewardFn

# Shares of the control.
BEHAVIOURS = {"policy": 1.0, "pretrained": 0.0, "payoff": 0.0}


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  behaviour: str = "policy",
  max_weight: float = 20.0,
  sde: SDE | None = None,
) -> LossFn:
  """The loss (1) in nats; other arguments and errors as `ctrl.make_loss`.

  Args:
    policy: what is trained.
    reward_fn: log p(y | x, c); need not be differentiable.
    kernel: the sampler's steps.
    gamma: guidance strength; nats against nats.
    sample_shape: shape of one sample.
    behaviour: whose paths are weighed, "policy" or "pretrained". Of the latter
      the metrics `objective` and `gap` are those of the untrained model, and
      `forward_kl` tells of progress: KL(P* || P_theta) in nats. Or "payoff":
      paths are drawn; batches and metrics are those of `payoff.make_loss`.
    max_weight: the largest w / Z; draws have none.
    sde: of "payoff" alone, as of `payoff.make_loss`.

  Raises:
    ValueError: as `ctrl.make_loss`, an unknown behaviour, a largest weight that
      is not above 0, or an sde where nothing is drawn.
  """
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)
  if behaviour not in BEHAVIOURS:
    raise ValueError(
      f"behaviour is {behaviour!r}: use one of {', '.join(BEHAVIOURS)}"
    )
  if not max_weight > 0:
    raise ValueError(f"max_weight must be positive, got {max_weight}")
  if behaviour == "payoff":
    return payoff.make_loss(
      *(policy, reward_fn, kernel),
      gamma=gamma,
      sample_shape=sample_shape,
      sde=sde,
    )
  if sde is not None:
    raise ValueError(
      f"a denoising likelihood is that of end points which are drawn, and "
      f"behaviour is {behaviour!r}: use payoff"
    )

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y, log_evidence = batch["c"], batch["y"], batch["log_evidence"]
    share = jnp.full(len(y), BEHAVIOURS[behaviour])
    chain, path = transitions.collect(
      policy,
      params,
      keys,
      kernel,
      c,
      y,
      sample_shape=sample_shape,
      share=None if behaviour == "policy" else share,
    )
    log_likelihood = reward_fn(chain.x, c, y)
    log_w = paths.log_weights(chain, log_likelihood, gamma=gamma)
    log_w = jax.lax.stop_gradient(log_w)
    normalised = log_w - log_evidence
    weight = jnp.exp(jnp.minimum(normalised, jnp.log(max_weight)))
    pair_fn = policy.pair_fn(params, c, y)
    log_ratio = transitions.compare(path, kernel, pair_fn).log_ratio
    baseline = 1.0 if behaviour == "policy" else 0.0
    loss = -jnp.mean((weight - baseline) * log_ratio)
    found = progress.metrics(log_w, chain.kl, log_likelihood, log_evidence)
    forward_kl = jnp.mean(weight * (normalised - log_ratio))
    return loss, {**found, "forward_kl": jax.lax.stop_gradient(forward_kl)}

  return loss_fn


# As a Learner: (policy, reward_fn, kernel, optimizer, **settings).
make_learner = learner.from_loss(make_loss)

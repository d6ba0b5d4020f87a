# SPDX-License-Identifier: Apache-2.0
"""How a model learns that tells itself what it sees; `self_guided` says what.

An update lets the averaged model look at a batch, moves the means by which its
features are standardised and its clusters are told, and descends along (1) and
(2) of `self_guided` together: neither has a parameter of the other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ctrl_jax import learner, self_guided, self_labels
from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.objectives import denoising
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sampling import fold_in
from ctrl_jax.types import Metrics, Params

DROP = 0.15  # probability that an example's embedding is left out
LOOKS = 2  # at an example in an update, each under noise of its own
_PACE = 0.01  # by which means follow a batch


def make_learner(
  model: Pretrained,
  optimizer: optax.GradientTransformation,
  *,
  begin: int,
  t_min: float = 1e-3,
  ema_decay: float = 0.999,
  axis_name: str | None = "batch",
) -> Learner:
  """Updates by (1) and (2), for batches {"x": [B, ...]}.

  Args:
    model: of `conditioned`.
    optimizer: of all parameters but the moments.
    begin: the first update in which examples are told what they look like.
    t_min: smallest diffusion time trained on.
    ema_decay: of the average, which looks; see `learner.averaged`.
    axis_name: mapped axis of devices; None: there is none.
  """

  def told_fn(
    params: Params, x: jax.Array, t: jax.Array, e: jax.Array
  ) -> jax.Array:
    """The noise predicted where e stands for the condition."""
    return model.network(params, x, t, None, e @ params["map"]).eps

  losses_fn = denoising.make_losses(
    told_fn, model.sde, t_min=t_min, weight_fn=model.loss_weight
  )

  def mean(tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def init(params: Params) -> TrainState:
    trained = {k: v for k, v in params.items() if k != "moments"}
    return learner.begin(params, optimizer.init(trained))

  def look(params: Params, keys: jax.Array, x: jax.Array) -> jax.Array:
    """h of every example and look, [B, LOOKS, d]."""
    shape = (LOOKS, *x.shape[1:])
    eps = jax.vmap(lambda key: jax.random.normal(key, shape))(fold_in(keys, 2))
    seen = model.with_params(params)
    views = [
      self_labels.look_each(seen, x, eps[:, i], noise=self_guided.NOISE)
      for i in range(LOOKS)
    ]
    return jnp.stack(views, 1)

  def follow(moments: Params, found: Params, pace: jax.Array) -> Params:
    """The moving means, of which those of what is found have moved."""
    before = {name: moments[name] for name in found}
    return moments | optax.incremental_update(mean(found), before, pace)

  def update(
    state: TrainState, keys: jax.Array, batch: Any
  ) -> tuple[TrainState, Metrics]:
    x, steady = batch["x"], state.ema_params
    h = look(steady, keys, x)
    pace = jnp.maximum(_PACE, 1 / (1.0 + state.step))
    moments = follow(
      steady["moments"],
      {"mean": h.mean((0, 1)), "square": (h**2).mean((0, 1))},
      pace,
    )
    h = self_guided.standardised(moments, h)
    e, cosines = self_guided.projected(steady, h[:, 0], model.num_conditions)
    p = jax.nn.softmax(cosines / self_labels.TEMPERATURE)
    moments = follow(
      moments, {"told": p.T @ e / len(x), "share": p.mean(0)}, pace
    )
    coins = jax.vmap(jax.random.uniform)(fold_in(keys, 3))
    e *= ((coins >= DROP) & (state.step >= begin))[:, None]

    def loss_fn(trained: Params) -> tuple[jax.Array, Metrics]:
      loss = losses_fn(trained, keys, {"x": x, "c": e}).mean()
      cosines = self_guided.projected(trained, h, model.num_conditions)[1]
      apart = self_labels.loss(cosines, axis_name=axis_name)
      return loss + apart, {"loss": loss, "clusters": apart}

    trained = {k: v for k, v in state.params.items() if k != "moments"}
    gradient, metrics = mean(jax.grad(loss_fn, has_aux=True)(trained))
    trained, opt_state = learner.descend(
      optimizer, gradient, trained, state.opt_state, state.pace
    )
    before = {name: steady[name] for name in trained}
    averaged = learner.averaged(
      before, trained, step=state.step, decay=ema_decay
    )
    return TrainState(
      state.step + 1,
      {**trained, "moments": moments},
      opt_state,
      {**averaged, "moments": moments},
      state.pace,
    ), metrics

  return Learner(init, update)

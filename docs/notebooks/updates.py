# %% [markdown]
# # Three policy updates on one problem
#
# `ctrl_jax.tune` trains by CTRL, back-propagation through the sampler, unless
# it is told another `objective`. Which is nearest for the same work? One model,
# one reward, one sampler and one head; only the update differs.
#
# The model is two rings of Gaussians, whose noise prediction has a closed form,
# and the reward says which third of the plane a point lies in.

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ctrl_jax
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.objectives import ctrl, path_consistency, ppo
from ctrl_jax.policy import Output

sde = ctrl_jax.VP()
angles = 2 * np.pi * np.arange(6) / 6
circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
rings = GaussianMixture(
  weights=np.full((1, 12), 1 / 12),
  means=np.concatenate([1.2 * circle, 2.6 * circle]),
  covariances=np.tile(0.06 * np.eye(2), (12, 1, 1)),
)
model = ctrl_jax.Pretrained(
  network=lambda params, x, t, c, control: Output(rings.eps(x, t, c, sde)),
  params={},
  sde=sde,
  sample_shape=(2,),
)
parts = 2 * np.pi * np.arange(3) / 3
directions = jnp.asarray(np.stack([np.cos(parts), np.sin(parts)]))


def reward(x, c, y):
  """log p(y | x), nats: the nearer to the direction of y, the likelier."""
  log_p = jax.nn.log_softmax(2 * x @ directions)
  return jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


# %% [markdown]
# What costs is the frozen network. An update evaluates it so often for every
# step of a chain (a derivative counts as two):
#
# | update | evaluations | the reward's derivative | learns from |
# | --- | --- | --- | --- |
# | CTRL | 4 | needed | where a sample would move |
# | path consistency | 3 | not needed | log w of every path against log Z |
# | PPO | 9 | not needed | clipped ratios, four steps on the same paths |
#
# The budget is 720 for each, at the rates that the mixture of
# [comparison.md](../comparison.md) was found to want.

# %%
ways = {
  "CTRL": dict(objective=ctrl.make_learner, rate=3e-2, cost=4),
  "path consistency": dict(
    objective=path_consistency.make_learner, rate=3e-2, cost=3
  ),
  "PPO": dict(
    objective=functools.partial(ppo.make_learner, group=16),
    rate=1e-2,
    cost=9,
    group=16,
  ),
}
budget, keys = 720, jax.random.split(jax.random.key(0), 3)
curves, gaps, tuned = {}, {}, {}
for name, way in ways.items():
  curves[name], gaps[name], started = [], [], time.perf_counter()
  for key in keys:
    seen = []
    tuned[name] = ctrl_jax.tune(
      model,
      reward,
      num_controls=3,
      objective=way["objective"],
      group=way.get("group", 1),
      learning_rate=way["rate"],
      num_updates=budget // way["cost"],
      num_steps=25,
      key=key,
      progress=lambda done, _, told, seen=seen: seen.append(
        (done, told["gap"])
      ),
    )
    found = tuned[name].certificate(jax.random.key(9), num=8192)
    gaps[name].append(found.certificate.gap.mean)
    curves[name].append(seen)
  mean, error = np.mean(gaps[name]), np.std(gaps[name], ddof=1) / 3**0.5
  took = (time.perf_counter() - started) / len(keys)
  print(
    f"{name:17s} {budget // way['cost']:4d} updates, {took:4.1f} s, "
    f"gap {mean:.4f} ± {error:.4f} nats of {found.before:.2f}"
  )

# %% [markdown]
# ± is one standard error over three keys of the training; all of them are
# judged by the same noise. A gap is over paths, of all three y, and includes
# what 25 steps of this sampler cannot do. The curves are of each window of
# updates, before the average of the weights that is kept, so noisier.

# %%
colors = {"CTRL": "#d55e00", "path consistency": "#1f5f99", "PPO": "#3a923a"}
figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
for name, runs in curves.items():
  for number, seen in enumerate(runs):
    done, gap = np.array(seen).T
    axes[0].semilogy(
      done * ways[name]["cost"],
      np.maximum(gap, 1e-4),
      color=colors[name],
      linewidth=1,
      label=None if number else name,
    )
axes[0].set(xlabel="evaluations of a step", title="gap in training (nats)")
axes[0].legend(fontsize=7)
for axis, (name, found) in zip(axes[1:], tuned.items(), strict=True):
  for y, color in enumerate(("#d55e00", "#1f5f99", "#3a923a")):
    x = found.sample(jax.random.key(2), y=y, num=700)
    axis.scatter(*x.T, s=1, alpha=0.4, color=color)
  axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-4, 4), ylim=(-4, 4))
  axis.set_title(f"{name}: gap {np.mean(gaps[name]):.3f} nats")
figure.tight_layout()
figure.savefig("notebook-updates.png", dpi=80)

# %% [markdown]
# # A sampler and a policy update of your own
#
# `ctrl_jax.tune` takes both as arguments: neither is in a list somewhere, and
# nothing has to be installed again. Here are one of each, forty lines in all,
# on a problem whose answer is known: a mixture of two Gaussians in the plane,
# and a reward that prefers one of them.

# %%
import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import ctrl_jax
from ctrl_jax import kernels, learner, paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.objectives import ctrl, progress
from ctrl_jax.policy import Output

sde = ctrl_jax.VP()
mixture = GaussianMixture(
  weights=np.array([[0.8, 0.2]]),
  means=np.array([[-1.5, 0.0], [1.5, 0.0]]),
  covariances=np.tile(0.1 * np.eye(2), (2, 1, 1)),
)
model = ctrl_jax.Pretrained(
  network=lambda params, x, t, c, control: Output(mixture.eps(x, t, c, sde)),
  params={},
  sde=sde,
  sample_shape=(2,),
)
reward = lambda x, c, y: jax.nn.log_sigmoid(2 * (2 * y - 1) * x[:, 0])  # nats

# %% [markdown]
# ## A sampler is four arrays
#
# A step is `x' = a x + b eps(x, t) + s z`, so a sampler is the times and the
# a, b and s of every step. Where the process has the levels (alpha, std) and
# then (alpha', std'), any s between 0 and std' keeps the model's law if
#
#     a = alpha' / alpha,    b = sqrt(std'^2 - s^2) - a std
#
# as DDIM says. Its own s is a share `eta` of `std'/std sqrt(std^2 - a^-2
# std'^2)`. Ours has the whole of it at the noisy end and less and less of it
# towards the data.


# %%
def fading(grid):
  """DDIM whose noise fades: eta = 1 at t = 1, and sqrt(t) before."""
  t, after = grid[:-1], grid[1:]
  a = sde.alpha(after) / sde.alpha(t)
  std, std_after = sde.std(t), sde.std(after)
  s = np.sqrt(t) * std_after / std * np.sqrt(std**2 - (std_after / a) ** 2)
  b = np.sqrt(std_after**2 - s**2) - a * std
  return Kernel(times=t, x_coef=a, eps_coef=b, std=s)


grid = kernels.time_grid(25, power=2.0)
samplers = {
  "DDIM(1)": kernels.ddim(sde, grid, eta=1.0),
  "fading noise": fading(grid),
}

# %% [markdown]
# ## A policy update is a loss
#
# `loss(params, keys, batch)` draws chains, judges them and returns a mean and
# what to log. Ours is the preference loss of Diffusion-DPO (arXiv
# 2311.12908), with the reward in place of a person and over whole paths. Two
# chains of one y have rewards r and r'. A judge that chose by `gamma r` would
# prefer the first with probability `sigmoid(gamma (r - r'))`; the policy says
# `sigmoid(h - h')`, where `h = log P_theta(path) / P_pre(path)`. The two are
# the same for every pair only if `h = gamma r - log Z`: if the policy is the
# target.
#
# * `transitions.collect` draws chains of the policy, through which no
#   gradient passes, and keeps their paths.
# * `transitions.compare` computes h of given paths, and its gradient.
# * `paths.log_weights` is log w, whose mean is the J of every certificate.


# %%
def make_loss(policy, reward_fn, kernel, *, gamma, sample_shape, group):
  """Cross-entropy of preferences between all chains of a group, nats."""

  def pairs(values):
    values = values.reshape(-1, group)
    return values[:, :, None] - values[:, None, :]

  def loss_fn(params, keys, batch):
    c, y = batch["c"], batch["y"]
    chain, path = transitions.collect(
      policy, params, keys, kernel, c, y, sample_shape=sample_shape
    )
    log_p = reward_fn(chain.x, c, y)
    pair_fn = policy.pair_fn(params, c, y)
    h = transitions.compare(path, kernel, pair_fn).step_control.sum(0)
    loss = optax.losses.sigmoid_binary_cross_entropy(
      pairs(h), jax.nn.sigmoid(gamma * pairs(log_p))
    )
    log_w = paths.log_weights(chain, log_p, gamma=gamma)
    return loss.mean(), progress.metrics(
      log_w, chain.kl, log_p, batch["log_evidence"]
    )

  return loss_fn


preference = functools.partial(learner.from_loss(make_loss), group=16)

# %% [markdown]
# ## Both at work
#
# `group=16` has `tune` put sixteen chains of one y side by side. The
# certificate is the same for any sampler and any update, for it asks of both
# no more than the paths.

# %%
updates = {
  "preferences": {"objective": preference, "group": 16},
  "CTRL": {"objective": ctrl.make_learner},
}
tuned, gaps = {}, {}
for sampler, kernel in samplers.items():
  for update, settings in updates.items():
    tuned[sampler, update] = ctrl_jax.tune(
      model,
      reward,
      num_controls=2,
      gamma=2.0,
      kernel=kernel,
      num_updates=300,
      learning_rate=3e-2,
      key=jax.random.key(0),
      progress=False,
      **settings,
    )
    found = tuned[sampler, update].certificate(jax.random.key(1), num=8192)
    gaps[sampler, update] = found.certificate.gap.mean
    print(f"{sampler:12s} {update:11s} {found}")

# %% [markdown]
# Of the pre-trained model the gap is 2 nats. Preferences between chains leave
# half of what CTRL leaves after as many updates: the modes lie apart, and the
# gradient of the reward does not say that a chain might have ended in the
# other one. Here are the samplers, and samples of ours:

# %%
colors = ("#d55e00", "#1f5f99")
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
for axis, color, (sampler, kernel) in zip(
  axes[1:], colors, samplers.items(), strict=True
):
  axes[0].plot(kernel.times, kernel.std, ".-", color=color, label=sampler)
  for y, shade in enumerate(colors):
    x = tuned[sampler, "preferences"].sample(jax.random.key(2), y=y, num=500)
    axis.scatter(*x.T, s=2, alpha=0.5, color=shade, label=f"y = {y}")
  axis.set(aspect="equal", xlim=(-3, 3), ylim=(-2, 2))
  axis.set_title(f"{sampler}: gap {gaps[sampler, 'preferences']:.3f} nats")
  axis.legend(fontsize=7)
axes[0].set(xlabel="diffusion time t", title="noise of a step, s")
axes[0].legend(fontsize=7)
figure.tight_layout()
figure.savefig("notebook-extending.png", dpi=80)

# %% [markdown]
# What else is a plain argument: the network and its process (`Pretrained`),
# the reward, the sizes of the head. Where such a part goes when all
# experiments are to have it: [design.md](../design.md#where-a-new-part-goes).

# %% [markdown]
# # What the gap means, seen
#
# Eight Gaussians in a ring are a diffusion model that needs no training: its
# noise prediction has a closed form. A classifier of three labels says which
# part of the ring a point lies in, and `ctrl_jax.tune` adds that label as a
# control. The exact target can be drawn, so the number can be held against the
# eye.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ctrl_jax
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Output

sde = ctrl_jax.VP()
angles = 2 * np.pi * np.arange(8) / 8
ring = GaussianMixture(
  weights=np.full((1, 8), 1 / 8),
  means=2 * np.stack([np.cos(angles), np.sin(angles)], axis=1),
  covariances=np.tile(0.16 * np.eye(2), (8, 1, 1)),
)
model = ctrl_jax.Pretrained(
  network=lambda params, x, t, c, control: Output(ring.eps(x, t, c, sde)),
  params={},
  sde=sde,
  sample_shape=(2,),
)
parts = 2 * np.pi * np.arange(3) / 3
directions = jnp.asarray(np.stack([np.cos(parts), np.sin(parts)]))


def reward(x, c, y):
  """log p(y | x), nats: the nearer to the direction of y, the likelier."""
  log_p = jax.nn.log_softmax(1.5 * x @ directions)
  return jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


# %% [markdown]
# One is trained by 400 updates, one by 8, which is much too early to stop. Each
# says how far it is from the target: over all paths, which is at least as far
# as their ends are.

# %%
found = {}
for name, updates in (("stopped early", 8), ("tuned", 400)):
  tuned = ctrl_jax.tune(
    model, reward, num_controls=3, num_updates=updates, key=jax.random.key(0)
  )
  found[name] = tuned, tuned.certificate(jax.random.key(1))
  print(f"{name}: {found[name][1]}")

# %% [markdown]
# The exact target: points of the ring, drawn again with probability p(y | x).

# %%
asked, num = 0, 3000
rng = np.random.default_rng(0)
points = ring.means[rng.integers(8, size=60_000)]
points = points + 0.4 * rng.standard_normal(points.shape)
labels = jnp.full(len(points), asked)
weight = np.exp(reward(jnp.asarray(points), None, labels))
exact = points[rng.choice(len(points), num, p=weight / weight.sum())]

# %% [markdown]
# What can be counted: the share of every one of the eight modes. The last
# number is the KL of these shares in nats. The gap of a label bounds it from
# above, and what is printed is the mean over the three.


# %%
def shares(x):
  """Of the modes of a ring among points, [8]."""
  return np.asarray(ring.responsibilities(jnp.asarray(x), None)).mean(0)


panels = {"pre-trained": points[:num], "exact target": exact}
for name, (tuned, _) in found.items():
  panels[name] = tuned.sample(jax.random.key(2), y=asked, num=num)
for name, x in panels.items():
  apart = np.sum(shares(x) * np.log(shares(x) / shares(exact)))
  print(f"{name:14s}", np.round(100 * shares(x)).astype(int), f"{apart:.4f}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.3))
for axis, (name, x) in zip(axes, panels.items(), strict=True):
  axis.scatter(*x.T, s=1, alpha=0.4, color="#1f5f99")
  gap = found[name][1].certificate.gap.mean if name in found else None
  axis.set_title(name if gap is None else f"{name}: gap {gap:.3f} nats")
  axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
figure.tight_layout()
figure.savefig("notebook-gap.png", dpi=100)

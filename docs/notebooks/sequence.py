# %% [markdown]
# # A sequence, and a control that is a number
#
# The model makes random walks of 24 steps. What is asked of it is where a walk
# ends, a real number: nothing is cut in bins, and any number between those that
# were trained can be asked for. Both laws are Gaussian, so what is right is
# known.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import ctrl_jax
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Output

length, noise = 24, 0.2
steps = np.tril(np.ones((length, length))) / length**0.5  # sums of what came
walks = GaussianMixture(
  weights=np.ones((1, 1)),
  means=np.zeros((1, length)),
  covariances=(steps @ steps.T)[None],
)
sde = ctrl_jax.VP()
model = ctrl_jax.Pretrained(
  network=lambda params, x, t, c, control: Output(walks.eps(x, t, c, sde)),
  params={},
  sde=sde,
  sample_shape=(length,),
)


def reward(x, c, y):
  """log p(y | x), nats: y is the end of the walk, seen with some noise."""
  return -0.5 * ((y - x[:, -1]) / noise) ** 2 - np.log(
    noise * (2 * np.pi) ** 0.5
  )


# %% [markdown]
# `controls` are the numbers that are trained, and no labels.

# %%
tuned = ctrl_jax.tune(
  model,
  reward,
  controls=np.linspace(-2, 2, 9),
  num_updates=300,
  key=jax.random.key(0),
)
print(tuned.certificate(jax.random.key(1)))

# %% [markdown]
# Of a walk that ends with variance 1 and is seen with variance 0.04, the end
# has the mean y / 1.04 and the deviation (0.04 / 1.04)^(1/2) = 0.196. 0.7 was
# not trained.

# %%
asked = (-1.5, 0.0, 0.7)
found = {y: tuned.sample(jax.random.key(2), y=y, num=2000) for y in asked}
for y, x in found.items():
  print(
    f"y = {y:4.1f}: ends at {x[:, -1].mean():6.3f} ± {x[:, -1].std():.3f}, "
    f"exact {y / 1.04:6.3f} ± 0.196"
  )

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3), sharey=True)
for axis, (y, x) in zip(axes, found.items(), strict=True):
  axis.plot(x[:40].T, linewidth=0.6, color="#1f5f99")
  axis.axhline(y, linestyle="--", linewidth=1, color="#d55e00")
  axis.set_title(f"y = {y}")
  axis.set_xlabel("step")
figure.tight_layout()
figure.savefig("notebook-sequence.png", dpi=100)

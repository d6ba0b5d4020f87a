# %% [markdown]
# # A controlled model in one step
#
# A tuned sampler takes as many evaluations of its network as it has steps.
# Diff-Instruct makes of it a generator, x = G(z; y), that takes one, for every
# y. Here both are of two coordinates, so that what is lost can be seen; what it
# is worth on images stands in [distillation.md](../distillation.md).

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ctrl_jax
from ctrl_jax import distillation, generators, sampling, students
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
# First the control, in 50 steps.

# %%
tuned = ctrl_jax.tune(
  model, reward, num_controls=3, num_updates=300, key=jax.random.key(0)
)
print(tuned.certificate(jax.random.key(1)))

# %% [markdown]
# The generator is a network that knows y, and begins as the pre-trained model;
# so does an auxiliary one, which learns the score of the generator's own
# samples. The generator moves along the difference between that score and the
# policy's. The auxiliary network takes two steps for each of the generator's,
# at twice the rate, and neither has momentum, with which the two would circle
# each other.

# %%
policy, kernel = tuned.sampler.policy, tuned.kernel
student = students.make(model, num_controls=3)
times = generators.acting(kernel)
steps = generators.chain(sde, times, 1)
updates, batch = 1500, 256


def optimizer(rate, count):
  decayed = optax.warmup_cosine_decay_schedule(
    0.0, rate, count // 20, count, end_value=rate / 50
  )
  return optax.chain(
    optax.clip_by_global_norm(10.0), optax.adam(decayed, b1=0.0, b2=0.99)
  )


learner = distillation.make_learner(
  student,
  lambda c, y: policy.eps_fn(tuned.params, c, y),
  sde,
  steps,
  times,
  {
    "generator": optimizer(1e-3, updates),
    "auxiliary": optimizer(2e-3, 2 * updates),
  },
  sample_shape=(2,),
  warmup=100,
  axis_name=None,
)
start = student.init(jax.random.key(1))


@jax.jit
def train(state):
  def update(state, step):
    key = jax.random.fold_in(jax.random.key(2), step)
    labels = {"c": None, "y": jnp.arange(batch) % 3}
    return learner.update(state, jax.random.split(key, batch), labels)

  return jax.lax.scan(update, state, jnp.arange(updates))


state, told = train(learner.init({"generator": start, "auxiliary": start}))
generator = state.ema_params["generator"]

# %% [markdown]
# Beside it the policy at all of its steps, and the exact target.
# What is counted are the shares of the eight modes; the last number is their KL
# from the target's, in nats. It knows nothing of where in a mode samples lie:
# a generator has no certificate, and the eye finds the folds that its samples
# lie in.

# %%
asked, num = 0, 4000
y = jnp.full(num, asked)
keys = jax.random.split(jax.random.key(3), num)


def drawn(function):
  """Samples [num, 2], and samples a second once it is compiled."""
  function = jax.jit(function)
  function(keys).block_until_ready()
  began = time.perf_counter()
  x = function(keys).block_until_ready()
  return np.asarray(x), num / (time.perf_counter() - began)


def by_policy(predict, kernel):
  def draw(keys):
    noise = sampling.initial_noise(keys, (2,), kernel)
    return sampling.rollout(keys, noise, kernel, predict).x

  return draw


def by_generator(keys):
  eps_fn = student.eps_fn(generator, None, y)
  return generators.generate(eps_fn, keys, steps, sde, (2,))[-1]


def shares(x):
  """Of the modes of the ring among points, [8]."""
  return np.asarray(ring.responsibilities(jnp.asarray(x), None)).mean(0)


rng = np.random.default_rng(0)
points = ring.means[rng.integers(8, size=60_000)]
points = points + 0.4 * rng.standard_normal(points.shape)
weight = np.exp(reward(jnp.asarray(points), None, jnp.full(len(points), asked)))
exact = points[rng.choice(len(points), num, p=weight / weight.sum())]
panels = {
  "exact target": (exact, None),
  "policy, 50 steps": drawn(
    by_policy(policy.pair_fn(tuned.params, None, y), kernel)
  ),
  "generator, 1 step": drawn(by_generator),
}
for name, (x, rate) in panels.items():
  apart = np.sum(shares(x) * np.log(shares(x) / shares(exact)))
  fast = "" if rate is None else f"  {rate:9,.0f} samples/s"
  print(
    f"{name:17s}", np.round(100 * shares(x)).astype(int), f"{apart:.4f}", fast
  )

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
for axis, (name, (x, _)) in zip(axes, panels.items(), strict=True):
  axis.scatter(*x[:3000].T, s=1, alpha=0.4, color="#1f5f99")
  axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
  axis.set_title(name)
figure.tight_layout()
figure.savefig("notebook-onestep.png", dpi=80)

# SPDX-License-Identifier: Apache-2.0
r"""Adds a control y to a diffusion model, and says how exactly, in nats.

Three nouns. A `Pretrained` is the model p_pre(x | c) that somebody trained: a
network that predicts noise, its parameters, its forward process (`VP`, `VE` or
`Flow`); `diffusers.load` makes one of a folder. A reward is log p(y | x, c) in
nats, any function of (x, c, y) that JAX can call and, for the default
objective, differentiate; `fit_labels` makes one of examples, `fit_self_labels`
of data that nobody labelled. A `Controlled` is
what `tune` makes of the two: a sampler that knows how far it is from its target

    p(y | x, c)^gamma p_pre(x | c) / Z(c, y)

For instance:

    import ctrl_jax, jax
    from ctrl_jax.policy import Output

    def network(params, x, t, c, control):  # here the exact one of N(0, I)
      return Output(ctrl_jax.VP().std(t) * x)

    def reward(x, c, y):  # y = 1 asks for a positive first coordinate
      return jax.nn.log_sigmoid((2 * y - 1) * 4 * x[:, 0])

    model = ctrl_jax.Pretrained(
      network=network, params={}, sde=ctrl_jax.VP(), sample_shape=(2,)
    )
    tuned = ctrl_jax.tune(model, reward, key=jax.random.key(0), num_controls=2)
    x = tuned.sample(jax.random.key(1), y=1, num=64)
    print(tuned.certificate(jax.random.key(2)))  # gap 0.012 ± 0.002 nats, ...
    tuned.save("tuned")  # and ctrl_jax.load("tuned", model, reward)

The modules hold the parts, for whoever wants other ones. What is named here is
imported when it is first used.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ctrl_jax import diffusers
  from ctrl_jax.controlled import Controlled, load
  from ctrl_jax.flow import Flow
  from ctrl_jax.labels import fit as fit_labels
  from ctrl_jax.pretrained import Pretrained
  from ctrl_jax.sde import VE, VP
  from ctrl_jax.self_fitted import fit as fit_self_labels
  from ctrl_jax.tuning import tune

try:
  __version__ = importlib.metadata.version("ctrl-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout on the path
  __version__ = "unknown"
__all__ = [
  "VE",
  "VP",
  "Controlled",
  "Flow",
  "Pretrained",
  "diffusers",
  "fit_labels",
  "fit_self_labels",
  "load",
  "tune",
]

_HOMES = {  # modules, and the names there; None is the module itself
  "Controlled": ("controlled", "Controlled"),
  "Flow": ("flow", "Flow"),
  "Pretrained": ("pretrained", "Pretrained"),
  "VE": ("sde", "VE"),
  "VP": ("sde", "VP"),
  "diffusers": ("diffusers", None),
  "fit_labels": ("labels", "fit"),
  "fit_self_labels": ("self_fitted", "fit"),
  "load": ("controlled", "load"),
  "tune": ("tuning", "tune"),
}


def __getattr__(name: str) -> Any:
  """The module's names, from where they are defined."""
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, there = _HOMES[name]
  found = importlib.import_module(f"{__name__}.{module}")
  return found if there is None else getattr(found, there)


def __dir__() -> list[str]:
  """With the names that are yet to be imported."""
  return sorted({*globals(), *__all__})

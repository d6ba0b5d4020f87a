# SPDX-License-Identifier: Apache-2.0
"""A real-valued control of a Gaussian: every figure has a closed form.

  python -m experiments.run --config=experiments/configs/gaussian.py[:VARIANT]

The control y is any real number; training draws it from a range, and samples
for five of its values are held against the exact target of the 500-step chain.
Expected of any problem.seed, in a minute on two CPU cores: a gap below 0.001
nat. Steps that are shifted and not narrowed, by control.squeeze=False, leave
the closed-form floor that the report names.

Variants: gamma3 and gamma10, the target sharpened; d16, sixteen dimensions
and 200 steps; flow, whose forward process is that of flow matching; smoke, all
of it at toy sizes.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant; "" has two dimensions and gamma = 1.

  Raises:
    ValueError: an unknown variant.
  """
  config = base.gaussian_config()
  config.experiment, config.variant = "gaussian", variant
  config.kernel.num_steps = 500
  config.control.update(
    num_steps=250,
    batch_size=128,
    head=(64, 64),
    head_learning_rate=2e-2,
    clip_norm=1.0,
  )
  config.evaluate.update(num_samples=20000, num_reference=40000, chunk=4000)
  changes = {
    "": lambda: None,
    "gamma3": lambda: config.reward.update(gamma=3.0),
    "gamma10": lambda: config.reward.update(gamma=10.0),
    "d16": lambda: _d16(config),
    "flow": lambda: base.use_flow(config),
    "smoke": lambda: _smoke(config),
  }
  base.choose(changes, variant, "gaussian.py")
  return config


def _d16(config: ConfigDict) -> None:
  config.problem.dims = 16
  config.kernel.num_steps = 200  # larger matrices; still near to its floor


def _smoke(config: ConfigDict) -> None:
  config.kernel.num_steps = 10
  config.control.update(num_steps=20, batch_size=16, head=(8,), log_every=5)
  config.evaluate.update(num_samples=500, num_reference=1000, chunk=500)

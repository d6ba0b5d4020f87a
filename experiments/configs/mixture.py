# SPDX-License-Identifier: Apache-2.0
"""A discrete control of a Gaussian mixture, held against exact samples.

  python -m experiments.run --config=experiments/configs/mixture.py[:VARIANT]

Eight modes in two dimensions and a softmax classifier of three labels, drawn
from problem.seed. The 200,000 paths of the pre-trained chain, weighed by the
exact classifier, are the target. The control is trained by path consistency,
which keeps modes that lie apart in proportion. Measured on problem seeds 0 to
4, in half a minute on two CPU cores: a gap of 0.003 to 0.023 nat, and samples
1.1 to 1.5 times as far from the target as exact ones.

Variants: gamma10, a sharp and rare target; two_factors, y = (y1, y2) whose
classifiers need not share a data set; three_conditions, with a condition c
that the pre-trained model knows; flow, whose forward process is that of flow
matching; compare, every policy update and method of guidance beside it
(docs/comparison.md); smoke, all of it at toy sizes.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant; "" has gamma = 1 and no condition.

  Raises:
    ValueError: an unknown variant.
  """
  config = base.mixture_config()
  config.experiment, config.variant = "mixture", variant
  config.kernel.num_steps = 50
  config.control.update(
    objective="path_consistency",
    num_steps=400,
    batch_size=256,
    clip_norm=1.0,
  )
  config.evaluate.update(num_samples=12000, num_reference=200000, chunk=4000)
  changes = {
    "": lambda: None,
    "gamma10": lambda: config.reward.update(gamma=10.0),
    "two_factors": lambda: config.problem.update(second_factor=2),
    "three_conditions": lambda: config.problem.update(num_conditions=3),
    "flow": lambda: base.use_flow(config),
    "compare": lambda: _compare(config),
    "smoke": lambda: _smoke(config),
  }
  base.choose(changes, variant, "mixture.py")
  return config


def _compare(config: ConfigDict) -> None:
  config.control.head_learning_rate = config.compare.rates.path_consistency
  config.compare.update(
    guidance=(
      "reconstruction",
      "reconstruction_plain",
      "classifier",
      "smc",
      "value",
      "best_of_n",
    ),
    gammas=(0.5, 3.0, 10.0),
    objectives=("ctrl", "adjoint_matching", "reward_weighted", "ppo"),
    particles=512,
  )


def _smoke(config: ConfigDict) -> None:
  config.kernel.num_steps = 10
  config.control.update(num_steps=20, batch_size=16, head=(8,), log_every=5)
  config.evaluate.update(
    num_samples=600, num_reference=2000, num_bridge=40, chunk=500
  )
  config.compare.update(num_steps=4, particles=16, strengths=(1.0,))
  config.compare.classifier.num_steps = 50

# SPDX-License-Identifier: Apache-2.0
"""How well an image compresses as a new control, on Fashion-MNIST.

  python -m experiments.run --config=experiments/configs/fashion.py[:VARIANT]

A class-conditional DiT is trained on 20,000 garments of 28x28 pixels, a
classifier on pairs (image, bin of its size), and CTRL adds the size as a JPEG
file of quality 95, in 4 bins of equal shares, as a control. The oracle
compresses every sample for real. The images are read from where Debian's
package dataset-fashion-mnist puts them, from --config.data.dir=DIR, or else
downloaded. Expected of seed 0, in a quarter of an hour on two CPU cores: gap
2.8 +- 0.1 nats, from 44, and oracle accuracy 94 % where the exact target has
95 %.

All variants share one pre-trained model, in runs/fashion-prior; another
--config.seed or --config.model needs another --config.prior.dir.

Variants: two_factors, y = (small or large, dark or light), whose two
classifiers have no image in common; compare, other targets and every method of
guidance beside it (docs/comparison.md); smoke, all of it at toy sizes, for a
look at the machinery only.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant; "" has the JPEG size alone.

  Raises:
    ValueError: an unknown variant.
  """
  config = base.get_config()
  config.experiment, config.variant = "fashion", variant
  config.problem.name = "fashion"
  config.data.update(control="jpeg", num_images=20000)
  config.model.update(num_layers=3, patch=4)
  config.prior.update(num_steps=5000, batch_size=64, dir="runs/fashion-prior")
  # A little noise on pixels costs many bytes, and all that matters to the size
  # is in the features.
  config.classifier.update(pixels=False, feature_gain=1.0, noise=0.0)
  # A sharp classifier, to which a hundred bytes are worth tens of nats: see
  # `algorithms.muon` and `steering.with_head`. A batch has every (c, y) once.
  config.control.update(
    num_steps=900,
    batch_size=40,
    warmup_steps=40,
    optimizer="muon",
    b2=0.999,
    head_learning_rate=1e-2,
    differentiate_inputs=False,
    all_labels=True,
  )
  config.reward.gamma = 5.0
  config.evaluate.update(num_samples=1000, num_reference=4000, chunk=100)
  changes = {
    "": lambda: None,
    "two_factors": lambda: config.data.update(
      second_control="ink", num_controls=2
    ),
    "compare": lambda: _compare(config),
    "smoke": lambda: _smoke(config),
  }
  base.choose(changes, variant, "fashion.py")
  return config


def _compare(config: ConfigDict) -> None:
  # A third of the updates: the others are given as much.
  config.control.num_steps = 300
  base.compare_images(config)


def _smoke(config: ConfigDict) -> None:
  config.data.num_images = 400
  config.kernel.num_steps = 6
  config.model.update(dims=16, num_layers=1, num_heads=2)
  config.prior.update(num_steps=40, batch_size=32, dir="")
  config.classifier.num_steps = 100
  config.independent.num_steps = 100
  config.control.update(num_steps=8, batch_size=8, head=(16,), log_every=2)
  config.evaluate.update(num_samples=160, num_reference=400, num_bridge=8)

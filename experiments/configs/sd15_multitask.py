# SPDX-License-Identifier: Apache-2.0
"""Beauty and compressibility, two controls of Stable Diffusion v1.5 at once.

  python -m experiments.run --config=experiments/configs/sd15_multitask.py
    --config.model.path=/path/to/stable-diffusion-v1-5 --config.data.dir=PHOTOS
    --config.aesthetic.clip=/path/to/clip-vit-large-patch14
    --config.aesthetic.head=/path/to/aesthetic.safetensors

The second experiment of the CTRL paper: y = 2 a + s, where a says whether the
score of LAION's aesthetic predictor is 5.7 or more, and s whether the JPEG file
has 70 kB or less. No image needs both labels: log p(y | x) is the sum of
log p(a | x) and log p(s | x), whose classifiers saw one half of PHOTOS each.
The first is an MLP of CLIP's embedding. All else is as in sd15_compressibility,
the KL divergence in nats included. ctrl_jax/models/aesthetic.py shows the
command that makes the predictor's file of what LAION published.

Variants: nats, self_labelled, paper and tiny, as there.
"""

from ml_collections import ConfigDict

from experiments.configs import base, sd15_compressibility


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant; "" has the paper's bins and gamma = 10.

  Raises:
    ValueError: an unknown variant.
  """
  config = sd15_compressibility.get_config()
  config.experiment, config.variant = "sd15_multitask", variant
  config.data.update(
    quantity="aesthetic",
    second_quantity="compressibility",
    num_controls=2,
    edges=(5.7,),
    second_edges=(-70.0,),
  )
  config.control.learning_rate = 3e-4
  equal_shares = {"edges": (), "second_edges": ()}
  changes = {
    "": lambda: None,
    "nats": lambda: config.data.update(equal_shares),
    "self_labelled": lambda: config.data.update(equal_shares, dir=""),
    "paper": lambda: _paper(config),
    "tiny": lambda: _tiny(config),
  }
  base.choose(changes, variant, "sd15_multitask.py")
  return config


def _paper(config: ConfigDict) -> None:
  config.reward.gamma = sd15_compressibility.PAPER_GAMMA
  config.control.update(num_steps=96, batch_size=512)
  config.control.ctrl.accumulate = 128


def _tiny(config: ConfigDict) -> None:
  sd15_compressibility.make_tiny(config)
  config.data.second_edges = ()
  config.aesthetic.update(clip="tiny", head="tiny")

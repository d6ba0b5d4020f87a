# SPDX-License-Identifier: Apache-2.0
"""How well an image compresses as a new control of Stable Diffusion XL.

  python -m experiments.run --config=experiments/configs/sdxl_compressibility.py
    --config.model.path=/path/to/stable-diffusion-xl --config.data.dir=PHOTOS

The experiment of sd15_compressibility, which says what it has of CTRL's paper,
on the base model of Stable Diffusion XL: images of 1024 x 1024, guidance 5, and
so 65,536 dimensions of a latent that the KL divergence sums over. The paper's
bins are of smaller images; here they are equal shares of those that are
labelled. Of these a classifier sees eight at a time, four times as often.

PHOTOS is any folder of images, which are cut to 1024 x 1024; without it the
model makes 10,000. The U-Net is in bfloat16, one chain at a time, and the
autoencoder in float32, for its file asks for that. On a GPU flash attention
keeps the logits of 4096 pixels out of memory: --config.model.attention=cudnn.

Variants: self_labelled, the same on images of the model's own; tiny, random
weights of a few layers, on which every stage runs anywhere in two minutes.
"""

from ml_collections import ConfigDict

from experiments.configs import base, sd15_compressibility


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: an unknown variant.
  """
  config = sd15_compressibility.get_config()
  config.experiment, config.variant = "sdxl_compressibility", variant
  config.model.update(size=1024, guidance_scale=5.0, dtype="bfloat16")
  config.data.edges = ()
  config.control.ctrl.accumulate = config.control.batch_size
  config.classifier.update(num_steps=8000, batch_size=8)
  config.independent.update(num_steps=8000, batch_size=8)
  config.evaluate.chunk = 4
  changes = {
    "": lambda: None,
    "self_labelled": lambda: config.data.update(dir=""),
    "tiny": lambda: make_tiny(config),
  }
  base.choose(changes, variant, "sdxl_compressibility.py")
  return config


def make_tiny(config: ConfigDict) -> None:
  """Random weights and toy sizes."""
  sd15_compressibility.make_tiny(config)
  config.model.update(path="tiny_xl", dtype="float32")
  config.classifier.batch_size = config.independent.batch_size = 32

# SPDX-License-Identifier: Apache-2.0
"""How well an image compresses as a new control of Stable Diffusion 3.5.

  python -m experiments.run --config=experiments/configs/sd3_compressibility.py
    --config.model.path=/path/to/stable-diffusion-3.5-medium
    --config.data.dir=PHOTOS

The experiment of sd15_compressibility, which says what it has of CTRL's paper,
on Stable Diffusion 3.5 medium: images of 1024 x 1024, and guidance 4.5 and 40
steps as its card recommends, of a flow whose noise is that of eta = 1. A latent
has 262,144 dimensions, which the KL divergence sums over. As of XL the bins are
equal shares, and a classifier sees eight images at a time.

Two CLIPs read the prompts, and zeros stand for what T5 would say, for which the
model was trained too; --config.model.t5=True has T5 read them, where the folder
has it. The transformer is in bfloat16, one chain at a time.

PHOTOS is any folder of images, which are cut to 1024 x 1024; without it the
model makes 10,000. Other releases of Stable Diffusion 3 take the same file.

Variants: self_labelled, the same on images of the model's own; tiny, random
weights of two layers, on which every stage runs anywhere in two minutes.
"""

from ml_collections import ConfigDict

from experiments.configs import base, sdxl_compressibility


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: an unknown variant.
  """
  config = sdxl_compressibility.get_config()
  config.experiment, config.variant = "sd3_compressibility", variant
  config.model.guidance_scale = 4.5
  config.kernel.num_steps = 40
  changes = {
    "": lambda: None,
    "self_labelled": lambda: config.data.update(dir=""),
    "tiny": lambda: _tiny(config),
  }
  base.choose(changes, variant, "sd3_compressibility.py")
  return config


def _tiny(config: ConfigDict) -> None:
  sdxl_compressibility.make_tiny(config)
  config.model.path = "tiny_sd3"
  # Of five steps the last with noise is steep, and a change of it dear.
  config.control.update(learning_rate=1e-4, embedding_learning_rate=1e-3)

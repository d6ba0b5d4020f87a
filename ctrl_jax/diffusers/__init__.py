# SPDX-License-Identifier: Apache-2.0
r"""Pre-trained models from the folders of diffusers: pixels, and DiT's latents.

    model = ctrl_jax.diffusers.load("ddpm-celebahq-256")
    steps = ctrl_jax.diffusers.kernel("ddpm-celebahq-256", 50)
    tuned = ctrl_jax.tune(model, reward, kernel=steps, ...)

What model_index.json calls itself decides how a folder is read:

    DDPMPipeline, DDIMPipeline   a `UNet2DModel` on pixels (`unet2d`)
    DiTPipeline                  a `DiTTransformer2DModel` on latents (`dit`),
                                 decoded by the folder's autoencoder

and those that read prompts, Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, are
opened with their prompts, by `load_prompted` (`prompted`):

    model = ctrl_jax.diffusers.load_prompted(folder, ["a cat"], size=1024)

Networks are Flax, weights come from safetensors alone, and what is not
supported is refused in one line.
"""

from ctrl_jax.diffusers.loading import kernel, load
from ctrl_jax.diffusers.prompted import load_prompted

__all__ = ["kernel", "load", "load_prompted"]

# SPDX-License-Identifier: Apache-2.0
"""The schema of experiments on Stable Diffusion; see `base`."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
  """The schema of Stable Diffusion and a measured quantity, locked."""
  common = base.common()
  del common["sde"]  # the model's own
  common["kernel"] = {
    "num_steps": 50,  # K, reverse steps of DDIM
    "eta": 1.0,  # noise of a step, 1 is the posterior's
  }
  common["control"] |= {
    "adapt": "lora",
    "rank": 4,
    "learning_rate": 1e-3,
    "embedding_learning_rate": 1e-2,
    "head": (),
    "weight_decay": 0.1,
    "clip_norm": 5.0,
    "ema_decay": 0.0,
    "warmup_steps": 0,
  }
  classifier = base.optimiser(batch_size=256, learning_rate=1e-3) | {
    "widths": (64, 128, 256),  # channels of its blocks, multiples of 8
    "strides": (1, 2, 2),  # of these
    "noise": 0.0,  # std of Gaussian noise on images, in units of x
  }
  return ConfigDict(
    common
    | {
      "problem": {"name": "stable_diffusion"},
      "model": {
        "path": "",  # folder of the weights; tiny: random ones, made anew
        "dtype": "float32",  # or bfloat16
        "size": 512,  # side of an image in pixels
        "guidance_scale": 7.5,  # strength of the prompt, at least 1
        "attention": "",  # "": XLA's own choice; cudnn: flash, on a GPU
        "remat": True,  # compute blocks again in the backward pass
      },
      "prompts": (),  # values of c
      "data": {
        "dir": "",  # folder of images; "": the model makes them
        "num_images": 10000,  # to make, or the first of the folder; 0: all
        "num_controls": 4,  # values of y
        "edges": (),  # bounds of the bins; (): equal shares
      },
      "classifier": dict(classifier),  # gives the reward
      "independent": dict(classifier),  # only watches
    }
  ).lock()

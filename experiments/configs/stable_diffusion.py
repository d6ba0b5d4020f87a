# SPDX-License-Identifier: Apache-2.0
"""The schema of experiments on Stable Diffusion; see `base`.

y is the bin of one quantity of images, or the bins of two: how well an image
compresses, or how well people would like it.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
  """The schema of Stable Diffusion and measured quantities, locked."""
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
  # Values of c that are evaluated, whether trained or not; (): those trained.
  common["evaluate"]["prompts"] = ()
  classifier = base.optimiser(batch_size=256, learning_rate=1e-3) | {
    "widths": (64, 128, 256),  # channels of its blocks, multiples of 8
    "strides": (1, 2, 2),  # of these
    "hidden": (256, 128),  # of the one that sees CLIP's embedding in place
    "noise": 0.0,  # std of Gaussian noise on what it sees, in its units
  }
  return ConfigDict(
    common
    | {
      "problem": {"name": "stable_diffusion"},
      "model": {
        # Folder of weights; tiny, tiny_xl, tiny_sd3: random ones, made anew.
        "path": "",
        "dtype": "float32",  # or bfloat16
        "t5": False,  # whether it reads prompts too, of Stable Diffusion 3
        "size": 512,  # side of an image in pixels
        "guidance_scale": 7.5,  # strength of the prompt, at least 1
        "control_on": "guided",  # or conditional: leaves the empty prompt alone
        "attention": "",  # "": the device's own; cudnn: flash, on a GPU
        "remat": True,  # compute blocks again in the backward pass
      },
      "prompts": (),  # values of c that training asks for
      "data": {
        "dir": "",  # folder of images; "": the model makes them
        "num_images": 10000,  # to make, or the first of the folder; 0: all
        "max_pixels": 2**26,  # of an image, above which it is skipped
        "quantity": "compressibility",  # that y bins, or aesthetic
        "second_quantity": "",  # of a second, independent factor; "": none
        "num_controls": 4,  # values of y, or of each of its factors
        "edges": (),  # bounds of the bins; (): equal shares
        "second_edges": (),  # of the second quantity
      },
      "aesthetic": {  # LAION's predictor of what people would think
        "clip": "",  # folder of CLIP ViT-L/14; also for CLIP scores; "": none
        "head": "",  # safetensors file of the predictor; tiny: random ones
      },
      "classifier": dict(classifier),  # gives the reward
      "independent": dict(classifier),  # only watches
    }
  ).lock()


def all_prompts(config: ConfigDict) -> tuple[str, ...]:
  """Every value of c once: those that are evaluated, then all others."""
  return tuple(dict.fromkeys((*config.evaluate.prompts, *config.prompts)))


def check(config: ConfigDict) -> None:
  """Raises ValueError where Stable Diffusion cannot do what is asked."""
  control, compare, data = config.control, config.compare, config.data
  if control.adapt != "lora":
    raise ValueError(
      f"control.adapt is {control.adapt!r}: of Stable Diffusion only low-rank "
      "adapters are trained; use lora"
    )
  if control.head:
    raise ValueError(
      f"control.head is {control.head}: Stable Diffusion has no output head; "
      "use ()"
    )
  if config.model.attention == "cudnn" and config.sharding.model > 1:
    raise ValueError(
      "model.attention is cudnn, which wants whole heads, and devices that "
      f"share weights have parts: with sharding.model={config.sharding.model} "
      "use xla"
    )
  if not config.prompts:
    raise ValueError("prompts is (): give some, as in ('cat', 'dog')")
  tuned = {"classifier_free", "classifier_free_product"} & {*compare.guidance}
  if tuned:
    raise ValueError(
      f"compare.guidance has {min(tuned)}: of Stable Diffusion only low-rank "
      "adapters are trained, and it tunes the whole network; leave it out"
    )
  if "smc" in compare.guidance and compare.particles > config.evaluate.chunk:
    raise ValueError(
      f"compare.particles is {compare.particles}, all of which smc has in "
      f"memory: use evaluate.chunk = {config.evaluate.chunk} or fewer"
    )
  if config.evaluate.prompts and (compare.gammas or compare.objectives):
    raise ValueError(
      "compare.gammas and compare.objectives train on what is evaluated: use "
      "evaluate.prompts = (), or leave both out"
    )
  if not data.dir and not data.num_images:
    raise ValueError(
      "data.num_images is 0: say how many images the model makes, or name a "
      "folder of images by data.dir"
    )
  if data.second_quantity == data.quantity:
    raise ValueError(
      f"data.second_quantity is {data.quantity!r}, as data.quantity: use "
      "another"
    )
  for name in ("classifier", "independent"):
    widths, strides = config[name].widths, config[name].strides
    if len(widths) != len(strides):
      raise ValueError(
        f"{name}.strides {strides} are not as many as {name}.widths {widths}"
      )

# SPDX-License-Identifier: Apache-2.0
"""The schema of every experiment: all fields, their units, their defaults.

An experiment's file takes one of the schemas, `get_config` for images,
`gaussian_config` or `mixture_config`, changes what it needs, and returns it; no
other key exists, and a misspelt one is an error. `rules` says which values are
allowed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.configs.priors import PRIOR


def optimiser(**settings: Any) -> dict[str, Any]:
  """Settings that every training stage has: AdamW, cosine decay, the loop."""
  return {
    "num_steps": 1700,  # updates
    "batch_size": 128,  # examples an update, over all devices
    "learning_rate": 1e-3,  # peak
    "warmup_steps": 100,  # updates of linear warm-up
    "b2": 0.99,  # AdamW's decay of the squared gradient
    "weight_decay": 0.0,  # AdamW's, times the learning rate
    "log_every": 50,  # updates averaged in a line of metrics.jsonl
    "save_every": 500,  # updates from checkpoint to checkpoint
  } | settings


def _classifier(**settings: Any) -> dict[str, Any]:
  """A classifier p(y | x)."""
  stage = optimiser(num_steps=1500, learning_rate=2e-3, weight_decay=0.5) | {
    "hidden": (128, 128),  # widths of the hidden layers
    "noise": 0.05,  # std of Gaussian noise on images, in units of x
    "folds": 0,  # of its pairs; 0: a quarter is only for its temperature
    "ordered": False,  # labels are steps of one quantity: one logit for all
    "pixels": True,  # seen by it
    "feature_gain": 3.0,  # weight of the measured quantity as input; 0: none
  }
  return stage | settings


def common() -> dict[str, Any]:
  """What every experiment has."""
  return {
    "experiment": "",  # name; results go to runs/<experiment>[-<variant>]
    "variant": "",  # what follows the colon in --config=FILE:VARIANT
    "seed": 0,  # of everything random
    "devices": 0,  # of a host; 0: its accelerators, or one for each CPU core
    "sharding": {"model": 1},  # devices that share weights too large for one
    "sde": {
      "name": "vp",  # vp, ve or flow
      "beta_min": 0.1,  # vp: noise rate at time 0
      "beta_max": 20.0,  # vp: noise rate at time 1
      "std_min": 0.01,  # ve: noise at time 0, in units of x
      "std_max": 50.0,  # ve: noise at time 1, in units of x
    },
    "kernel": {
      "name": "ddim",  # ddim, ddpm or euler_maruyama
      "num_steps": 32,  # K, reverse steps
      "eta": 1.0,  # of its noise, but for ddpm; 1 is the posterior's
      "power": 2.0,  # above 1: shorter steps towards the end
      "shift": 1.0,  # above 1: shorter steps at the start, as of SD3
      "t_min": 0.0,  # diffusion time at which sampling ends
      "t_max": 1.0,  # at which it begins; below 1 if sde is flow
    },
    "reward": {
      "gamma": 1.0,  # strength of the control: nats per nat of KL
      "doubt": 0.0,  # deviations taken from log p(y | x), if it is learned
    },
    "control": optimiser(
      batch_size=64,
      num_steps=300,
      warmup_steps=20,
      adapt="none",  # what of the network is tuned: none, lora or full
      rank=16,  # of the LoRA matrices
      learning_rate=1e-2,  # peak, for what is tuned of the network
      embedding_learning_rate=3e-2,  # peak, for the embedding of y
      head=(128, 128),  # widths of the output head; (): none
      differentiate_inputs=True,  # of the head; False: steadier if y is sharp
      head_learning_rate=1e-2,  # peak, for the head
      all_labels=False,  # of y, where it has some, seen by the head
      squeeze=True,  # the noise of steps, which the head otherwise leaves alone
      clip_norm=10.0,  # largest norm of the gradient
      optimizer="adam",  # or muon, for matrices
      ema_decay=0.98,
      objective="ctrl",  # the policy update: of the settings that follow
      ctrl={
        # Last reverse steps to differentiate; None: all.
        "backprop_steps": config_dict.placeholder(int),
        # Of each chain a number from this to that one is drawn; None: not.
        "backprop_least": config_dict.placeholder(int),
        "accumulate": 1,  # parts of a batch, one after another; saves memory
        # Compute steps again in the backward pass. Without it memory grows with
        # their number; on a CPU with large pages a small Stable Diffusion then
        # takes two thirds of the time, and transformers gain nothing.
        "remat": True,
      },
      path_consistency={
        "form": "trajectory",  # or step: of every piece, with a learned value
        "group": 0,  # chains of one (c, y) that estimate log Z; 0: known
        "temper": (1.0,),  # shares of the control that chains follow in turn
        "max_residual": 5.0,  # nats, from which on the loss is linear
      },
      adjoint_matching={},
      reward_weighted={
        "behaviour": "policy",  # whose paths: policy, pretrained or payoff
        "likelihood": "path",  # of payoff: path, or denoising of its end
        "max_weight": 20.0,  # the largest weight of a path that is not drawn
      },
      ppo={
        "group": 16,  # chains of one (c, y) that advantages are compared in
        "inner_steps": 4,  # of the optimiser, on the same paths
        "clip": 0.2,  # how far probabilities may move, as a ratio
      },
      save_every=100,
      log_every=10,
    ),
    "evaluate": {
      # These may change on a finished run; the second not if log Z is trained
      # with, see `reevaluation`.
      "num_samples": 4000,  # of every method, over all (c, y)
      "num_reference": 8000,  # of the pre-trained model, over all c
      "num_bridge": 400,  # of each (c, y) whose log Z these do not know
      "chunk": 200,  # samples at a time; more than a cache holds is slower
      "best_of": 4,  # candidates of best-of-n
    },
    "compare": {  # with others; only if guidance, gammas or objectives has some
      "guidance": (),  # reconstruction, reconstruction_plain, classifier,
      # soft_value, classifier_free, classifier_free_product, smc, value,
      # best_of_n
      "strengths": (0.03, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0),  # each is tried
      "gammas": (),  # other targets that the control is trained for
      "num_steps": 100,  # updates for each of these, from the nearest control
      "objectives": (),  # other policy updates, of the control's own budget
      "rates": {  # of their heads; the best of three on the mixture
        "ctrl": 3e-2,
        "path_consistency": 3e-2,
        "adjoint_matching": 3e-2,
        "reward_weighted": 3e-2,
        "ppo": 1e-2,
      },
      "particles": 64,  # of a system of smc
      "candidates": 4,  # of a step of value
      "classifier": optimiser(  # of noisy samples, and the soft value
        num_steps=2000, hidden=(128, 128), ema_decay=0.99
      ),
      "classifier_free": optimiser(
        num_steps=2000,
        ema_decay=0.99,
        drop_c=0.1,  # shares of examples that do without c, and without y
        drop_y=0.1,
      ),
    },
  }


def get_config() -> ConfigDict:
  """The schema of images with its defaults, locked against new keys."""
  config = ConfigDict(
    common()
    | {
      "problem": {"name": "digits"},  # the family that families.py makes
      "data": {
        "dir": "",  # folder with the data; "": the data set's default
        "num_images": 0,  # the first so many; 0: all
        "control": "ink",  # quantity that y bins: ink, slant or jpeg
        "second_control": "",  # of a second, independent factor; "": none
        "num_pairs": 0,  # labelled pairs (x, y) in use; 0: all there are
        "num_controls": 4,  # values of y, or of each of its factors
      },
      "model": {  # DiT
        "dims": 64,  # width
        "num_layers": 2,
        "num_heads": 4,
        "patch": 2,  # pixels along the side of a token
      },
      "prior": optimiser(learning_rate=2e-3, **PRIOR),
      "classifier": _classifier(),  # gives the reward
      "independent": _classifier(feature_gain=0.0),  # only watches
    }
  )
  return config.lock()


def gaussian_config() -> ConfigDict:
  """The schema of a Gaussian prior and a real control, locked."""
  problem = {
    "name": "gaussian",
    "seed": 0,  # of the prior and of the likelihood
    "dims": 2,
    "num_controls": 5,  # values of y that are evaluated, evenly spaced
    "control_range": 2.0,  # y is trained and evaluated this far either way
    "likelihood_std": 1.0,  # deviation of y given x, in deviations of x
  }
  return ConfigDict(common() | {"problem": problem}).lock()


def mixture_config() -> ConfigDict:
  """The schema of a Gaussian mixture and a softmax classifier, locked."""
  problem = {
    "name": "mixture",
    "seed": 0,  # of the modes and of the classifier
    "dims": 2,
    "num_modes": 8,
    "num_conditions": 1,  # values of c, each with mode weights of its own
    "num_controls": 3,  # values of y, or of its first factor
    "second_factor": 0,  # values of a second, independent factor; 0: none
    "sharpness": 2.0,  # slope of the logits, nats per deviation of x
  }
  return ConfigDict(common() | {"problem": problem}).lock()


def use_flow(config: ConfigDict) -> None:
  """The straight path of flow matching, from where some data are left of it."""
  config.sde.name = "flow"
  config.kernel.t_max = 0.99


def compare_images(config: ConfigDict) -> None:
  """Lists every method that a problem of images has, and targets for CTRL.

  Classifier-free guidance is fine-tuned for as many evaluations of the network
  as CTRL is: CTRL makes four a step of a chain, a fine-tuning three an example.
  """
  control, free = config.control, config.compare.classifier_free
  steps = control.num_steps * control.batch_size * config.kernel.num_steps
  free.num_steps = 4 * steps // (3 * free.batch_size)
  config.compare.update(
    guidance=(
      "reconstruction",
      "reconstruction_plain",
      "classifier",
      "classifier_free",
      "smc",
      "value",
      "best_of_n",
    ),
    gammas=(0.5, 3.0, 10.0),
  )


def choose(
  changes: Mapping[str, Callable[[], Any]], variant: str, file: str
) -> None:
  """Makes the changes of a variant.

  Raises:
    ValueError: an unknown variant of this config file.
  """
  if variant not in changes:
    raise ValueError(
      f"{file} has no variant {variant!r}: use one of "
      f"{', '.join(filter(None, changes))}"
    )
  changes[variant]()

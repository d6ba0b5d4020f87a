# SPDX-License-Identifier: Apache-2.0
"""An update of TRL's AlignProp trainer (arXiv 2310.03739), as a worker.

It is not CTRL's: there is no KL divergence, so no pre-trained network beside
the policy, and no label. Adapters of rank 4, guidance, steps, recomputation of
each call and the classifier are the same; all steps are differentiated. TRL
had this trainer until 0.23.1.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
import torch
import trl
from accelerate import PartialState

from experiments.benchmarks.peers import classifiers, worker


def main() -> None:
  """Serves the update of a folder, see `problem`."""
  folder = pathlib.Path(sys.argv[1])
  settings = json.loads((folder / "settings.json").read_text())
  with np.load(folder / "arrays.npz") as arrays:
    logits_fn = classifiers.of_arrays(arrays, settings["strides"])
    labels = torch.from_numpy(arrays["labels"]).long()
  rewards = []

  def reward_fn(images, prompts, metadata):
    # The trainer's images are in [0, 1].
    log_p = torch.log_softmax(logits_fn(2 * images - 1), 1)
    rewards.append(settings["gamma"] * log_p[torch.arange(len(images)), labels])
    return rewards[-1], {}

  PartialState()  # without it the pipeline cannot log that it has no LoRA file
  texts = itertools.cycle(settings["texts"])
  pipeline = trl.DefaultDDPOStableDiffusionPipeline(str(folder / "model"))
  trainer = trl.AlignPropTrainer(
    trl.AlignPropConfig(
      sample_num_steps=settings["steps"],
      sample_guidance_scale=settings["guidance"],
      sample_eta=1.0,
      train_batch_size=settings["batch"],
      train_gradient_accumulation_steps=1,
      train_learning_rate=settings["learning_rate"],
      train_max_grad_norm=settings["clip_norm"],
      truncated_backprop_rand=False,
      truncated_backprop_timestep=0,
      mixed_precision="no",
      log_with=None,
      save_freq=10**9,
    ),
    reward_fn,
    lambda: (next(texts), {}),
    pipeline,
  )
  updates = itertools.count()

  def once() -> worker.Answer:
    trainer.step(0, next(updates))
    return {"loss": -rewards.pop().mean().item()}

  worker.serve(once)


if __name__ == "__main__":
  main()

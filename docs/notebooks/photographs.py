# %% [markdown]
# # Your own photographs and a csv
#
# From a folder of pictures and a table of labels to samples of a label: one
# command, here at a size for a few minutes. The pictures are patches of the two
# photographs that scikit-learn has; put yours in their place.

# %%
import csv
import json
import pathlib
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

folder = pathlib.Path("pictures")
folder.mkdir(exist_ok=True)
rows, side = [], 28  # pixels
for photo, whole in enumerate(load_sample_images().images):
  for top in range(0, whole.shape[0] - side + 1, side):
    for left in range(0, whole.shape[1] - side + 1, side):
      patch = whole[top : top + side, left : left + side]
      name = f"{photo}-{top:03d}-{left:03d}.png"
      Image.fromarray(patch).save(folder / name)
      red, _, blue = patch.mean((0, 1))
      rows.append((name, red - blue))
print(len(rows), "pictures")

# %% [markdown]
# The table is `labels.csv` in their folder: a column of file names, and one for
# each label. Words are categories, numbers would be cut in bins, and an empty
# cell is a label that nobody knows. Here a word for the colour of the light,
# which every fifth picture has not.

# %%
cold, warm = np.quantile([tint for _, tint in rows], (1 / 3, 2 / 3))


def word(tint):
  return "cold" if tint < cold else "warm" if tint > warm else "neutral"


with (folder / "labels.csv").open("w", newline="") as file:
  table = csv.writer(file)
  table.writerow(("file_name", "light"))
  for number, (name, tint) in enumerate(rows):
    table.writerow((name, word(tint) if number % 5 else ""))
print(*(folder / "labels.csv").read_text().splitlines()[:5], sep="\n")

# %% [markdown]
# Now the run: a diffusion model of all the pictures, a classifier of the
# labelled ones, the control, and what it is worth. Given again, the command
# goes on where it was stopped. In a terminal it is
# `python -m experiments.run --config=own.py` with these flags; without those
# after `workdir` it takes longer and is better. It says how far it is.

# %%
run = pathlib.Path("run")
subprocess.run(
  [
    *(sys.executable, "-m", "experiments.run", "--config=own.py"),
    f"--config.data.dir={folder}",
    f"--workdir={run}",
    "--config.data.size=16",
    "--config.prior.num_steps=1000",
    "--config.classifier.num_steps=300",
    "--config.independent.num_steps=300",
    "--config.control.num_steps=100",
    "--config.evaluate.num_samples=900",
    "--config.evaluate.num_reference=2000",
  ],
  check=True,
  stdout=subprocess.DEVNULL,
)
results = json.loads((run / "results.json").read_text())
for name in ("pretrained", "ctrl", "pretrained_resampled"):
  method = results["methods"][name]
  gap, right = method["gap"], method["oracle_accuracy"]
  print(
    f"{name:21s}",
    "gap 0" if gap is None else f"gap {gap['mean']:.2f} ± {gap['stderr']:.2f}",
    f"nats, as asked for {100 * right['mean']:.0f} %",
  )

# %% [markdown]
# `pretrained` is the model as it was, `ctrl` with its control, and
# `pretrained_resampled` the exact target, as far as a sample shows it. The
# judge is a second classifier, of pictures that the first has not seen.
#
# A finished run samples without its data. Above each picture of a label stands
# what the model made of the same noise before.

# %%
from experiments import sampler

finished, each = sampler.load(run), 6
c, y = finished.requests(3 * each, y=["cold", "neutral", "warm"])
order = np.argsort(y, kind="stable")
drawn = {
  "before": finished.draw("pretrained", c, y, seed=1).x[order],
  "with y": finished.draw("ctrl", c, y, seed=1).x[order],
}

# %%
figure, axes = plt.subplots(2, 3 * each, figsize=(11, 1.7))
for line, (name, samples) in zip(axes, drawn.items(), strict=True):
  pictures = finished.problem.pictures(samples)
  for axis, picture in zip(line, pictures, strict=True):
    axis.imshow(np.clip((picture + 1) / 2, 0, 1))
    axis.set(xticks=[], yticks=[])
  line[0].set_ylabel(name)
for axis, title in zip(
  axes[0, ::each], ("cold", "neutral", "warm"), strict=True
):
  axis.set_title(title, loc="left")
figure.tight_layout(pad=0.3)
figure.savefig("notebook-photographs.png", dpi=90)

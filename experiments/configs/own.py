# SPDX-License-Identifier: Apache-2.0
"""Your own data and labels: a folder of pictures and a table, or arrays.

  python -m experiments.run --config=experiments/configs/own.py[:VARIANT]

with `--config.data.dir=FOLDER`, that of the pictures. A diffusion model is
trained on all of them, classifiers on those that have a label, and CTRL adds
the labels as a control. The table is labels.csv, metadata.csv or metadata.jsonl
in the folder, or any that `data.labels` names: its column of paths is called
file_name or comes first, the others are labels, and an empty cell is a label
that is not known. Without a table every folder below is a class. Words and few
whole numbers are categories; other numbers are cut in `data.bins` of equal
shares. Several columns are several controls at once; `data.columns` picks some.

`--config.data.clip=FOLDER` has classifiers see a CLIP's embeddings of pictures
in place of their pixels: of photographs a few hundred labels can suffice then.

Pictures of any size are cut to their centre and resized to `data.size` pixels a
side.

With `--config.data.dir=FILE.npz` the data are the array x of that file, and the
columns its other arrays [N], of texts or numbers, of which "" and NaN are not
known. x is pictures, [N, height, width, 1 or 3] uint8 or floats in [-1, 1] or
[0, 1], at their own size; or vectors [N, d] or sequences [N, length, d] of any
scale, of which a residual MLP is the model and samples are arrays. It is small
enough for `--config.prior.batch_size=256 --config.control.batch_size=256`, and
better for both.

Or `--config.data.dir` is a data set of tfds as it lies on disk, the folder with
its dataset_info.json, in files of array_record. Its features of one word or
number are the columns, and without `data.columns` those of classes are.

`--config.data.labels=module:function` has a function label either: it takes all
of x, pictures as floats in [-1, 1], and returns [N] texts or numbers. Its
module is also looked for where the command is given. What labels the data
labels samples too, and the tables say "oracle". Otherwise nobody else knows
what a label means, and a second classifier, trained on other examples, is the
judge.

With `--config.data.labels=self:20` nobody has labelled anything: y is which of
twenty clusters an example is in, by the model's own features (docs/
self_labels.md). The judge is another clustering, of another start and under
other noise, whose clusters are matched with the first's.

With `--config.data.bins=0` a column of real numbers is not cut: y is a number,
and p(y | x) a Gaussian whose mean and deviation depend on x. Figures of it are
its error in units of y, and how many of the examples that it has not seen lie
within its intervals of 50 and of 90 percent. `experiments.sample --y 37.5` asks
for any number between the labelled ones. Such a column is a control by itself.

With `--config.model.path` the model is there already: a folder of diffusers, a
finished run's folder, or `module:function`, which returns a
`ctrl_jax.Pretrained`. Pictures have its size then. `model.conditions` are those
values of c, by name, that are trained and evaluated, and of Stable Diffusion
prompts; to that belong `--config.control.adapt=lora --config.control.head=()`.
A folder of diffusers is sampled at its own training steps, whatever
`kernel.power` is.

Variants: photos, patches of two photographs that scikit-learn has, with a table
of how bright they are, to see the way without pictures of one's own; smoke, the
same at toy sizes; tiny, any data and any model at toy sizes, to see in two
minutes whether they are read, and without data.dir those patches.
"""

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.configs.priors import PRIOR


def get_config(variant: str = "") -> ConfigDict:
  """The config of a variant; "" needs data.dir.

  Raises:
    ValueError: an unknown variant.
  """
  config = _schema()
  config.variant = variant
  # What a whole picture shows is settled early, in steps that are to be short.
  config.kernel.update(num_steps=16, power=1.5, shift=4.0)
  # The head is not differentiated through what it sees of the reward, which is
  # half of an update here. By Muon, whose steps no first gradient throws off.
  config.control.update(
    num_steps=400,
    batch_size=40,
    optimizer="muon",
    differentiate_inputs=False,
    all_labels=True,
  )
  config.evaluate.update(num_samples=2000, num_reference=4000)
  changes = {
    "": lambda: None,
    "photos": lambda: _photos(config),
    "smoke": lambda: _smoke(config),
    "tiny": lambda: _tiny(config),
  }
  base.choose(changes, variant, "own.py")
  return config


def _schema() -> ConfigDict:
  classifier = base.optimiser(
    num_steps=600, batch_size=64, learning_rate=2e-3, weight_decay=0.5
  ) | {
    "widths": (16, 32, 64),  # channels of its blocks, multiples of 8
    "strides": (2, 2, 2),  # of these
    "hidden": (128, 128),  # of vectors and embeddings, widths of hidden layers
    "noise": 0.1,  # std of Gaussian noise on x; of vectors, in their deviations
    "folds": 0,  # of its labels; 0: some are only for its temperature
  }
  return ConfigDict(
    base.common()
    | {
      "experiment": "own",
      "problem": {"name": "own"},
      "data": {
        "dir": "",  # folder of the images, or .npz; photos: scikit-learn's two
        # Table of them, module:function, or self:NUMBER of clusters; "": in the
        # folder.
        "labels": "",
        "columns": (),  # of the table, each a factor of y; (): all
        "bins": 4,  # that a column of real numbers is cut in; 0: y is real
        "size": 28,  # pixels a side; of a model that is there, its own
        "num_images": 0,  # the first so many; 0: all
        "clip": "",  # folder of a CLIP whose embeddings classifiers see
        "max_pixels": 2**26,  # of an image, above which it is skipped
      },
      "model": {
        # A folder of diffusers, a finished run's, or package.module:function,
        # which returns a ctrl_jax.Pretrained; "": one is trained here, a DiT,
        # or of vectors a residual MLP, of the sizes that follow.
        "path": "",
        "conditions": (),  # values of c, by name, or prompts; (): all there are
        "guidance_scale": 1.0,  # strength of c, where the pipeline has one
        "dtype": "float32",  # of a folder's weights; or bfloat16
        "size": 512,  # side of Stable Diffusion's images in pixels
        "dims": 64,  # width
        "num_layers": 3,
        "num_heads": 4,
        "patch": 4,  # pixels along the side of a token
      },
      "prior": base.optimiser(
        num_steps=2000, batch_size=64, learning_rate=2e-3, **PRIOR
      ),
      "classifier": dict(classifier),  # gives the reward
      "independent": dict(classifier),  # only watches, and judges
      "clusters": base.optimiser(  # in place of both, if data label themselves
        num_steps=600, batch_size=256, learning_rate=2e-3
      )
      | {
        "hidden": (),  # widths of the projection's hidden layers; (): linear
        "dims": 32,  # length of the embedding
        "noise": 0.35,  # std / alpha at which the model looks at x; the judge's
        # is twice as much
      },
    }
  ).lock()


def _photos(config: ConfigDict) -> None:
  config.data.update(dir="photos", bins=3)


def _smoke(config: ConfigDict) -> None:
  _photos(config)
  config.data.num_images = 400
  config.kernel.num_steps = 6
  config.model.update(dims=16, num_layers=1, num_heads=2)
  config.prior.update(num_steps=40, batch_size=32, log_every=10)
  for stage in (config.classifier, config.independent):
    stage.update(num_steps=40, widths=(8, 16), strides=(2, 2), log_every=10)
  config.clusters.update(num_steps=40, batch_size=64)
  config.control.update(
    num_steps=8,
    batch_size=8,
    head=(16,),
    log_every=2,
    # A thirtieth: in a few updates there is no warm-up.
    learning_rate=3e-4,
    embedding_learning_rate=1e-3,
    head_learning_rate=3e-4,
  )
  config.evaluate.update(num_samples=120, num_reference=400, num_bridge=8)
  config.evaluate.chunk = 60  # of which the time of a sample is taken too


def _tiny(config: ConfigDict) -> None:
  bins = config.data.bins
  _smoke(config)
  config.data.update(num_images=0, bins=bins)

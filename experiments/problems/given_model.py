# SPDX-License-Identifier: Apache-2.0
"""Where somebody's own pre-trained model comes from: config.model.path.

    a folder of diffusers    its model_index.json says which pipeline
    a finished run's folder  the model that the run trained
    package.module:function  anybody's Python, which returns a Pretrained

Whatever else a problem needs, it asks the `Pretrained` that comes out.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import diffusers, self_guided
from ctrl_jax.diffusers import prompted
from ctrl_jax.kernels import Kernel
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE
from ctrl_jax.stable_diffusion import folders, model_index
from experiments.problems import images, model_files
from experiments.problems.keeping import Kept
from experiments.problems.own import vectors
from experiments.problems.own.vectors import Units
from experiments.problems.problem import make_kernel, make_sde
from experiments.runtime import devices, finished_run, inputs, strangers

INDEX = "model_index.json"
FIELD = "model.path"


class Source(NamedTuple):
  """A model with parameters, and the sampler that suits it."""

  model: Pretrained
  kernel: Kernel


def find(config: ConfigDict, workdir: pathlib.Path) -> Source | None:
  """The model of config.model.path; None where one is to be trained.

  Raises:
    FileNotFoundError: there is nothing at that path.
    ValueError: it is no model that can be read; says what is wrong.
  """
  path = config.model.path
  if not path:
    return None
  folder = pathlib.Path(path).expanduser()
  names = tuple(config.model.conditions)
  if folder.is_file():
    model_index.read(folder)  # which needs a folder, and says how to make one
  if (folder / INDEX).is_file():
    return _of_pipeline(folder, config, names, workdir)
  if folder.is_dir():
    model = of_run(folder)
    learned = [folder / finished_run.LEARNED]
    inputs.tie_files(workdir, FIELD, folder, learned)
  elif ":" in path:
    model = of_function(path)
    leaves = jax.tree.leaves(model.params)
    inputs.tie_arrays(workdir, FIELD, f"the model of {path}", leaves)
  else:
    raise FileNotFoundError(
      f"model.path is {path!r}: there is no such folder, and a function of "
      "Python is named as package.module:function"
    )
  model = _asked(model, names)
  return Source(model, make_kernel(config.kernel, model.sde))


def _of_pipeline(
  folder: pathlib.Path,
  config: ConfigDict,
  names: tuple[str, ...],
  workdir: pathlib.Path,
) -> Source:
  """A folder of diffusers, whose steps are those that it was trained at."""
  settings, steps = config.model, config.kernel.num_steps
  kind = folders.read_json(folder / INDEX).get("_class_name")
  if kind not in model_index.KINDS:
    inputs.tie_files(workdir, FIELD, folder, model_files.of_folder(folder))
    model = diffusers.load(
      folder,
      dtype=jnp.dtype(settings.dtype),
      clip=False,
      guidance=settings.guidance_scale,
    )
    return Source(
      _asked(model, names),
      diffusers.kernel(folder, steps, eta=config.kernel.eta),
    )
  if not names:
    raise ValueError(
      f"model.path is {folder}, which reads prompts: give some, as in "
      "--config.model.conditions=\"('a cat', 'a dog')\""
    )
  inputs.tie_files(workdir, FIELD, folder, model_files.of_pipeline(folder))
  dtype: Any = jnp.dtype(settings.dtype)
  mesh = devices.weights_mesh(config)
  encoded = prompted.encode(folder, names, size=settings.size, dtype=dtype)
  parts = prompted.read(folder, dtype=dtype, mesh=mesh)
  return Source(
    prompted.pretrained(
      names,
      parts,
      encoded,
      size=settings.size,
      guidance=settings.guidance_scale,
    ),
    parts.schedule.kernel(steps, eta=config.kernel.eta),
  )


def of_run(run: pathlib.Path) -> Pretrained:
  """The model that a finished run trained, as it was before its control.

  Raises:
    FileNotFoundError: it is neither a run nor a folder of diffusers.
    ValueError: it trained none, or is damaged.
  """
  if not (run / finished_run.LEARNED).is_file():
    raise FileNotFoundError(
      f"model.path is {run}, which has neither the {INDEX} of a diffusers "
      f"pipeline nor the {finished_run.LEARNED} of a finished run"
    )
  kept, family = finished_run.learned(run), finished_run.family(run)
  config = finished_run.config_of(run)
  if "pretrained" not in kept:
    raise ValueError(
      f"model.path is {run}, a run of {family}, which trained no model: give "
      "the path of the one that it used"
    )
  return trained(config, kept)


def trained(config: ConfigDict, kept: Kept) -> Pretrained:
  """The model that a run of this config trained, of what is kept of it."""
  shape, sde = tuple(kept["sample_shape"].tolist()), make_sde(config.sde)
  units = Units(**kept["units"]) if "units" in kept else None
  model = untrained(config, shape, sde, units)
  return model.with_params(kept["pretrained"])


def untrained(
  config: ConfigDict, shape: tuple[int, ...], sde: SDE, units: Units | None
) -> Pretrained:
  """A network of config.model for pictures or, of these units, for vectors.

  Raises:
    ValueError: it is to find clusters in vectors, of which it sees no parts.
  """
  num = config.prior.clusters
  if units is not None:
    if num:
      raise ValueError(
        f"prior.clusters is {num}: of vectors and sequences the network has no "
        "tokens to look at; leave it at 0"
      )
    return vectors.untrained(config.model, units, sde)
  own = config.problem.name == "own"
  conditions = () if own else images.CONDITIONS
  made = images.untrained(config.model, shape, sde, conditions=conditions)
  return self_guided.conditioned(made, num) if num else made


def of_function(path: str) -> Pretrained:
  """What a function of somebody's own returns; its module is imported.

  Args:
    path: package.module:function; modules of the current folder are found.

  Raises:
    ValueError: there is no such module or function, or it returns something
      else, or a model without parameters or with a wrong network.
  """
  module, _, name = path.partition(":")
  try:
    function = getattr(strangers.module(module), name)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"model.path is {path!r}: {error}") from error
  model = function() if callable(function) else function
  if not isinstance(model, Pretrained):
    raise ValueError(
      f"model.path is {path!r}, which gives a {type(model).__name__} and not a "
      "ctrl_jax.Pretrained"
    )
  if model.params is None:
    raise ValueError(f"model.path is {path!r}: its model has params = None")
  x = jax.ShapeDtypeStruct((2, *model.sample_shape), jnp.float32)
  c = jax.ShapeDtypeStruct((2,), jnp.int32) if model.conditions else None
  try:
    eps = jax.eval_shape(model.eps, model.params, x, jnp.float32(0.5), c)
  except TypeError as error:
    raise ValueError(f"model.path is {path!r}: its network: {error}") from error
  if eps.shape != x.shape:
    raise ValueError(
      f"model.path is {path!r}: of samples {x.shape} its network makes "
      f"{eps.shape}, and must make noise of the same shape"
    )
  return model


def picture_shape(model: Pretrained) -> tuple[int, ...]:
  """Of one sample as data, such as the image that a latent decodes to."""
  x = jax.ShapeDtypeStruct((1, *model.sample_shape), jnp.float32)
  return tuple(jax.eval_shape(model.decoded, x).shape[1:])


def check(
  model: Pretrained, shape: tuple[int, ...], config: ConfigDict
) -> None:
  """Raises ValueError where data of a shape, or a control, do not suit a model.

  The shape is that of one example.
  """
  made, control = picture_shape(model), config.control
  if made != shape:
    raise ValueError(
      f"data.dir has examples of shape {shape}, and the model of "
      f"{config.model.path} makes {made}: their sizes and channels must be the "
      "same"
    )
  if model.mergeable and (control.head or control.adapt != "lora"):
    raise ValueError(
      f"the model of {config.model.path} is controlled by adapters: use "
      "--config.control.adapt=lora and --config.control.head=()"
    )


def _asked(model: Pretrained, names: tuple[str, ...]) -> Pretrained:
  """The model of some of its conditions only, in this order.

  Raises:
    ValueError: it has no such condition, or none at all.
  """
  if not names:
    return model
  missing = [name for name in names if name not in model.conditions]
  if missing:
    raise ValueError(
      f"model.conditions has {missing[0]!r}: this model has "
      f"{', '.join(model.conditions[:10]) or 'none'}"
      f"{' ...' if len(model.conditions) > 10 else ''}"
    )
  ids = np.array([model.conditions.index(name) for name in names], np.int32)

  def network(params: Any, x: Any, t: Any, c: Any, control: Any) -> Any:
    return model.network(params, x, t, jnp.asarray(ids)[c], control)

  return dataclasses.replace(model, conditions=names, network=network)

# SPDX-License-Identifier: Apache-2.0
"""Where loaded parameters lie, and that nothing is held twice on the way."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import parallel
from ctrl_jax.stable_diffusion import pipeline, weights
from tests import toy_folders as toy
from tests import toy_pipeline

NAME = "diffusion_pytorch_model"


def test_devices_share_what_is_loaded(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  wide = {"large.weight": rng.random((96, 64), np.float32)}
  wide["large.bias"] = rng.random(96, np.float32)
  toy.write(tmp_path / f"{NAME}.safetensors", wide)
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  template = {"large": {"kernel": shape(64, 96), "bias": shape(96)}}
  mesh = parallel.make_mesh(jax.devices()[:4], model=4)
  found = weights.load(tmp_path, template, mesh=mesh)
  toy.equal(found, weights.load(tmp_path, template))
  parts = {s.data.shape for s in found["large"]["kernel"].addressable_shards}
  assert parts == {(64, 24)}
  assert found["large"]["bias"].is_fully_replicated


@pytest.mark.long
def test_a_pipeline_that_devices_share_predicts_the_same(tmp_path) -> None:
  """Noise, its gradient in a latent, and images, of two groups of two."""
  toy_pipeline.write(tmp_path)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 8, 8, 4), np.float32)
  context = rng.standard_normal((2, 8, toy_pipeline.WIDTH), np.float32)
  rows = (np.arange(2), (x, context))

  def found(model: int | None) -> list[np.ndarray]:
    mesh = model and parallel.make_mesh(jax.devices()[:4], model=model)
    parts = pipeline.load(tmp_path, mesh=mesh)
    if mesh is None:
      mesh = parallel.make_mesh(jax.devices()[:1])
    else:
      kernel = parts.unet_params["mid_block"]["resnets.0"]["conv1"]["kernel"]
      assert kernel.addressable_shards[0].data.size == kernel.size // model

    def look(_, __, inputs):
      x, context = inputs
      noise = lambda x: parts.unet.apply(
        {"params": parts.unet_params}, x, jnp.float32(7), context
      )
      eps, pullback = jax.vjp(noise, x)
      return eps, pullback(eps)[0], parts.decode(parts.vae_params, x)

    mapped = parallel.map_examples(look, mesh)
    return parallel.gather(mapped((), *parallel.shard(rows, mesh)))

  for one, other in zip(found(2), found(None), strict=True):
    assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)


PEAK = """
import pathlib, sys
import jax, jax.numpy as jnp
from ctrl_jax import parallel
from ctrl_jax.stable_diffusion import weights

def kilobytes(field):
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(field + ":")[1].split()[0])

folder, dtype, layers, width, model = sys.argv[1:]
shape = jax.ShapeDtypeStruct((int(width), int(width)), jnp.float32)
template = {f"layers.{i}": {"kernel": shape} for i in range(int(layers))}
mesh = parallel.make_mesh(model=4) if model == "4" else None
jnp.zeros(1).block_until_ready()
before = kilobytes("VmRSS")
params = weights.load(pathlib.Path(folder), template, dtype=dtype, mesh=mesh)
leaves = jax.tree.leaves(params)
parts = {leaf.addressable_shards[0].data.nbytes for leaf in leaves}
assert parts == {params["layers.0"]["kernel"].nbytes // int(model)}
size = sum(leaf.nbytes for leaf in leaves) / 1024
print((kilobytes("VmHWM") - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
  ("stored", "dtype", "layers", "model"),
  [
    ("float32", "float32", 75, 1),
    ("float16", "bfloat16", 150, 1),
    ("float32", "float32", 75, 4),  # devices, of which each has a fourth
  ],
)
def test_loading_needs_little_more_than_the_weights(
  tmp_path, stored, dtype, layers, model
) -> None:
  width, rng = 1024, np.random.default_rng(0)  # 300 MB in all
  values = {
    f"layers.{i}.weight": rng.random((width, width), np.float32).astype(stored)
    for i in range(layers)
  }
  toy.write(tmp_path / f"{NAME}.safetensors", values)
  root = pathlib.Path(weights.__file__).parents[2]
  command = [sys.executable, "-c", PEAK, tmp_path, dtype, layers, width, model]
  peak = subprocess.run(
    [str(word) for word in command],
    check=True,
    capture_output=True,
    text=True,
    cwd=root,
  )
  print(f"peak / weights: {peak.stdout.strip()} ({dtype})")
  assert 0.9 < float(peak.stdout) <= 1.3

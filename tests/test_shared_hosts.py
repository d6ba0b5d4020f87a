# SPDX-License-Identifier: Apache-2.0
"""Runs whose devices share weights, on one host and on two: real processes."""

import json
import sys

import jax
import numpy as np
import pytest

from tests.test_hosts import MIXTURE, figures, parameters
from tests.test_placement import wide
from tests.toy_processes import finish, start, two_hosts
from tests.toy_training import fit

# Trains where four devices of two hosts share the weights, then where two of
# each host do, from the checkpoint of the first; samples, and loads.
TRAINED = """
import json, pathlib, sys
import jax
from experiments.configs import base
from experiments.runtime import devices

devices.start(base.get_config(), distributed=True)
import numpy as np
from ctrl_jax import parallel, placement
from tests.test_placement import wide
from tests.toy_training import fit

folder = pathlib.Path(sys.argv[1])
fit(folder, 2, **wide(4))
state = fit(folder, 4, **wide(2))
here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
whole = sum(x.nbytes for x in jax.tree.leaves(state))
params = parallel.gather(state.params)

mesh = parallel.make_mesh(model=4)
weights = placement.place(np.ones((64, 128), np.float32), mesh)
mapped = parallel.map_examples(lambda p, _, x: x @ p @ weights.T, mesh)
rows = parallel.shard((np.arange(8), np.ones((8, 64), np.float32)), mesh)
found = parallel.gather(mapped(weights, *rows))
alone = parallel.map_examples(
  lambda _, __, x: x @ weights, parallel.make_mesh(jax.local_devices()[:1])
)
local = np.asarray(alone((), *(np.arange(2), np.ones((2, 64), np.float32))))
print(json.dumps({
  "share": here / whole,
  "w": params["w"].ravel()[:64].tolist(),
  "sampled": float(found.mean()),
  "local": float(local.mean()),
}))
"""


@pytest.mark.slow
def test_two_hosts_share_weights_and_continue_where_fewer_do(tmp_path):
  (tmp_path / "two").mkdir()
  straight = fit(tmp_path / "one", 4, **wide(1))
  hosts = two_hosts([sys.executable, "-c", TRAINED, str(tmp_path / "two")])
  for out, error, code in finish(hosts):
    assert code == 0, error
    found = json.loads(out.splitlines()[-1])
    assert found["share"] < 0.51
    expected = jax.device_get(straight.params["w"]).ravel()[:64]
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5)
    assert (found["sampled"], found["local"]) == (64 * 128, 64)


@pytest.mark.long
def test_a_run_of_two_groups_of_four_is_that_of_eight_devices(tmp_path):
  command = [*MIXTURE, "--config.control.num_steps=4", "--config.devices=8"]
  folders = {model: tmp_path / str(model) for model in (1, 4)}
  for model, folder in folders.items():
    more = [f"--config.sharding.model={model}", f"--workdir={folder}"]
    ((_, error, code),) = finish([start([*command, *more])])
    assert code == 0, error
  expected, measured = (parameters(f, "control") for f in folders.values())
  difference = np.linalg.norm(measured - expected)
  assert difference < 1e-5 * np.linalg.norm(expected)
  expected, measured = map(figures, folders.values())
  assert measured.keys() == expected.keys() and len(measured) > 40
  for name, value in expected.items():
    assert measured[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.long
def test_a_run_where_two_hosts_share_weights_is_that_of_one(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  command = [*MIXTURE, "--config.control.num_steps=4"]
  alone = start([*command, f"--workdir={one}"], JAX_NUM_CPU_DEVICES="4")
  shared = [*command, "--config.sharding.model=4", "--distributed"]
  hosts = two_hosts([*shared, f"--workdir={two}"])
  for _, error, code in finish([alone, *hosts]):
    assert code == 0, error
  expected, measured = parameters(one, "control"), parameters(two, "control")
  difference = np.linalg.norm(measured - expected)
  assert difference < 1e-5 * np.linalg.norm(expected)

# SPDX-License-Identifier: Apache-2.0
"""What a finished run samples with, read again from its folder."""

import json
import pathlib

import numpy as np
import pytest

from ctrl_jax import parallel
from experiments import sample, sampler
from experiments.measures import evaluation
from experiments.runtime import finished_run
from experiments.sampler import Sampler
from tests import toy_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["digits", "gaussian", "mixture"])
def finished(request, tmp_path_factory) -> pathlib.Path:
  return toy_runs.finished(request.param, tmp_path_factory)[0]


@pytest.fixture(scope="module")
def of_gaussian(tmp_path_factory) -> Sampler:
  return sampler.load(str(toy_runs.finished("gaussian", tmp_path_factory)[0]))


@pytest.mark.parametrize("model", [1, pytest.param(4, marks=pytest.mark.long)])
def test_without_data_or_training_a_run_has_the_figures_that_it_had(
  finished, model
):
  """Also where devices share the weights."""
  run = sampler.load(finished)
  settings = run.config.evaluate
  chains = evaluation.controlled(
    run.problem,
    run.policy,
    run.control,
    run.problem.reward_fn,
    num=settings.num_samples,
    seed=run.config.seed,
    chunk=settings.chunk,
    mesh=parallel.make_mesh(model=model),
  )
  results = json.loads((finished / "results.json").read_text())
  ctrl = results["methods"]["ctrl"]
  np.testing.assert_allclose(
    [chains.log_likelihood.mean(), chains.step_kl.sum(1).mean()],
    [ctrl["log_likelihood"], ctrl["path_kl"]],
    rtol=1e-4,
  )


def test_bins_have_the_edges_that_they_had(tmp_path_factory):
  run = toy_runs.finished("digits", tmp_path_factory)[0]
  with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
    edges = arrays["property_edges"]
  assert edges.size == 3
  np.testing.assert_array_equal(sampler.load(run).problem.edges, edges)


def test_a_request_is_told_as_it_is_asked_for(finished):
  run = sampler.load(finished)
  c, y = run.requests(3)
  told = [run.described(*pair) for pair in zip(c, y, strict=True)]
  if run.problem.pretrained.conditions:
    assert told == ["c = 0, y = 0", "c = 0, y = 1", "c = 0, y = 2"]
  else:
    assert told == [f"y = {value:g}" for value in run.problem.controls[:3]]


def test_a_sample_is_the_same_however_many_are_drawn(of_gaussian):
  c, y = of_gaussian.requests(10, y=["0.5", "-1"])
  assert y.tolist() == [0.5, -1.0] * 5 and c.tolist() == [0] * 10
  whole = of_gaussian.draw("ctrl", c, y, seed=3)
  part = of_gaussian.draw("ctrl", c[4:7], y[4:7], seed=3, first=4)
  np.testing.assert_allclose(part.x, whole.x[4:7], rtol=1e-4, atol=1e-5)
  other = of_gaussian.draw("ctrl", c, y, seed=4)
  assert (other.x != whole.x).all()
  # The pre-trained model does not know what is asked for.
  before = of_gaussian.draw("pretrained", c, y, seed=3)
  same = of_gaussian.draw("pretrained", c, y + 1, seed=3)
  np.testing.assert_array_equal(before.x, same.x)
  assert (before.log_weights != same.log_weights).all()


def test_samples_drawn_by_weights_have_the_law_of_the_target(of_gaussian):
  solution = of_gaussian.problem.truth.solution
  which, num = 2, 4000
  wanted = of_gaussian.problem.controls[which]
  c, y = of_gaussian.requests(num, y=[str(wanted)])
  x = sample.resampled(of_gaussian, c, y, seed=0)
  mean, spread = solution.target.mean[which], solution.target.covariance
  paths = of_gaussian.draw(
    "ctrl", *(np.repeat(a, sample.PATHS) for a in (c, y)), seed=0
  )
  weights = np.exp(paths.log_weights - paths.log_weights.max())
  effective = weights.sum() ** 2 / (weights**2).sum()
  error = np.sqrt(np.diag(spread) * (1 / effective + 1 / num))
  assert effective > 100
  assert np.abs((x.mean(0) - mean) / error).max() < 4


def test_a_y_that_no_path_has_is_told(of_gaussian):
  c, y = of_gaussian.requests(3, y=["1e25"])
  with pytest.raises(ValueError, match=r"y = 1e\+25: none of 200 paths"):
    sample.resampled(of_gaussian, c, y, seed=0)


def test_names_that_are_not_there_are_refused_with_near_ones(of_gaussian):
  with pytest.raises(ValueError, match="no condition"):
    of_gaussian.requests(3, c=["cat"])
  with pytest.raises(ValueError, match="'high': it is a real number"):
    of_gaussian.requests(3, y=["high"])
  names = ("smiling", "serious", "asleep")
  assert sampler._find("serious", names, "y") == 1
  assert sampler._find("2", names, "y") == 2
  with pytest.raises(ValueError, match="y is 'smilin': there are 3, .*smiling"):
    sampler._find("smilin", names, "y")
  with pytest.raises(ValueError, match="y is '3': there are 3"):
    sampler._find("3", names, "y")


def test_requests_take_turns(finished):
  run = sampler.load(finished)
  problem = run.problem
  cells = problem.num_conditions * problem.num_controls
  c, y = run.requests(2 * cells)
  asked = {(int(a), float(b)) for a, b in zip(c, y, strict=True)}
  assert len(asked) == cells and len(c) == 2 * cells


def test_what_is_no_sampler_is_told(tmp_path, tmp_path_factory):
  finished, _ = toy_runs.finished("gaussian", tmp_path_factory)
  with pytest.raises(FileNotFoundError, match=r"no config\.json there"):
    sampler.load(tmp_path)
  folder = tmp_path / "damaged"
  folder.mkdir()
  for file in ("config.json", "results.json"):
    (folder / file).write_bytes((finished / file).read_bytes())
  with pytest.raises(FileNotFoundError, match=r"no sampler\.npz there"):
    sampler.load(folder)
  (folder / finished_run.LEARNED).write_bytes(b"PK nothing")
  with pytest.raises(ValueError, match="is damaged"):
    sampler.load(folder)
  np.savez(folder / finished_run.LEARNED, version=np.int32(99))
  with pytest.raises(ValueError, match="is of version 99"):
    sampler.load(folder)

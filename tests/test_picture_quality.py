# SPDX-License-Identifier: Apache-2.0
"""Figures of quality: of which samples, in which tables, of which pictures."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import metrics
from ctrl_jax.datasets import brisque
from experiments.configs import sd15_multitask
from experiments.measures import scores
from experiments.measures.weighting import Cells
from experiments.problems import (
  classifiers,
  picture_quality,
  reliability,
  stable_diffusion,
  stable_quantities,
)
from experiments.reporting import summary, tables
from tests import toy_results

N, C, Y = 6, 3, 2


def test_figures_are_means_over_weighted_samples_with_their_conditions() -> (
  None
):
  """Sample n of (c, y) is [n, c, y]; all weight is on one n of each (c, y)."""
  index = np.moveaxis(np.indices((N, C, Y)), 0, -1).astype(np.float32)
  chosen = np.array([[0, 5], [2, 3], [4, 1]])
  right = index[..., 0] == chosen[None]
  cells = Cells(index, np.where(right, 0.0, -1e9), np.zeros((N, C, Y)))

  def of_condition(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    np.testing.assert_array_equal(samples[:, 1], c)
    assert len(samples) == scores.PICTURES * C * Y
    return 100 * samples[:, 0] + samples[:, 2]

  def sometimes(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.where(c == 1, np.nan, c.astype(float))

  def never(samples: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.full(len(samples), np.nan)

  figures = {"a": of_condition, "b": sometimes, "c": None, "d": never}
  found = scores.quality(cells, figures, seed=0)
  assert found["a"] == pytest.approx(100 * chosen.mean() + 0.5)
  assert found["b"] == 1.0
  assert found["c"] is None and found["d"] is None
  assert scores.quality(cells, {}, seed=0) == {}


def test_tables_have_them_where_they_were_measured() -> None:
  results = toy_results.make_results(np.random.default_rng(0))
  assert "BRISQUE" not in summary.text(results)
  for method in results["methods"].values():
    method |= {"clip_score": None, "brisque": None}
  assert tables.main_columns(results) == list(tables.COLUMNS)
  results["methods"]["ctrl"]["brisque"] = 41.26
  (line,) = (x for x in summary.text(results).splitlines() if "41.3" in x)
  assert line.startswith("ctrl ") and line.endswith("41.3")
  assert "CLIP score" not in summary.text(results)


def judge_of(sign: int) -> classifiers.Predictor:
  return classifiers.Predictor(
    lambda x, c, y: sign * x * y,
    lambda x: jnp.stack([sign * x, -sign * x], axis=1),
    lambda x: sign * x[:, None],
    {"a": 1.0},
    {},
    {},
  )


def test_a_judge_after_a_function_is_one_of_its_inputs() -> None:
  found = classifiers.after(judge_of(1), lambda x: x**2 + 1)
  x, y = jnp.array([1.0, 2.0]), jnp.array([1, 3])
  assert found.reward_fn(x, None, y).tolist() == [2, 15]
  assert found.logits_fn(x).tolist() == [[2, -2], [5, -5]]
  assert found.features_fn(x).tolist() == [[2], [5]]
  assert found.metrics == {"a": 1.0}


def test_latents_are_decoded_once_for_all_factors() -> None:
  decoded = []

  def decode(x: jnp.ndarray) -> jnp.ndarray:
    decoded.append(len(x))
    return x + 1

  joint = classifiers.joint([judge_of(1), judge_of(-1)], (2, 3))
  reward_fn = classifiers.after(joint, decode).reward_fn
  # (y1, y2) = (1, 2) and (0, 1) of x + 1 = 2 and 3: x (y1 - y2).
  found = reward_fn(jnp.array([1.0, 2.0]), None, jnp.array([5, 1]))
  assert found.tolist() == [-2, -3]
  assert decoded == [2]


@pytest.mark.slow
def test_pictures_of_latents_are_judged(tmp_path: pathlib.Path) -> None:
  config = sd15_multitask.get_config("tiny")
  clip = stable_quantities.read_clip(config, tmp_path)
  assert clip is not None
  problem = stable_diffusion.load(config, tmp_path)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((70, *problem.sample_shape), np.float32)
  c = rng.integers(0, 3, len(x))
  pictures = problem.pictures(x)
  assert pictures.shape == (70, 16, 16, 3)
  found = picture_quality.make(problem, clip, size=16)
  assert found["brisque"] is not None and found["clip_score"] is not None
  np.testing.assert_array_equal(found["brisque"](x, c), brisque.score(pictures))
  texts = clip.texts([problem.pretrained.conditions[i] for i in c])
  expected = metrics.clip_score(jax.jit(clip.images)(pictures), texts)
  np.testing.assert_allclose(found["clip_score"](x, c), expected, atol=1e-3)
  assert np.ptp(expected) > 0.1
  assert picture_quality.make(problem, None, size=8) == {
    "clip_score": None,
    "brisque": None,
  }


def test_an_example_without_logits_is_wrong_and_counted() -> None:
  logits = np.array([[2.0, 0.0], [0.0, 1.0], [np.nan, 0.0], [-np.inf, 0.0]])
  labels = np.zeros(4, np.int32)  # argmax would call the third one right
  found, curves = reliability.figures(logits, labels, 1.0)
  known, _ = reliability.figures(logits[:2], labels[:2], 1.0)
  assert found["accuracy"] == 0.25 and found["undefined"] == 0.5
  assert found["nll"] == known["nll"] and "undefined" not in known
  assert curves["reliability_count"].sum() == 2

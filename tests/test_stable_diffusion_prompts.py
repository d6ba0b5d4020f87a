# SPDX-License-Identifier: Apache-2.0
"""Prompts of Stable Diffusion: some are trained, some evaluated, some both."""

import pathlib
from typing import Any

import numpy as np
import pytest

from ctrl_jax.stable_diffusion import prompts
from experiments.configs import rules, sd15_compressibility
from experiments.measures import evaluation, evidence
from experiments.measures.evaluation import Reference
from experiments.problems import stable_diffusion
from experiments.problems.problem import Problem

LONG = "a cat " * 40  # a letter is a token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  return tmp_path_factory.mktemp("prompts")


def load(folder: pathlib.Path, trained: Any, evaluated: Any) -> Problem:
  config = sd15_compressibility.get_config("tiny")
  config.prompts, config.evaluate.prompts = trained, evaluated
  rules.validate(config)
  return stable_diffusion.load(config, folder)


@pytest.mark.slow
def test_evaluated_prompts_come_first_and_training_asks_for_its_own(
  folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  problem = load(folder, ("dog", LONG, "cat"), ("cat", "panda", LONG))
  assert problem.pretrained.conditions == ("cat", "panda", LONG, "dog")
  assert (problem.num_conditions, problem.num_sampled) == (3, 4)
  facts = problem.facts
  assert facts["prompts"] == ["cat", "panda", LONG]
  assert facts["unseen_prompts"] == ["panda"]
  encoded = prompts.encode(folder / "model", problem.pretrained.conditions)
  np.testing.assert_array_equal(
    problem.pretrained.params["prompts"].tokens, encoded.prompts.tokens
  )
  # In two lists, and too long: said once.
  warnings = capsys.readouterr().err.splitlines()
  assert warnings == [f"warning: too long, and cut: {LONG!r}"]

  log_z = np.arange(16, dtype=np.float32).reshape(4, 4)
  asked = problem.requests(log_z)
  # In the order of training, whatever is evaluated: dog, LONG, cat.
  assert asked["c"].tolist() == np.repeat([3, 2, 0], 4).tolist()
  np.testing.assert_array_equal(
    asked["log_evidence"], log_z[asked["c"], asked["y"]]
  )

  # Of the reference those that are evaluated are left, with their own log Z.
  rng = np.random.default_rng(0)
  x = rng.standard_normal((5, 4, *problem.sample_shape), np.float32)
  log_p = -rng.random((5, 4, 4), np.float32)
  log_z = evidence.of_samples(problem, log_p, 2.0)
  found = evaluation.evaluated(problem, Reference(x, log_p, log_z))
  np.testing.assert_array_equal(found.samples, x[:, :3])
  expected = np.log(np.exp(2.0 * log_p[:, :3]).mean(0))
  np.testing.assert_allclose(found.evidence.table.mean, expected, rtol=1e-5)


@pytest.mark.slow
def test_without_prompts_of_its_own_an_evaluation_has_those_of_training(
  folder: pathlib.Path,
) -> None:
  problem = load(folder, ("cat", "dog"), ())
  assert (
    problem.pretrained.conditions == ("cat", "dog")
    and problem.num_conditions == 2
  )
  assert set(problem.requests(np.zeros((2, 4)))["c"]) == {0, 1}
  assert problem.facts["unseen_prompts"] == []


@pytest.mark.parametrize("field", ["prompts", "evaluate.prompts"])
@pytest.mark.parametrize("value", [("cat", "cat"), ("cat", 1.0)])
def test_prompts_are_different_texts(field: str, value: Any) -> None:
  config = sd15_compressibility.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=f"^{field} is .*: use different texts"):
    rules.validate(config)


def test_the_papers_prompts_have_two_that_training_never_asks_for() -> None:
  config = sd15_compressibility.get_config()
  assert len(config.prompts) == 45 and len(config.evaluate.prompts) == 8
  unseen = set(config.evaluate.prompts) - set(config.prompts)
  assert unseen == {"peacock", "panda"}

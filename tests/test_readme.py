# SPDX-License-Identifier: Apache-2.0
"""What README and CONTRIBUTING say is so: the code runs, the map is whole."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def optimised():
  """Programs compiled as a user's are, for this one runs long enough."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_quickstart(capsys):
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  names: dict = {}
  exec(compile(code, "README.md", "exec"), names)
  assert len(code.splitlines()) <= 20
  assert capsys.readouterr().out.startswith("gap 0.0")
  certified = names["tuned"].certificate(jax.random.key(3))
  gap = certified.certificate.gap
  # Untrained, the gap is about 0.9 nat.
  assert gap.mean < 0.1 + 3 * gap.stderr < 0.2 < certified.before
  assert certified.certificate.ess > 0.8
  assert (names["samples"][:, 0] > 0).mean() > 0.8


def test_the_site_begins_with_the_same_example():
  code = re.findall(r"```python\n.*?```", README, re.DOTALL)
  page = (ROOT / "docs" / "index.md").read_text()
  assert code == re.findall(r"```python\n.*?```", page, re.DOTALL)


def test_every_part_and_command_of_experiments_is_on_the_map():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  _, _, table = text.partition("| what | where |\n")
  table, _, _ = table.partition("\n\n")
  folder = ROOT / "experiments"
  parts = {path.parent.name for path in folder.glob("*/__init__.py")}
  commands = {
    path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()
  }
  assert set(re.findall(r"`(\w+)`", table)) == parts | commands


def test_what_a_new_part_is_named_in_is_there():
  page = (ROOT / "docs" / "design.md").read_text()
  places = re.findall(r"((?:`\w+`(?: and )?)+) of\s`([\w/]+\.py)`", page)
  assert len(places) > 6
  for names, path in places:
    text = (ROOT / "experiments" / path).read_text()
    for name in re.findall(r"`(\w+)`", names):
      assert re.search(rf"^(def )?{name}\b", text, re.MULTILINE), (name, path)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_it_links_to_is_there(page):
  links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
  inside = [link for link in links if "://" not in link]
  assert inside
  assert [link for link in inside if not (ROOT / link).exists()] == []


def test_what_families_are_told_to_be_in_is_there():
  page = ROOT / "docs" / "families.md"
  links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text())
  assert len(links) > 30
  assert all((page.parent / link).is_file() for link in links)
  parts = ("objectives", "guidance")
  modules = [m for p in parts for m in (ROOT / "ctrl_jax" / p).glob("*.py")]
  helpers = {"__init__", "progress", "denoising"}
  there = {pathlib.Path(link).stem for link in links}
  assert {module.stem for module in modules} - helpers <= there

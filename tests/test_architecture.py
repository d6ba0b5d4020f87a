# SPDX-License-Identifier: Apache-2.0
"""The rules of the code base that a reader relies on, checked on its syntax.

Every rule is a function of source text; counter-examples stand further below.
"""

import ast
import graphlib
import pathlib
from collections.abc import Callable, Iterable, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LICENSE_LINE = "# SPDX-License-Identifier: Apache-2.0\n"
MAX_LINES = 260

# A part of ctrl_jax imports from itself and from layers before its own, alone.
LIBRARY = """
types choices, files json_file sde metrics frechet weights placement divided
nearest squeeze coresets, parallel kernels memorization, truncation learner flow
predictions models datasets checkpoint control_file, sampling linear_quadratic
group_dro training fitting hypotheses, paths, rewards policy trust doubt
alternatives, pretrained head_view transitions units composition, steering
students interpolation, generators divergence, objectives guidance bridge
distillation self_labels, self_guided, self_guided_training evidence, labels
certification headed, controlled self_fitted, tuning, stable_diffusion,
stable_diffusion_3, diffusers
"""
# The same of experiments, from the schema of configs to the commands.
EXPERIMENTS = """
configs reporting, runtime, problems, measures, training, baselines, outputs
sampler, composed, playing, stages prior_stages, generator_stages
interpolation_stages, run compare exactness export sample play distill prune
interpolate, benchmarks studies faults
"""
# Only experiments know configs, flags, logs and figures.
NOT_IN_LIBRARY = {"absl", "experiments", "jinja2", "matplotlib"} | {
  *("ml_collections", "tensorboardX", "tqdm"),
}
ENTRANCES = {"ctrl_jax", "ctrl_jax.diffusers", "experiments"}  # may import
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill"}


def read_sources(*folders: str) -> dict[str, str]:
  """Source text by module name, of all modules under the given folders."""
  paths = sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))
  names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
  texts = [path.read_text(encoding="utf-8") for path in paths]
  return dict(zip(names, texts, strict=True))


def imports(source: str) -> set[str]:
  """Dotted names that a source imports, a relative one with its dots.

  `from a import b` counts as `a` and as `a.b`, for b may be a module.
  """
  names: set[str] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      base = "." * node.level + (node.module or "")
      names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
  return names


def roots(names: Iterable[str]) -> set[str]:
  """The top-level packages of dotted names."""
  return {name.partition(".")[0] for name in names}


def import_graph(texts: Mapping[str, str]) -> dict[str, set[str]]:
  """Which of the given modules each of them imports."""
  return {name: imports(text) & texts.keys() for name, text in texts.items()}


def layer_faults(graph: Mapping[str, set[str]], layers: str) -> list[str]:
  """Modules of unknown layer, and imports that do not point upwards."""
  rank = {p: i for i, ps in enumerate(layers.split(",")) for p in ps.split()}
  part = {name: name.split(".")[1] for name in graph}
  faults = [f"{n} is in no layer" for n in graph if part[n] not in rank]
  for name, targets in graph.items():
    for target in targets:
      outside = part[name] != part[target]
      if outside and rank.get(part[target], 99) >= rank.get(part[name], 99):
        faults.append(f"{name} imports {target}")
  return faults


def import_cycle(graph: Mapping[str, set[str]]) -> list[str]:
  """Modules that import each other in a circle; empty if there are none."""
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    return list(error.args[1])
  return []


def library_faults(_: str, source: str) -> list[str]:
  """Imports that tie the library to one way of running experiments."""
  return sorted(roots(imports(source)) & NOT_IN_LIBRARY)


def statement_faults(_: str, source: str) -> list[str]:
  """Statements that no module outside tests may contain."""
  faults = [f"imports {n}" for n in roots(imports(source)) & PICKLES]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assert):
      faults.append(f"line {node.lineno}: assert")
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      value = node.value
      if not (isinstance(value, ast.Constant) and value.value is False):
        faults.append(f"line {value.lineno}: allow_pickle")
  return faults


def file_faults(name: str, source: str) -> list[str]:
  """What no module of any folder may do, tests included."""
  if not source:  # an empty __init__.py
    return []
  tree, names = ast.parse(source), imports(source)
  package = name.endswith("__init__") and name[:-9] not in ENTRANCES
  parts = {part for other in names for part in other.split(".")}
  parts |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
  rules = {
    "starts without the licence line": not source.startswith(LICENSE_LINE),
    "has no docstring": ast.get_docstring(tree) is None,
    f"exceeds {MAX_LINES} lines": len(source.splitlines()) > MAX_LINES,
    "is named utils, not by what it does": name.endswith(".utils"),
    "imports by a relative name": "" in roots(names),
    # A re-export would hide from import_graph where a name comes from.
    "imports in an __init__": package and bool(names),
    "imports TensorFlow": bool(roots(names) & {"tensorflow", "clu"}),
    "uses a private _src package": "_src" in parts,
  }
  return [fault for fault, broken in rules.items() if broken]


def find_faults(
  check: Callable[[str, str], list[str]], *folders: str
) -> dict[str, list[str]]:
  """The faults of every module that has some; the modules must be there."""
  texts = read_sources(*folders)
  assert roots(texts) == set(folders)
  faults = {name: check(name, text) for name, text in texts.items()}
  return {name: found for name, found in faults.items() if found}


def test_every_file_keeps_the_rules() -> None:
  assert not find_faults(file_faults, "ctrl_jax", "experiments", "tests")


def test_shipped_code_has_no_assert_and_no_pickle() -> None:
  assert not find_faults(statement_faults, "ctrl_jax", "experiments")


def test_library_knows_no_experiment() -> None:
  assert not find_faults(library_faults, "ctrl_jax")


@pytest.mark.parametrize(
  ("folder", "layers", "importer", "imported"),
  [
    ("ctrl_jax", LIBRARY, "kernels", "sde"),
    ("experiments", EXPERIMENTS, "run", "stages"),
  ],
)
def test_imports_point_one_way(
  folder: str, layers: str, importer: str, imported: str
) -> None:
  graph = import_graph(read_sources(folder))
  assert f"{folder}.{imported}" in graph[f"{folder}.{importer}"]
  packages = {name for name in graph if name.endswith("__init__")}
  modules = {n: graph[n] for n in graph.keys() - packages}
  assert not layer_faults(modules, layers)


def test_no_import_cycles() -> None:
  assert not import_cycle(import_graph(read_sources("ctrl_jax", "experiments")))


# Each rule, broken.

HEALTHY = f'{LICENSE_LINE}"""Doc."""\nimport tensorflow_datasets as tfds\n'


@pytest.mark.parametrize(
  ("source", "expected"),
  [
    ("import a.b as c", {"a.b"}),
    ("from a import b", {"a", "a.b"}),
    ("def f():\n  import late", {"late"}),
  ],
)
def test_imports_sees_every_form(source: str, expected: set[str]) -> None:
  assert imports(source) == expected


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("sde", "from ctrl_jax.kernels import Kernel"),  # from below
    ("rewards", "from ctrl_jax import policy"),  # from beside
    ("models.dit", "import ctrl_jax.paths"),  # from inside a package
    ("misc", ""),  # of no layer
  ],
)
def test_layer_faults_are_found(name: str, source: str) -> None:
  texts = {"kernels": "", "policy": "", "paths": ""}
  assert not layer_faults(
    import_graph({f"ctrl_jax.{n}": "" for n in texts}), LIBRARY
  )
  texts = {f"ctrl_jax.{n}": t for n, t in (texts | {name: source}).items()}
  assert len(layer_faults(import_graph(texts), LIBRARY)) == 1


def test_cycles_are_found() -> None:
  texts = {"p.a": "from p import b", "p.b": "from p.c import f", "p.c": ""}
  assert not import_cycle(import_graph(texts))
  assert import_cycle(import_graph(texts | {"p.c": "import p.a"}))


@pytest.mark.parametrize("name", ["experiments.run", "absl.flags", "tqdm"])
def test_library_faults_are_found(name: str) -> None:
  assert library_faults("", f"from {name} import anything")
  assert not library_faults("", HEALTHY)


@pytest.mark.parametrize(
  "source",
  [
    "assert True",
    "from pickle import load",
    "np.load('x', allow_pickle=True)",
    "np.load('x', allow_pickle=flag)",
  ],
)
def test_statement_faults_are_found(source: str) -> None:
  assert len(statement_faults("", source)) == 1
  assert not statement_faults("", "np.load('x', allow_pickle=False)")


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("a.b", '"""Doc."""\n'),
    ("a.b", LICENSE_LINE),
    ("a.b", HEALTHY + "\n" * MAX_LINES),
    ("a.utils", HEALTHY),
    ("a.b.__init__", HEALTHY),
    ("a.b", HEALTHY + "from . import c"),
    ("a.b", HEALTHY + "import tensorflow as tf"),
    ("a.b", HEALTHY + "from jax._src import core"),
    ("a.b", HEALTHY + "jax._src.core"),
  ],
)
def test_file_faults_are_found(name: str, source: str) -> None:
  assert len(file_faults(name, source)) == 1
  assert not file_faults("a.b", HEALTHY)

# SPDX-License-Identifier: Apache-2.0
"""The report of a synthetic run: complete, self-contained, true to its data."""

import copy
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reporting import (
  report,
  sample_figures,
  style,
  summary,
  tables,
)
from tests.toy_results import make_arrays, make_results, make_run

FIGURES = [
  "confusion", "gap", "kl", "property", "reliability", "samples", "to_label",
  "training",
]  # fmt: skip


class Page(html.parser.HTMLParser):
  """What a browser would load, run and show."""

  def __init__(self, text):
    super().__init__()
    self.links, self.tags, self.cells, self.text = [], [], [], ""
    self.inside = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]
    self.inside = tag in ("td", "th")
    if self.inside:
      self.cells.append("")

  def handle_endtag(self, tag):
    self.inside = False

  def handle_data(self, data):
    self.text += data
    if self.inside:
      self.cells[-1] += data


@pytest.fixture(scope="module")
def results():
  return make_results(np.random.default_rng(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory, results):
  arrays = make_arrays(np.random.default_rng(0))
  return make_run(tmp_path_factory.mktemp("run"), results, arrays)


@pytest.fixture(scope="module")
def text(run):
  path = report.write(run)
  assert path == run / "report.html"
  return path.read_text()


def test_every_figure_is_saved_and_inlined(run, text):
  saved = sorted((run / "figures").iterdir())
  assert [path.stem for path in saved] == FIGURES
  assert all(path.read_bytes()[:4] == b"\x89PNG" for path in saved)
  assert text.count("data:image/png;base64,") == len(FIGURES)


def test_page_is_self_contained(text):
  page = Page(text)
  assert page.links
  assert all(link.startswith("data:") for link in page.links)
  assert not {"script", "link", "iframe"} & set(page.tags)
  assert not re.search(r"url\(|@import|https?://", text)


def test_sections_are_in_order(text):
  order = re.findall(r'<section id="(\w+)"', text)
  assert order == [
    "methods", "samples", "property", "confusion", "training", "kl",
    "reliability", "to_label", "gap", "configuration", "environment",
  ]  # fmt: skip


def test_page_shows_the_same_cells_as_the_terminal(results, text):
  shown = Page(text).cells
  for row in tables.cells(results, tables.COLUMNS):
    assert all(cell in shown for cell in row[1:])


def test_certificate_is_told_to_who_believes_the_classifier_and_who_not(
  text, results
):
  line = "to 0.131 nats believing the classifier, to 0.563 nats not"
  assert line in summary.text(results)
  assert line in " ".join(Page(text).text.split())
  known = results | {"doubt": {}}
  assert "believing" not in summary.text(known)


def test_headline_is_true_of_a_gap_that_grew(tmp_path, results):
  worse = copy.deepcopy(results) | {"judged_by": "judge"}
  worse["methods"]["ctrl"]["gap"] = {"mean": 0.5, "stderr": 0.1}
  worse["methods"]["pretrained"]["gap"] = {"mean": 0.2, "stderr": 0.1}
  page = Page(report.write(make_run(tmp_path / "run", worse, {})).read_text())
  said = " ".join(page.text.split())
  assert "0.500 ± 0.100 nats from the law" in said
  assert "asked to sample; before tuning it was 0.200 ± 0.100." in said
  assert "as judged by a second classifier" in said


def test_every_sample_to_label_is_drawn_above_what_it_was_asked_to_be():
  images = np.linspace(-1, 1, 13 * 4).reshape(13, 2, 2)
  sheet = sample_figures.contact_sheet(
    images, np.arange(13), np.arange(13) % 3 - 1, control_names=["low", "high"]
  )
  drawn = [ax for ax in sheet.axes if ax.images]
  assert len(drawn) == 13
  for i, ax in enumerate(drawn):
    np.testing.assert_allclose(
      ax.images[0].get_array(), (images[i] + 1) / 2, atol=1e-6
    )
    asked = ["unasked", "low", "high"][i % 3]
    assert ax.get_title() == f"{i + 1}: c = {i}\n{asked}"


def test_run_that_measured_little(tmp_path, results):
  bare = {key: results[key] for key in ("experiment", "seed", "problem")}
  names = ("pretrained", "ctrl")
  bare |= {"methods": {name: {"gap": None} for name in names}}
  (tmp_path / "results.json").write_text(json.dumps(bare))
  text = report.write(tmp_path).read_text()
  assert not list((tmp_path / "figures").iterdir())
  assert "<img" not in text
  assert Page(text).cells.count("–") == 2 * len(
    tables.COLUMNS + tables.MORE_COLUMNS
  )


def test_vectors_are_points(tmp_path, results):
  rng = np.random.default_rng(0)
  arrays = {
    f"points_{name}": rng.normal(size=(4, 50, 2))
    for name in ("pretrained", "pretrained_resampled", "ctrl")
  }
  results["methods"]["ctrl"] |= {
    "sliced_wasserstein": 0.05, "sliced_wasserstein_ratio": 1.07,
    "pareto_k": 0.9, "effective": 12.3, "cell": "y = 2", "doubtful": 1,
  }  # fmt: skip
  run = make_run(tmp_path / "run", results, arrays)
  text = report.write(run).read_text()
  assert (run / "figures" / "points.png").exists()
  assert 'id="samples"' not in text and 'id="points"' in text
  assert "Against the exact target" in text
  assert "1.07" in Page(text).cells
  assert "least known of y = 2: 12 effective samples, Pareto k 0.90" in text


def test_strings_are_escaped(tmp_path, results):
  hostile = "<script>alert('&')</script>"
  results = copy.deepcopy(results)
  results |= {"experiment": hostile, "variant": hostile, "device": hostile}
  results["versions"] = {hostile: hostile}
  results["methods"] = {hostile: {}}
  run = make_run(tmp_path / "run", results, {})
  (run / "config.json").write_text(json.dumps({"name": hostile}))
  page = Page(report.write(run).read_text())
  assert "script" not in page.tags
  assert page.text.count(hostile) >= 7


@pytest.mark.parametrize(("conditions", "ticks"), [(1, []), (4, [0, 1, 2, 3])])
def test_every_sample_of_a_request_is_drawn(conditions, ticks):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, conditions, 3, 8, 8))
  fig = sample_figures.sample_grids(images, images, control_names=["a", "b"])
  for ax in fig.axes:
    (image,) = ax.images
    shown = np.asarray(image.get_array()).reshape(2, 9, 3 * conditions, 9)
    np.testing.assert_allclose(
      shown[:, :8, :, :8].swapaxes(1, 2),
      (images.reshape(2, -1, 8, 8) + 1) / 2,
    )
    assert [int(t.get_text()) for t in ax.get_xticklabels()] == ticks


FORMULAS = ["$\\frac{$", "$5 to $9", r"\$x$ \\$", "$"]


def test_labels_are_no_formulas(tmp_path, results):
  results = copy.deepcopy(results)
  results |= {"control_names": FORMULAS, "property_name": FORMULAS[0]}
  results["methods"][FORMULAS[0]] = results["methods"]["ctrl"]
  arrays = make_arrays(np.random.default_rng(0))
  run = make_run(tmp_path / "run", results, arrays)
  report.write(run)
  drawn = {file.stem for file in (run / "figures").iterdir()}
  assert drawn == set(FIGURES)


@pytest.mark.parametrize("text", [*FORMULAS, "no dollar"])
def test_a_text_is_drawn_as_it_stands(text):
  def draw(shown, **settings):
    fig = Figure((2, 1), dpi=50)
    fig.text(0.1, 0.5, shown, **settings)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.array(canvas.buffer_rgba())

  assert np.array_equal(draw(style.literal(text)), draw(text, parse_math=False))


def test_a_failed_write_leaves_the_old_page(run, text, monkeypatch):
  def full_disk(source, target):
    raise OSError("No space left on device")

  before = set(run.rglob("*"))
  monkeypatch.setattr(pathlib.Path, "replace", full_disk)
  with pytest.raises(OSError, match="space"):
    report.write(run)
  assert (run / "report.html").read_text() == text
  assert set(run.rglob("*")) == before


def test_missing_results_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"results\.json"):
    report.write(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""The report of a finished run: one self-contained HTML page.

`write` turns what the stages left in a run's folder into figures/*.png and
report.html, which inlines every figure and needs neither script nor network.
Whatever a run did not measure, a null or an absent array, is left out of the
figures and is a dash in a table.
"""

import base64
import functools
import json
import pathlib

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ctrl_jax import files
from experiments.reporting import (
  comparison_figures,
  finished,
  sample_figures,
  style,
  summary,
  tables,
  training_figures,
)

HISTOGRAMS = ("pretrained", "pretrained_resampled", "ctrl")
LOSS_STAGES = ("prior", "classifier")
RELIABILITY_FIELDS = ("confidence", "accuracy", "count")
HEAT_MAPS = {
  "gap": "gap_table",
  "log Z": "log_evidence_table",
  "effective samples behind log Z": "effective_table",
  "doubt of the classifier": "doubt_table",
}


def _control_names(results: tables.Results) -> list[str]:
  count = results["problem"]["num_controls"]
  return results.get("control_names") or [f"y = {y}" for y in range(count)]


def _draw_samples(run: finished.Run) -> dict[str, Figure]:
  """Figures of what the methods sample; only those that were measured."""
  a, results, names = run.arrays, run.results, _control_names(run.results)
  drawn = {}
  if {"samples_pretrained", "samples_ctrl"} <= a.keys():
    drawn["samples"] = sample_figures.sample_grids(
      a["samples_pretrained"], a["samples_ctrl"], control_names=names
    )
  values = {
    method: a[f"property_{method}"]
    for method in HISTOGRAMS
    if np.isfinite(a.get(f"property_{method}", np.nan)).any()
  }
  if values and "property_edges" in a:
    drawn["property"] = sample_figures.property_histograms(
      values,
      a["property_edges"],
      control_names=names,
      property_name=results.get("property_name") or "controlled quantity",
    )
  points = {
    method: a[f"points_{method}"]
    for method in HISTOGRAMS
    if f"points_{method}" in a
  }
  if points and next(iter(points.values())).shape[-1] > 1:
    drawn["points"] = sample_figures.point_clouds(points, control_names=names)
  if "to_label" in a and a["to_label"].ndim > 2 and len(a["to_label"]):
    drawn["to_label"] = sample_figures.contact_sheet(
      a["to_label"], a["to_label_c"], a["to_label_y"], control_names=names
    )
  if "clusters" in a:
    drawn["clusters"] = sample_figures.cluster_rows(
      a["clusters"], control_names=names
    )
  counts = {
    name: np.array(method["confusion"])
    for name, method in results["methods"].items()
    if method.get("confusion") is not None
  }
  if counts:
    drawn["confusion"] = sample_figures.confusion_matrices(
      counts, control_names=names, judge=tables.judge(results)
    )
  return drawn


def _draw_training(run: finished.Run) -> dict[str, Figure]:
  """Figures of how the policy came about; only those that were measured."""
  a, names = run.arrays, _control_names(run.results)
  drawn = {}
  stages = {stage: finished.series(run, stage, "loss") for stage in LOSS_STAGES}
  losses = {k: v for k, v in stages.items() if len(v["step"])}
  control = finished.series(run, "control", "objective", "log_evidence")
  if len(control["step"]):
    drawn["training"] = training_figures.training_curves(control, losses)
  if {"kl_weight", "kl_spent"} <= a.keys():
    drawn["kl"] = training_figures.kl_schedule(
      a["kl_weight"],
      a["kl_spent"],
      preconditioned=a.get("kl_weight_preconditioned"),
      times=a.get("times"),
    )
  curves = {}
  for when, suffix in (("before", "_before"), ("after", "")):
    fields = [f"reliability_{f}{suffix}" for f in RELIABILITY_FIELDS]
    if set(fields) <= a.keys():
      curves[when] = [a[field] for field in fields]
  if curves:
    drawn["reliability"] = training_figures.reliability(curves)
  maps = {
    title: a[field]
    for title, field in HEAT_MAPS.items()
    if np.isfinite(a.get(field, np.nan)).any()
  }
  if maps:
    drawn["gap"] = training_figures.gap_heat_maps(
      maps, control_names=names, bounds=a.get("bound_table")
    )
  return drawn


def _images(run: finished.Run, folder: pathlib.Path) -> dict[str, str]:
  """Saves every figure as a PNG; returns them as data URIs by name."""
  images = {}
  run = run._replace(results=style.literal(run.results))
  with matplotlib.rc_context(style.STYLE):
    drawn = _draw_samples(run) | _draw_training(run)
    if compared := run.results.get("comparison"):
      groups = {name: [entry] for name, entry in compared.items()}
      drawn["comparison"] = comparison_figures.frontier(groups)
    for name, figure in drawn.items():
      path = folder / f"{name}.png"
      save = functools.partial(figure.savefig, format="png")
      files.write_whole(path, save)
      encoded = base64.b64encode(path.read_bytes()).decode()
      images[name] = f"data:image/png;base64,{encoded}"
  return images


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Writes workdir/figures/*.png and the page workdir/report.html.

  Returns:
    The path of the page, a single file that can be sent by itself.

  Raises:
    FileNotFoundError: workdir holds no results.json.
  """
  run = finished.load(workdir)
  compared = {"methods": run.results.get("comparison") or {}}
  folder = workdir / "figures"
  folder.mkdir(exist_ok=True)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template("report.html.jinja").render(
    results=run.results,
    methods=run.results["methods"],
    images=_images(run, folder),
    tables={
      heading: (
        [c.heading for c in columns],
        tables.cells(results, columns),
      )
      for heading, results, columns in (
        ("main", run.results, tables.main_columns(run.results)),
        ("more", run.results, tables.more_columns(run.results)),
        (
          "exact",
          run.results,
          tables.measured(run.results, tables.EXACT_COLUMNS),
        ),
        (
          "compared",
          compared,
          tables.compared_columns(run.results),
        ),
      )
    },
    warnings=summary.warnings(run.results),
    certified=summary.certified(run.results),
    copies=summary.copies(run.results),
    config=json.dumps(run.config, indent=2) if run.config else "",
    label=style.label,
    number=tables.number,
  )
  path = workdir / "report.html"
  files.write_whole(path, lambda file: file.write(page.encode()))
  return path

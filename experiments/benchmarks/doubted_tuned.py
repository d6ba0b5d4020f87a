# SPDX-License-Identifier: Apache-2.0
"""A control that was tuned for a classifier of few labels, against the truth.

`ctrl_jax.tune` with what `fit_labels` made of n pairs; the true gap is that of
the same sampler to the target of the law that drew the labels.
"""

from typing import Any

import jax

import ctrl_jax
from ctrl_jax import certification, doubt, rewards
from experiments.benchmarks import doubted
from experiments.problems import exact
from experiments.reporting import tables

HEADINGS = (
  "labels,region deleted,seed,gap measured,doubt,gap and doubt,true gap"
)
SIZES: dict[str, Any] = {
  "num": 4000,
  "num_reference": 20_000,
  "num_bridge": 1000,
}


def row(seed: int, num: int, *, deleted: bool, updates: int) -> list[str]:
  """Measures one control."""
  case = doubted.case(seed, 2, num, deleted=deleted)
  model = exact.pretrained(case.truth.prior, ctrl_jax.VP(), num_conditions=1)
  fit_key, tune_key, key = jax.random.split(case.key, 3)
  fitted = ctrl_jax.fit_labels(case.x, case.y, key=fit_key)
  tuned = ctrl_jax.tune(
    model, fitted, key=tune_key, num_updates=updates, progress=False
  )
  found = tuned.certificate(key, **SIZES)
  sampler = tuned.sampler._replace(
    reward_fn=rewards.classifier(case.truth.logits)
  )
  true = certification.certify(sampler, tuned.controls, key, **SIZES)
  if found.doubts is None:
    raise ValueError("what was fitted is not doubted")
  gap, more = float(found.certificate.gap.mean), doubt.pooled(found.doubts)
  return [
    *(str(num), "yes" if deleted else "no", str(seed)),
    *(f"{gap:.3f}", f"{more.mean:.3f}", f"{gap + float(more.mean):.3f}"),
    f"{float(true.certificate.gap.mean):.3f}",
  ]


def table(seeds: list[int], labels: list[int], updates: int) -> str:
  """A row of every number of labels."""
  rows = [
    row(seed, num, deleted=deleted, updates=updates)
    for num in labels
    for deleted in (False, True)
    for seed in seeds
  ]
  return tables.markdown(HEADINGS.split(","), rows)

# SPDX-License-Identifier: Apache-2.0
"""What the fields of a config must agree on, known before anything is done.

`rules` looks at every field by itself.
"""

from ml_collections import ConfigDict

from experiments.configs import stable_diffusion

# Guidance that learns from examples (x, y), and of it what tunes the network.
_TUNED = ("classifier_free", "classifier_free_product")
_LEARNED = ("classifier", *_TUNED)
_STRONG = (
  *("reconstruction", "reconstruction_plain", "soft_value", "value"),
  *_LEARNED,
)
_EXACT = ("gaussian", "mixture")


def check(config: ConfigDict) -> None:
  """Checks what any two fields must agree on, whatever the devices.

  Args:
    config: of a run, whose every value is allowed.

  Raises:
    ValueError: the first disagreement, with its fields and a remedy.
  """
  family = config.problem.name
  if family == "stable_diffusion":
    stable_diffusion.check(config)
  elif family in _EXACT:
    _check_exact(config)
  elif family == "own":
    _check_trained(config)
  else:
    _check_images(config)
  _check_times(config.kernel)
  _check_numbers(config)
  _check_comparison(config)


def _cells(config: ConfigDict) -> tuple[int, int, int]:
  """Values of c that are sampled, of c that are evaluated, and of y."""
  family = config.problem.name
  if family in _EXACT:
    drawn = config.problem
    conditions = drawn.get("num_conditions", 1)
    controls = drawn.num_controls * max(drawn.get("second_factor", 0), 1)
    return conditions, conditions, controls
  data = config.data
  if family == "own":  # or as many as there are, once all is read
    conditions = max(len(config.model.conditions), 1)
    return conditions, conditions, 2
  if family == "stable_diffusion":
    prompts = stable_diffusion.all_prompts(config)
    evaluated = config.evaluate.prompts or prompts
    controls = data.num_controls ** (1 + bool(data.second_quantity))
    return len(prompts), len(evaluated), controls
  return 10, 10, data.num_controls ** (1 + bool(data.second_control))


def _check_numbers(config: ConfigDict) -> None:
  """Are there enough samples for what they are for?"""
  asked = config.evaluate
  conditions, evaluated, controls = _cells(config)
  least = 2 * conditions * asked.best_of
  if asked.num_reference < least:
    raise ValueError(
      f"evaluate.num_reference is {asked.num_reference}: use {least} or more, "
      f"for twice the best of {asked.best_of} under each of {conditions} "
      "conditions"
    )
  least = 2 * evaluated * controls
  if asked.num_samples < least:
    raise ValueError(
      f"evaluate.num_samples is {asked.num_samples}: use {least} or more, for "
      f"two of each of {evaluated} x {controls} values of (c, y)"
    )


def _check_times(kernel: ConfigDict) -> None:
  if kernel.get("t_min", 0.0) >= kernel.get("t_max", 1.0):
    raise ValueError(
      f"kernel.t_min is {kernel.t_min} and kernel.t_max {kernel.t_max}: "
      "sampling goes from t_max down to t_min; use a smaller t_min"
    )


def _check_exact(config: ConfigDict) -> None:
  if config.control.adapt != "none":
    raise ValueError(
      f"control.adapt is {config.control.adapt!r}: an exact prior has no "
      "network to adapt; use none"
    )
  if not config.control.head:
    raise ValueError("control.head is (): without a head nothing is trained")
  tuned = {*_TUNED} & {*config.compare.guidance}
  if tuned:
    raise ValueError(
      f"compare.guidance has {min(tuned)}: an exact prior has no network to "
      "fine-tune; leave it out"
    )
  if config.problem.name == "gaussian":
    for name in ("classifier", "soft_value"):
      if name in config.compare.guidance:
        raise ValueError(
          f"compare.guidance has {name}, and y is a real number here; leave it "
          "out"
        )
    if config.control.all_labels:
      raise ValueError(
        "control.all_labels is True, and y is a real number here; use False"
      )


def _check_trained(config: ConfigDict) -> None:
  if config.control.adapt == "none" and not config.control.head:
    raise ValueError(
      "control.head is (): without a head nothing is trained, unless "
      "control.adapt is lora or full"
    )


def _check_images(config: ConfigDict) -> None:
  data = config.data
  _check_trained(config)
  for name in ("classifier", "independent"):
    if not (config[name].pixels or config[name].feature_gain):
      raise ValueError(
        f"{name}.pixels is False and {name}.feature_gain is 0: it needs "
        "something to look at"
      )
  if data.second_control == data.control:
    raise ValueError(
      f"data.second_control is {data.control!r}, as data.control: use another"
    )
  learned = {*_LEARNED} & {*config.compare.guidance}
  if data.second_control and learned:
    raise ValueError(
      f"compare.guidance has {min(learned)}, which learns from y, and no image "
      "is labelled with both factors of it; leave it out"
    )


def _check_comparison(config: ConfigDict) -> None:
  compare, own = config.compare, config.control.objective
  if own in compare.objectives:
    raise ValueError(
      f"compare.objectives has {own}, which is control.objective; leave it out"
    )
  strong = {*_STRONG} & {*compare.guidance}
  if strong and not compare.strengths:
    raise ValueError(
      f"compare.strengths is (), and compare.guidance has {min(strong)}: give "
      "some, such as (1.0,)"
    )


def check_devices(config: ConfigDict, num_devices: int) -> None:
  """Checks that no device gets a part of a group of chains.

  Args:
    config: of a run.
    num_devices: that share a batch, or groups of them.

  Raises:
    ValueError: the batch of the control cannot be shared.
  """
  control = config.control
  for objective in (control.objective, *config.compare.objectives):
    for name in ("group", "accumulate"):
      unit = max(control[objective].get(name, 0), 1)
      if control.batch_size % (unit * num_devices):
        raise ValueError(
          f"control.batch_size is {control.batch_size}, which {num_devices} "
          f"devices cannot share with control.{objective}.{name} = {unit}: use "
          f"a multiple of {unit * num_devices}"
        )

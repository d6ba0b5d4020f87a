# SPDX-License-Identifier: Apache-2.0
"""What ends a run early; needs no JAX, so that run.py can catch it."""


class DivergedError(ArithmeticError):
  """Training diverged."""

  def __init__(self, stage: str, step: int, told: str) -> None:
    """Names the stage, the number of the update, and what went wrong."""
    super().__init__(
      f"{stage}: {told} at step {step}; checkpoints from before "
      "are kept: lower the learning rate or clip_norm in another workdir"
    )
    self.stage, self.step, self.told = stage, step, told


class NonFiniteError(DivergedError):
  """A metric or a parameter is infinite or not a number."""

  def __init__(self, stage: str, step: int, name: str, value: object) -> None:
    """Names the stage, the number of the update, and what went wrong."""
    super().__init__(stage, step, f"{name} is {value}")
    self.name = name

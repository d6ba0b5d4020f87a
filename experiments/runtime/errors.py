# SPDX-License-Identifier: Apache-2.0
"""What ends a run early; needs no JAX, so that run.py can catch it."""


class NonFiniteError(ArithmeticError):
  """Training diverged: a metric or a parameter is infinite or not a number."""

  def __init__(self, stage: str, step: int, name: str, value: object) -> None:
    """Names the stage, the number of the update, and what went wrong."""
    super().__init__(
      f"{stage}: {name} is {value} at step {step}; checkpoints from before "
      "are kept: lower the learning rate or clip_norm in another workdir"
    )
    self.stage, self.step, self.name = stage, step, name

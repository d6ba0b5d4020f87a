# SPDX-License-Identifier: Apache-2.0
"""What an `SD3Transformer2DModel` is built of: the fields of its config.json.

released model      layers   width   qk_norm      dual_attention_layers
3 medium              24      1536   None         none
3.5 medium            24      1536   "rms_norm"   the first 13
3.5 large             38      2432   "rms_norm"   none
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields

_CLASS = "SD3Transformer2DModel"
_NORMS = (None, "rms_norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of an MMDiT, by diffusers' names and with its defaults.

  Attributes:
    sample_size: side of the latents that the network was trained on.
    patch_size: side of a patch.
    in_channels: of the latents.
    out_channels: of the prediction: as many, or None for as many.
    num_layers: blocks; the last one leaves the context as it was.
    num_attention_heads: heads of each attention.
    attention_head_dim: width of a head.
    joint_attention_dim: width of the context.
    caption_projection_dim: to which the context is projected: a token's width.
    pooled_projection_dim: width of the pooled text, and of the control.
    pos_embed_max_size: side of the table of positions, in patches.
    dual_attention_layers: blocks in which the image also attends to itself.
    qk_norm: "rms_norm" where queries and keys are normalised, or None.
  """

  sample_size: int = 128
  patch_size: int = 2
  in_channels: int = 16
  out_channels: int | None = 16
  num_layers: int = 18
  num_attention_heads: int = 18
  attention_head_dim: int = 64
  joint_attention_dim: int = 4096
  caption_projection_dim: int = 1152
  pooled_projection_dim: int = 2048
  pos_embed_max_size: int = 96
  dual_attention_layers: tuple[int, ...] = ()
  qk_norm: str | None = None

  def __post_init__(self) -> None:
    """Raises ValueError at what no MMDiT can be built of."""
    fields.check_counts(
      self,
      *("sample_size", "patch_size", "in_channels", "num_attention_heads"),
      *("attention_head_dim", "joint_attention_dim", "pooled_projection_dim"),
      "pos_embed_max_size",
    )
    fields.check_counts(self, "num_layers", most=fields.MOST_LAYERS)
    for name, needed in (
      ("out_channels", (None, self.in_channels)),
      ("caption_projection_dim", (self.dims,)),
      ("qk_norm", _NORMS),
    ):
      if (value := getattr(self, name)) not in needed:
        raise ValueError(
          f"{name} is {shown(value)}; needed is "
          f"{' or '.join(map(repr, needed))}"
        )
    for layer in self.dual_attention_layers:
      if not 0 <= layer < self.num_layers:
        raise ValueError(
          f"dual_attention_layers has {layer}; the {self.num_layers} layers "
          "are counted from 0"
        )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads transformer/config.json.

    Raises:
      ValueError: it is another network's.
    """
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
      raise ValueError(f"_class_name is {shown(kind)}; supported is {_CLASS}")
    return cls(**fields.select(config, cls))

  @property
  def dims(self) -> int:
    """Width of a token."""
    return self.num_attention_heads * self.attention_head_dim

  @property
  def control_dim(self) -> int:
    """Width of the control vector: that of the pooled text."""
    return self.pooled_projection_dim

  @property
  def smallest_inputs(self) -> tuple[tuple[int, ...], ...]:
    """Shapes of what a network of these sizes can be initialised with.

    They are those of latents, step, context and pooled text.
    """
    return (
      (1, self.patch_size, self.patch_size, self.in_channels),
      (),
      (1, 1, self.joint_attention_dim),
      (1, self.pooled_projection_dim),
    )

# SPDX-License-Identifier: Apache-2.0
"""What a `UNet2DModel` is built of: the fields of its config.json.

Those of google's checkpoints of DDPM name eighteen; what later ones can ask for
besides, such as scale and shift by the step or FIR filters, is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ctrl_jax.stable_diffusion import fields

_SUPPORTED = {
  "_class_name": "UNet2DModel",
  "time_embedding_type": "positional",
  "time_embedding_dim": None,
  "mid_block_type": "UNetMidBlock2D",
  "mid_block_scale_factor": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "act_fn": "silu",
  "attn_norm_num_groups": None,
  "resnet_time_scale_shift": "default",
  "class_embed_type": None,
}
_DOWN = ("AttnDownBlock2D", "DownBlock2D")
_UP = ("AttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of a U-Net, by diffusers' names and with its defaults.

  Attributes:
    sample_size: side of the images, or (height, width).
    in_channels: of the images.
    out_channels: of the prediction; as many.
    center_input_sample: whether the network sees 2 x - 1 in place of x.
    block_out_channels: width of each level, from the highest resolution down.
    down_block_types: of each level: with attention, or without.
    up_block_types: likewise, from the lowest resolution up.
    layers_per_block: residual blocks of a level on the way down; one more on
      the way up.
    downsample_padding: 1, or 0 for one row and column behind the image alone.
    attention_head_dim: width of a head; None: one head of the whole width.
    add_attention: whether the middle has attention.
    num_class_embeds: classes, or None.
    norm_num_groups: of every group norm.
    norm_eps: of every group norm.
    flip_sin_to_cos: whether the features of the step begin with the cosines.
    freq_shift: lowers the number of frequencies over which they are spread.
  """

  sample_size: int | tuple[int, ...] | None = None
  in_channels: int = 3
  out_channels: int = 3
  center_input_sample: bool = False
  block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
  down_block_types: tuple[str, ...] = (_DOWN[1], *(_DOWN[0],) * 3)
  up_block_types: tuple[str, ...] = (*(_UP[0],) * 3, _UP[1])
  layers_per_block: int = 2
  downsample_padding: int = 1
  attention_head_dim: int | None = 8
  add_attention: bool = True
  num_class_embeds: int | None = None
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  flip_sin_to_cos: bool = True
  freq_shift: int = 0

  def __post_init__(self) -> None:
    """Raises ValueError at what no U-Net can be built of."""
    optional = ("attention_head_dim", "num_class_embeds")
    counts = [name for name in optional if getattr(self, name) is not None]
    fields.check_counts(self, "in_channels", "norm_num_groups", *counts)
    fields.check_counts(self, "layers_per_block", most=fields.MOST_LAYERS)
    widths, groups = self.block_out_channels, self.norm_num_groups
    fields.check_widths("block_out_channels", widths, groups=groups)
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
      found = getattr(self, name)
      fields.check_types(name, found, known=known, levels=len(widths))
    if self.out_channels != self.in_channels:
      raise ValueError(
        f"out_channels is {self.out_channels}; needed are as many as "
        f"in_channels, {self.in_channels}: a learned variance is not supported"
      )
    if self.downsample_padding not in (0, 1):
      raise ValueError(
        f"downsample_padding is {self.downsample_padding}; needed is 0 or 1"
      )
    self._check_sides()
    self._check_heads()

  def _check_sides(self) -> None:
    factor = 2 ** (len(self.block_out_channels) - 1)
    sides = self.sample_size
    sides = (sides, sides) if isinstance(sides, int) else sides
    bad = sides is None or len(sides) != 2 or min(sides) < 1
    if sides is None or bad or any(side % factor for side in sides):
      raise ValueError(
        f"sample_size is {self.sample_size}; needed is the side of the images, "
        f"or (height, width), in multiples of {factor}"
      )

  def _check_heads(self) -> None:
    head, widths = self.attention_head_dim or 1, self.block_out_channels
    levels = [
      *zip(widths, self.attends_down, strict=True),
      *zip(widths[::-1], self.attends_up, strict=True),
      (widths[-1], self.add_attention),
    ]
    for width, attends in levels:
      if attends and width % head:
        raise ValueError(
          f"attention_head_dim is {head}, which does not divide a width of "
          f"{width}"
        )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads the config.json of a UNet2DModel.

    Raises:
      ValueError: a field asks for another network.
    """
    fields.require(config, _SUPPORTED, like="DDPM's U-Net")
    return cls(**fields.select(config, cls))

  @property
  def attends_down(self) -> list[bool]:
    """Whether each level attends on the way down, from the top."""
    return [kind == _DOWN[0] for kind in self.down_block_types]

  @property
  def attends_up(self) -> list[bool]:
    """Whether each level attends on the way up, from the lowest."""
    return [kind == _UP[0] for kind in self.up_block_types]

  @property
  def sample_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the images."""
    sides: Any = self.sample_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return height, width, self.in_channels

  @property
  def control_dim(self) -> int:
    """Width of the control vector and of all of `unet2d`'s (1)."""
    return 4 * self.block_out_channels[0]

# SPDX-License-Identifier: Apache-2.0
"""Sizes of the U-Net of Stable Diffusion 1.x, 2.x and XL: unet/config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields
from ctrl_jax.stable_diffusion.unet_wiring import Depths

_ABSENT = (
  *("class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
  *("num_attention_heads", "time_embedding_dim", "time_embedding_act_fn"),
  *("timestep_post_act", "time_cond_proj_dim"),
)
_SUPPORTED = {
  **dict.fromkeys(_ABSENT, None),
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "mid_block_scale_factor": 1,
  "class_embeddings_concat": False,
  "time_embedding_type": "positional",
  "only_cross_attention": False,
  "dual_cross_attention": False,
  "attention_type": "default",
  "center_input_sample": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "downsample_padding": 1,
  "resnet_time_scale_shift": "default",
  "resnet_skip_time_act": False,
  "resnet_out_scale_factor": 1,
  "act_fn": "silu",
}
_ATTENDS, _DOWN, _UP = "CrossAttn", "DownBlock2D", "UpBlock2D"
SIZES = 6  # of an image that XL is told: original, corner of the crop, target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of a U-Net, by diffusers' names and with its defaults.

  Attributes:
    in_channels: of the latents.
    out_channels: of the prediction.
    sample_size: side of the latents that the network was trained on, or None.
    block_out_channels: width of each level, from the highest resolution down.
    down_block_types: of each level: with transformers, or without.
    up_block_types: likewise, from the lowest resolution up.
    layers_per_block: residual blocks of a level on the way down; one more on
      the way up.
    transformer_layers_per_block: layers of a transformer, for all levels or
      one a level, from the highest resolution down; the last is the middle's.
    reverse_transformer_layers_per_block: of the levels on the way up, from the
      lowest; None: the same, reversed.
    attention_head_dim: NUMBER of heads, in spite of its name, for all levels
      or one a level; see num_heads.
    cross_attention_dim: width of the context.
    use_linear_projection: whether Dense layers, not 1x1 convolutions, surround
      each transformer, as in Stable Diffusion 2.x and XL.
    num_class_embeds: labels of a model that has been exported with a control;
      its table is not among the parameters.
    addition_embed_type: "text_time" of a network that also reads pooled prompts
      and sizes, as XL's; None: it reads neither.
    addition_time_embed_dim: number of sines and cosines of each size.
    projection_class_embeddings_input_dim: width of pooled prompt and the
      features of all sizes, side by side.
    norm_num_groups: of every group norm.
    norm_eps: of the group norms outside transformers.
    flip_sin_to_cos: whether the features of the step begin with the cosines.
    freq_shift: lowers the number of frequencies over which they are spread.
  """

  in_channels: int = 4
  out_channels: int = 4
  sample_size: int | None = None
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_block_types: tuple[str, ...] = (*(_ATTENDS + _DOWN,) * 3, _DOWN)
  up_block_types: tuple[str, ...] = (_UP, *(_ATTENDS + _UP,) * 3)
  layers_per_block: int = 2
  transformer_layers_per_block: int | tuple[int, ...] = 1
  reverse_transformer_layers_per_block: tuple[int, ...] | None = None
  attention_head_dim: int | tuple[int, ...] = 8
  cross_attention_dim: int = 1280
  use_linear_projection: bool = False
  num_class_embeds: int | None = None
  addition_embed_type: str | None = None
  addition_time_embed_dim: int | None = None
  projection_class_embeddings_input_dim: int | None = None
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  flip_sin_to_cos: bool = True
  freq_shift: int = 0

  def __post_init__(self) -> None:
    """Raises ValueError at what no U-Net can be built of."""
    optional = ("sample_size", "num_class_embeds")
    fields.check_counts(
      self,
      *("in_channels", "out_channels", "cross_attention_dim"),
      "norm_num_groups",
      *(name for name in optional if getattr(self, name) is not None),
    )
    fields.check_counts(self, "layers_per_block", most=fields.MOST_LAYERS)
    widths, groups = self.block_out_channels, self.norm_num_groups
    fields.check_widths("block_out_channels", widths, groups=groups)
    for name, block in (("down_block_types", _DOWN), ("up_block_types", _UP)):
      found, known = getattr(self, name), (_ATTENDS + block, block)
      fields.check_types(name, found, known=known, levels=len(widths))
    fields.check_heads("attention_head_dim", self.num_heads, widths=widths)
    for name in (
      "transformer_layers_per_block",
      "reverse_transformer_layers_per_block",
    ):
      self._check_layers(name)
    self._check_addition()

  def _check_layers(self, name: str) -> None:
    """Raises ValueError unless a field has a count of layers a level."""
    found, levels = getattr(self, name), len(self.block_out_channels)
    layers = self._by_level(1 if found is None else found)
    most = fields.MOST_LAYERS
    if len(layers) != levels or not all(1 <= n <= most for n in layers):
      raise ValueError(
        f"{name} is {shown(found)}; needed is 1 or more, and at most {most}, "
        f"of each of {levels} levels"
      )

  def _check_addition(self) -> None:
    """Raises ValueError unless pooled prompts and sizes have a width each."""
    if self.addition_embed_type is None:
      return
    if self.addition_embed_type != "text_time":
      raise ValueError(
        f"addition_embed_type is {shown(self.addition_embed_type)}; supported "
        "is 'text_time', as in Stable Diffusion XL"
      )
    time = self.addition_time_embed_dim or 0
    whole = self.projection_class_embeddings_input_dim or 0
    if time % 2 or not 0 < SIZES * time < whole <= fields.MOST:
      raise ValueError(
        f"addition_time_embed_dim is {self.addition_time_embed_dim} and "
        "projection_class_embeddings_input_dim is "
        f"{self.projection_class_embeddings_input_dim}; needed are an even "
        f"number, and more than {SIZES} times that, at most {fields.MOST}"
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads unet/config.json.

    Raises:
      ValueError: a field asks for another network.
    """
    fields.require(config, _SUPPORTED)
    return cls(**fields.select(config, cls))

  def _by_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
    """One value a level, of one for all levels or of as many."""
    if isinstance(value, int):
      return (value,) * len(self.block_out_channels)
    return value

  @property
  def num_heads(self) -> tuple[int, ...]:
    """Attention heads of each level, from the highest resolution down."""
    return self._by_level(self.attention_head_dim)

  @property
  def depths(self) -> Depths:
    """Layers of the transformers of every level."""
    downs = self._by_level(self.transformer_layers_per_block)
    ups = self.reverse_transformer_layers_per_block or downs[::-1]

    of = lambda layers, kinds: tuple(
      depth * kind.startswith(_ATTENDS)
      for depth, kind in zip(layers, kinds, strict=True)
    )
    return Depths(
      of(downs, self.down_block_types),
      downs[-1],
      of(ups, self.up_block_types),
    )

  @property
  def control_dim(self) -> int:
    """Width of the control vector and of the embedding that it joins."""
    return 4 * self.block_out_channels[0]

  @property
  def pooled_dim(self) -> int | None:
    """Width of a pooled prompt; None where the network reads none."""
    if self.addition_embed_type is None:
      return None
    whole = self.projection_class_embeddings_input_dim or 0
    return whole - SIZES * (self.addition_time_embed_dim or 0)

  @property
  def smallest_inputs(self) -> tuple[tuple[int, ...], ...]:
    """Shapes of what a network of these sizes can be initialised with.

    They are those of latents, step, context and, where it reads them, of
    control, pooled prompt and sizes.
    """
    side = 2 ** (len(self.block_out_channels) - 1)
    shapes = (
      (1, side, side, self.in_channels),
      (),
      (1, 1, self.cross_attention_dim),
    )
    if self.pooled_dim is None:
      return shapes
    return (*shapes, (1, self.control_dim), (1, self.pooled_dim), (1, SIZES))

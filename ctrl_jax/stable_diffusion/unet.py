# SPDX-License-Identifier: Apache-2.0
"""The U-Net of Stable Diffusion 1.x and 2.x: eps(x_t, t, prompt, control).

    x ── conv_in ── down_blocks.0 ───── skips ───── up_blocks.n ── conv_out
                      down_blocks.1 ─── skips ─── up_blocks.n-1
                          ...                       ...
                        down_blocks.n ─ skips ─ up_blocks.0
                                 └─ mid_block ─┘

Each level is half the size of the one above it. It has residual blocks and, but
for the lowest, transformers that see the prompt. The step enters every residual
block as one vector,

    time_embedding(sines and cosines of the step) + control,              (1)

and a control vector is added where diffusers adds the embedding of a class:
the controlled model is then a `num_class_embeds` model of diffusers'. The table
of that embedding is not part of the parameters here.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ctrl_jax.stable_diffusion import blocks, fields, unet_levels, unet_wiring
from ctrl_jax.stable_diffusion.attention import Implementation, Transformer2D

# SDXL's first: its folder is the likeliest to be taken for one of these.
_ABSENT = (
  *("addition_embed_type", "class_embed_type", "encoder_hid_dim"),
  *("encoder_hid_dim_type", "num_attention_heads", "time_embedding_dim"),
  *("time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim"),
)
_SUPPORTED = {
  **dict.fromkeys(_ABSENT, None),
  "transformer_layers_per_block": 1,
  "reverse_transformer_layers_per_block": None,
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
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of a U-Net, by diffusers' names and with its defaults.

  Attributes:
    in_channels: of the latents.
    out_channels: of the prediction.
    sample_size: side of the latents that the network was trained on, or None.
    block_out_channels: width of each level, from the highest resolution down.
    down_block_types: of each level: with a transformer, or without.
    up_block_types: likewise, from the lowest resolution up.
    layers_per_block: residual blocks of a level on the way down; one more on
      the way up.
    attention_head_dim: NUMBER of heads, in spite of its name, for all levels
      or one a level; see num_heads.
    cross_attention_dim: width of the context.
    use_linear_projection: whether Dense layers, not 1x1 convolutions, surround
      each transformer, as in Stable Diffusion 2.x.
    num_class_embeds: labels of a model that has been exported with a control;
      its table is not among the parameters.
    norm_num_groups: of every group norm.
    norm_eps: of the group norms outside transformers.
    flip_sin_to_cos: whether the features of the step begin with the cosines.
    freq_shift: lowers the number of frequencies over which they are spread.
  """

  in_channels: int = 4
  out_channels: int = 4
  sample_size: int | None = None
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_block_types: tuple[str, ...] = (*(_DOWN[0],) * 3, _DOWN[1])
  up_block_types: tuple[str, ...] = (_UP[1], *(_UP[0],) * 3)
  layers_per_block: int = 2
  attention_head_dim: int | tuple[int, ...] = 8
  cross_attention_dim: int = 1280
  use_linear_projection: bool = False
  num_class_embeds: int | None = None
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
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
      found = getattr(self, name)
      fields.check_types(name, found, known=known, levels=len(widths))
    fields.check_heads("attention_head_dim", self.num_heads, widths=widths)

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads unet/config.json.

    Raises:
      ValueError: a field asks for another network, such as that of SDXL.
    """
    fields.require(config, _SUPPORTED)
    return cls(**fields.select(config, cls))

  @property
  def num_heads(self) -> tuple[int, ...]:
    """Attention heads of each level, from the highest resolution down."""
    heads = self.attention_head_dim
    if isinstance(heads, int):
      return (heads,) * len(self.block_out_channels)
    return heads

  @property
  def control_dim(self) -> int:
    """Width of the control vector and of all of (1)."""
    return 4 * self.block_out_channels[0]


class UNet(nn.Module):
  """Prediction of the noise, or of v, in latents [b, h, w, in_channels].

  Attributes:
    config: sizes.
    attention: implementation of the attention: None is the device's own,
      "cudnn" flash attention on a GPU, for bf16 and fp16; see `attention`.
    remat: whether the backward pass computes every residual block and every
      transformer again instead of keeping its activations.
    dtype: of the computation; parameters keep their own.
  """

  config: Config
  attention: Implementation = None
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w channels"],
    steps: Real[Array, ""] | Real[Array, "b"],
    context: Float[Array, "b tokens d"],
    control: Float[Array, "b control_dim"] | None = None,
  ) -> Float[Array, "b h w out_channels"]:
    """Predicts from noisy latents.

    Args:
      x: noisy latents, scaled; any size from one pixel at the lowest level.
      steps: index of the training step, for all [] or for each [b].
      context: encoded prompts.
      control: vector added to (1); None or zeros: no control.

    Raises:
      ValueError: channels, context or control of another width than config's.
    """
    config = self.config
    blocks.check_width("latents", x, config.in_channels)
    blocks.check_width("context", context, config.cross_attention_dim)
    if control is not None:
      blocks.check_width("control", control, config.control_dim)
    embedding = unet_levels.TimeEmbedding(
      *(config.block_out_channels[0], config.flip_sin_to_cos),
      *(config.freq_shift, self.dtype),
      name="time_embedding",
    )(jnp.atleast_1d(steps))
    if control is not None:
      embedding = embedding + control.astype(self.dtype)
    x = blocks.conv3(
      config.block_out_channels[0], dtype=self.dtype, name="conv_in"
    )(x)
    x = unet_wiring.through(
      *(x, embedding, context),
      parts=self._parts,
      downs=[kind == _DOWN[0] for kind in config.down_block_types],
      ups=[kind == _UP[0] for kind in config.up_block_types],
      layers=config.layers_per_block,
      dtype=self.dtype,
    )
    return blocks.project_out(
      self,
      x,
      channels=config.out_channels,
      groups=config.norm_num_groups,
      eps=config.norm_eps,
      dtype=self.dtype,
      remat=self.remat,
    )

  def _parts(self, level: int, attends: bool) -> dict[str, Any]:
    """The makers of the blocks of a level, counted from the top."""
    config = self.config
    shared = {"groups": config.norm_num_groups, "dtype": self.dtype}
    resnet = functools.partial(
      blocks.checkpointed(blocks.Resnet, self.remat),
      channels=config.block_out_channels[level],
      eps=config.norm_eps,
      **shared,
    )
    transformer = functools.partial(
      blocks.checkpointed(Transformer2D, self.remat),
      num_heads=config.num_heads[level],
      linear=config.use_linear_projection,
      attention=self.attention,
      **shared,
    )
    return {"resnet": resnet, "transformer": transformer if attends else None}

# SPDX-License-Identifier: Apache-2.0
"""What a `DiTTransformer2DModel` is built of: the fields of its config.json.

In old folders it is called Transformer2DModel, which can be far more: what has
not the norms of DiT, "ada_norm_zero", is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields

# The second is the name of the first in folders of old.
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
_SUPPORTED = {
  "norm_type": "ada_norm_zero",
  "activation_fn": "gelu-approximate",
  "norm_elementwise_affine": False,
  "cross_attention_dim": None,
  "double_self_attention": False,
  "only_cross_attention": False,
  "num_vector_embeds": None,
  "use_linear_projection": False,
  "attention_type": "default",
  "caption_channels": None,
  "interpolation_scale": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of a DiT, by diffusers' names and with its defaults.

  Attributes:
    sample_size: side of the latents.
    patch_size: side of a patch; must divide that.
    in_channels: of the latents.
    out_channels: of the prediction: as many, twice as many with a variance, or
      None for as many.
    num_layers: blocks.
    num_attention_heads: heads of each.
    attention_head_dim: width of a head.
    attention_bias: whether queries, keys and values have a bias.
    num_embeds_ada_norm: classes; the table has one row more.
    norm_eps: of the norm before each MLP.
  """

  sample_size: int = 32
  patch_size: int = 2
  in_channels: int = 4
  out_channels: int | None = None
  num_layers: int = 28
  num_attention_heads: int = 16
  attention_head_dim: int = 72
  attention_bias: bool = True
  num_embeds_ada_norm: int = 1000
  norm_eps: float = 1e-5

  def __post_init__(self) -> None:
    """Raises ValueError at what no DiT can be built of."""
    sizes = ("sample_size", "patch_size", "in_channels", "num_attention_heads")
    fields.check_counts(
      self, *sizes, "attention_head_dim", "num_embeds_ada_norm"
    )
    fields.check_counts(self, "num_layers", most=fields.MOST_LAYERS)
    if self.out_channels not in (None, self.in_channels, 2 * self.in_channels):
      raise ValueError(
        f"out_channels is {self.out_channels}; needed are as many as "
        f"in_channels, {self.in_channels}, or twice as many"
      )
    if self.sample_size % self.patch_size:
      raise ValueError(
        f"sample_size is {self.sample_size}, which patch_size = "
        f"{self.patch_size} does not divide"
      )
    if self.dims % 4:
      raise ValueError(
        f"num_attention_heads x attention_head_dim is {self.dims}; needed is a "
        "multiple of 4, for sines and cosines of row and column"
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads transformer/config.json.

    Raises:
      ValueError: a field asks for another network.
    """
    kind = config.get("_class_name", _CLASSES[0])
    if kind not in _CLASSES:
      raise ValueError(
        f"_class_name is {shown(kind)}; supported is {' and '.join(_CLASSES)}"
      )
    fields.require(config, _SUPPORTED, like="DiT")
    return cls(**fields.select(config, cls))

  @property
  def dims(self) -> int:
    """Width of a token, of the control vector and of all of `dit`'s (1)."""
    return self.num_attention_heads * self.attention_head_dim

  @property
  def num_tokens(self) -> int:
    """Patches of a sample."""
    return (self.sample_size // self.patch_size) ** 2

  @property
  def sample_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the latents."""
    return self.sample_size, self.sample_size, self.in_channels

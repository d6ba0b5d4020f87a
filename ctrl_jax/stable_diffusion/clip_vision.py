# SPDX-License-Identifier: Apache-2.0
"""CLIP's vision tower, and how an image must be cut to be shown to it.

A vision transformer over patches and one more token, whose last state is
projected to where texts live. The norm before the layers is called
`pre_layrnorm` in every file: the slip of the pen is part of the format.

Images come as elsewhere here, in [-1, 1] with channels last. `Preprocessing`
makes them what CLIP was trained on, without leaving JAX, so that a reward on
CLIP's embedding has a gradient with respect to the image.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import clip_layers, fields

Rgb = tuple[float, float, float]

_BICUBIC = 3  # Pillow's number for it
_MOST = 2**13  # pixels a side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(clip_layers.Config):
  """Sizes of a vision tower; defaults are those of transformers.

  Attributes:
    image_size: side of the square image, in pixels.
    patch_size: side of a square patch, in pixels.
  """

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  num_channels: int = 3
  image_size: int = 224
  patch_size: int = 32

  def __post_init__(self) -> None:
    """Raises ValueError at what no vision tower can be built of."""
    super().__post_init__()
    fields.check_counts(self, "num_channels")
    fields.check_counts(self, "image_size", most=_MOST)
    fields.check_counts(self, "patch_size", most=self.image_size)

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads the vision_config of a CLIPModel.

    Raises:
      ValueError: another kind of model, or a value that is not supported.
    """
    values = clip_layers.read_fields(
      cls, config, model_type="clip_vision_model"
    )
    return cls(**values)


class Embeddings(nn.Module):
  """Of each patch and its position, after one token that stands for all."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, pixels: Float[Array, "b side side channels"]
  ) -> Float[Array, "b tokens d"]:
    """Tokens, row by row."""
    config, dims = self.config, self.config.hidden_size
    batch, patch = len(pixels), (config.patch_size, config.patch_size)
    patches = nn.Conv(
      dims,
      patch,
      patch,
      "VALID",
      use_bias=False,
      dtype=self.dtype,
      name="patch_embedding",
    )(pixels).reshape(batch, -1, dims)
    first = self.param("class_embedding", nn.initializers.normal(0.02), (dims,))
    first = jnp.broadcast_to(first.astype(self.dtype), (batch, 1, dims))
    tokens = jnp.concatenate([first, patches], axis=1)
    position = nn.Embed(
      tokens.shape[1], dims, dtype=self.dtype, name="position_embedding"
    )
    return tokens + position(jnp.arange(tokens.shape[1]))[None]


class VisionModel(nn.Module):
  """Pixels to the pooled state; `vision_model` of every file."""

  config: Config
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, pixels: Float[Array, "b height width channels"]
  ) -> Float[Array, "b d"]:
    """The first token after the last layer and a norm of its own.

    Raises:
      ValueError: images of another size than the tower's.
    """
    config, dtype = self.config, self.dtype
    shape = (config.image_size, config.image_size, config.num_channels)
    if pixels.shape[1:] != shape:
      raise ValueError(
        f"images are {pixels.shape[1:]}, but the vision tower takes {shape}; "
        "Preprocessing makes them so"
      )
    h = Embeddings(config, dtype, name="embeddings")(pixels)
    h = clip_layers.layer_norm(config, dtype, "pre_layrnorm")(h)
    h = clip_layers.Encoder(
      config, causal=False, remat=self.remat, dtype=dtype, name="encoder"
    )(h)[-1]
    return clip_layers.layer_norm(config, dtype, "post_layernorm")(h[:, 0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
  """Resize, crop and normalise, as a preprocessor_config.json says.

  The shortest side is resized to `size` by antialiased bicubic interpolation,
  the centre is cut out, and a channel v in [0, 1] becomes (v - mean) / std.
  Pillow, with which CLIP was trained, resizes rows, then columns, and rounds
  and clips to 256 levels after each. The clipping is kept, and where it acts
  the gradient is zero; the rounding would have no gradient at all and is left
  out, which moves a pixel by 0.3 of the 256 levels on average, by 1.1 at most.
  """

  size: int = 224
  crop: int = 224
  mean: Rgb = (0.48145466, 0.4578275, 0.40821073)
  std: Rgb = (0.26862954, 0.26130258, 0.27577711)

  def __post_init__(self) -> None:
    """Refuses a crop that would need padding, and what cannot be computed.

    Raises:
      ValueError: a crop larger than what is left of the image, an image of no
        size that is ever shown to CLIP, or a deviation that is not above 0.
    """
    if not 1 <= self.crop <= self.size:
      raise ValueError(f"crop_size={self.crop} exceeds size={self.size}")
    if self.size > _MOST:
      raise ValueError(f"size={self.size} exceeds {_MOST}, the most supported")
    if min(self.std) <= 0:
      raise ValueError(f"image_std={self.std} is not supported: it divides")

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Preprocessing":
    """Reads a preprocessor_config.json, of any age.

    Raises:
      ValueError: a step left out, another interpolation, or a shape that is
        not a square.
    """
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
      if config.get(step) is False:
        raise ValueError(f"{step}=False is not supported: CLIP needs the step")
    if config.get("resample", _BICUBIC) != _BICUBIC:
      given = shown(config["resample"])
      raise ValueError(f"resample={given} is not supported: 3, bicubic, is")
    return cls(
      size=_side(config, "size", {"shortest_edge"}),
      crop=_side(config, "crop_size", {"height", "width"}),
      mean=_channels(config, "image_mean", cls.mean),
      std=_channels(config, "image_std", cls.std),
    )

  def __call__(
    self, images: Float[Array, "b height width 3"]
  ) -> Float[Array, "b crop crop 3"]:
    """Images in [-1, 1] as a vision tower takes them, in float32."""
    batch, height, width, channels = images.shape
    short, long = sorted((height, width))
    other = int(self.size * long / short)
    new = (self.size, other) if height <= width else (other, self.size)
    x = jnp.clip(images.astype(jnp.float32), -1, 1)
    for sides in ((height, new[1]), new):  # along rows first, as Pillow
      shape = (batch, *sides, channels)
      x = jnp.clip(jax.image.resize(x, shape, "cubic", antialias=True), -1, 1)
    top, left = (new[0] - self.crop) // 2, (new[1] - self.crop) // 2
    x = x[:, top : top + self.crop, left : left + self.crop]
    mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
    return ((x + 1) / 2 - mean[None, None, None]) / std[None, None, None]


def _channels(config: Mapping[str, Any], name: str, default: Rgb) -> Rgb:
  """The value of each colour that config[name] holds."""
  value = fields.names(config, name) or default
  if len(value) != 3 or not fields.fits(tuple(value), tuple[float, ...]):
    raise ValueError(f"{name}={shown(value)} is not supported: 3 numbers are")
  red, green, blue = map(float, value)
  return red, green, blue


def _side(config: Mapping[str, Any], name: str, keys: set[str]) -> int:
  """The one length that config[name] holds, by the given keys or bare."""
  value = config.get(name, 224)
  if isinstance(value, dict) and value.keys() == keys:
    first, *others = value.values()
    value = first if all(other == first for other in others) else value
  if type(value) is not int:
    raise ValueError(f"{name}={shown(value)} is not supported: one length is")
  return value

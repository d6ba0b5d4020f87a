# SPDX-License-Identifier: Apache-2.0
"""The transformer that CLIP's text encoder and vision tower share.

CLIP (Radford et al., arXiv 2103.00020) is a pair of pre-norm transformers,

    h <- h + attention(norm(h)),    h <- h + mlp(norm(h)),

one over tokens, causal, one over patches, not. They differ in what goes in and
in what is read off at the end, which `clip_text` and `clip_vision` add. The
weights of OpenAI use the "quick" GELU, x sigmoid(1.702 x), those of OpenCLIP
the exact one.

Modules carry transformers' names, so that a tensor's name is its path (see
`weights`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields

_ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
_SIZES = (
  "hidden_size",
  "intermediate_size",
  "num_attention_heads",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of a transformer, under the names that config.json gives them."""

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  def __post_init__(self) -> None:
    """Refuses what the layers cannot compute.

    Raises:
      ValueError: a size below 1, an unknown activation, or heads that do not
        divide the width.
    """
    fields.check_counts(self, *_SIZES)
    fields.check_counts(self, "num_hidden_layers", most=fields.MOST_LAYERS)
    if self.hidden_act not in _ACTIVATIONS:
      raise ValueError(
        f"hidden_act={shown(self.hidden_act)} is none of {sorted(_ACTIVATIONS)}"
      )
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"num_attention_heads={self.num_attention_heads} does not divide "
        f"hidden_size={self.hidden_size}"
      )


def read_fields(
  cls: type[Config], config: Mapping[str, Any], *, model_type: str
) -> dict[str, Any]:
  """The fields of config.json that a Config of type cls has, checked.

  Args:
    cls: a Config whose fields all have defaults, which are transformers'.
    config: the contents of config.json; null stands for the default.
    model_type: the one that config.json must name, if it names any.

  Raises:
    ValueError: a model of another type, or a value of another type than cls
      has.
  """
  found = config.get("model_type", model_type)
  if found != model_type:
    raise ValueError(f"model_type={shown(found)}, but {model_type!r} is needed")
  given = {name: value for name, value in config.items() if value is not None}
  return fields.select(given, cls)


def layer_norm(config: Config, dtype: Any, name: str) -> nn.LayerNorm:
  """Layer norm with statistics in float32, whatever it returns."""
  # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
  return nn.LayerNorm(
    config.layer_norm_eps, dtype, use_fast_variance=False, name=name
  )


class Attention(nn.Module):
  """Multi-head self-attention, causal or over everything."""

  config: Config
  causal: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Mixes the n tokens of each sequence."""
    dims, heads = self.config.hidden_size, self.config.num_attention_heads

    def project(name: str) -> jax.Array:
      flat = nn.Dense(dims, dtype=self.dtype, name=name)(h)
      return flat.reshape(*h.shape[:2], heads, dims // heads)

    mixed = jax.nn.dot_product_attention(
      project("q_proj"),
      project("k_proj"),
      project("v_proj"),
      is_causal=self.causal,
    )
    return nn.Dense(dims, dtype=self.dtype, name="out_proj")(
      mixed.reshape(h.shape)
    )


class Mlp(nn.Module):
  """One hidden layer, the same for every token."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Returns the transformed tokens."""
    config = self.config
    h = nn.Dense(config.intermediate_size, dtype=self.dtype, name="fc1")(h)
    h = _ACTIVATIONS[config.hidden_act](h)
    return nn.Dense(config.hidden_size, dtype=self.dtype, name="fc2")(h)


class Layer(nn.Module):
  """Attention and MLP, each after a norm and around a residual."""

  config: Config
  causal: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Returns the tokens after one layer."""
    config, dtype = self.config, self.dtype
    normed = layer_norm(config, dtype, "layer_norm1")(h)
    h = h + Attention(config, self.causal, dtype, name="self_attn")(normed)
    normed = layer_norm(config, dtype, "layer_norm2")(h)
    return h + Mlp(config, dtype, name="mlp")(normed)


class Encoder(nn.Module):
  """All layers, one after the other.

  Attributes:
    config: sizes.
    causal: whether a token sees only itself and those before it.
    remat: whether gradients compute each layer's inside again, not store it.
    dtype: of the computation; parameters keep theirs.
  """

  config: Config
  causal: bool
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Float[Array, "b n d"]) -> list[Float[Array, "b n d"]]:
    """Returns the tokens before all layers, and after each of them."""
    layer = nn.remat(Layer) if self.remat else Layer
    states = [h]
    for i in range(self.config.num_hidden_layers):
      step = layer(self.config, self.causal, self.dtype, name=f"layers.{i}")
      states.append(step(states[-1]))
    return states

# SPDX-License-Identifier: Apache-2.0
"""Sizes of released models, and the experiment of each, without their weights.

Fields are those of their config.json that differ from diffusers' defaults.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ctrl_jax.stable_diffusion import vae
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from ctrl_jax.stable_diffusion_3.mmdit_config import Config as MMDiTConfig
from ctrl_jax.stable_diffusion_3.t5_tokenizer import LENGTH
from experiments.configs import (
  sd3_compressibility,
  sd15_compressibility,
  sdxl_compressibility,
)


class Released(NamedTuple):
  """A model by its sizes.

  Attributes:
    get_config: of its experiment.
    denoiser: the network that predicts.
    vae: the autoencoder.
    scheduler: fields of scheduler_config.json.
    tokens: of an encoded prompt.
    upcast: whether the autoencoder is float32, whatever the rest is.
  """

  get_config: Callable[[], ConfigDict]
  denoiser: UNetConfig | MMDiTConfig
  vae: vae.Config
  scheduler: Mapping[str, Any]
  tokens: int
  upcast: bool = False


_TOKENS = 77  # of a CLIP's prompt
_SCHEDULER = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}
_LEVELS: dict[str, Any] = {
  "block_out_channels": (128, 256, 512, 512),
  "down_block_types": ("DownEncoderBlock2D",) * 4,
  "up_block_types": ("UpDecoderBlock2D",) * 4,
  "layers_per_block": 2,
}
SD15 = Released(
  get_config=sd15_compressibility.get_config,
  denoiser=UNetConfig(cross_attention_dim=768),
  vae=vae.Config(**_LEVELS),
  scheduler=_SCHEDULER,
  tokens=_TOKENS,
)
SDXL = Released(
  get_config=sdxl_compressibility.get_config,
  denoiser=UNetConfig(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
  ),
  vae=vae.Config(**_LEVELS, scaling_factor=0.13025),
  scheduler=_SCHEDULER,
  tokens=_TOKENS,
  upcast=True,
)
SD35_MEDIUM = Released(
  get_config=sd3_compressibility.get_config,
  denoiser=MMDiTConfig(
    num_layers=24,
    num_attention_heads=24,
    caption_projection_dim=1536,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)),
    qk_norm="rms_norm",
  ),
  vae=vae.Config(
    **_LEVELS,
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
  ),
  scheduler={"shift": 3.0},
  tokens=_TOKENS + LENGTH,
)
MODELS = {"sd15": SD15, "sdxl": SDXL, "sd35-medium": SD35_MEDIUM}

# SPDX-License-Identifier: Apache-2.0
"""Which U-Nets a config.json describes, and which are refused."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.stable_diffusion.unet_config import Config

# What the files of released models say, as far as it matters here.
SD15 = {
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": False,
  "cross_attention_dim": 768,
  "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
  "sample_size": 64,
  "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
SD21 = SD15 | {
  "attention_head_dim": [5, 10, 20, 20],
  "cross_attention_dim": 1024,
  "sample_size": 96,
  "upcast_attention": True,
  "use_linear_projection": True,
}
SDXL = SD21 | {
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20],
  "block_out_channels": [320, 640, 1280],
  "cross_attention_dim": 2048,
  "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
  "projection_class_embeddings_input_dim": 2816,
  "sample_size": 128,
  "transformer_layers_per_block": [1, 2, 10],
  "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("file", "size"),
  [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)],
)
def test_released_models_have_as_many_parameters_as_published(file, size):
  config = Config.from_json(file)
  inputs = [
    jax.ShapeDtypeStruct(shape, jnp.float32) for shape in config.smallest_inputs
  ]
  tree = jax.eval_shape(UNet(config).init, jax.random.key(0), *inputs)
  shapes = flax.traverse_util.flatten_dict(tree["params"])
  assert sum(leaf.size for leaf in shapes.values()) == size
  block = ("down_blocks.1", "attentions.0", "transformer_blocks.0")
  kernel = shapes[*block, "attn2", "to_k", "kernel"]
  assert kernel.shape == (config.cross_attention_dim, 640)
  assert (*block, "attn1", "to_out.0", "kernel") in shapes


def test_heads_are_what_released_models_have():
  # 8 heads everywhere in 1.5; heads of 64 channels everywhere in 2.1.
  assert Config.from_json(SD15).num_heads == (8, 8, 8, 8)
  config = Config.from_json(SD21)
  widths = np.array(config.block_out_channels)
  assert (widths // config.num_heads == 64).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"addition_embed_type": "text_time"},
      "addition_time_embed_dim is None and .* more than 6 times that",
    ),
    (
      {"transformer_layers_per_block": [1, 2, 10]},
      r"transformer_layers_per_block is \(1, 2, 10\); .* of each of 4 levels",
    ),
    (
      {"transformer_layers_per_block": [1, 1, 2, [2, 2]]},
      r"transformer_layers_per_block is \[1, 1, 2, .* needed is int",
    ),
    (
      {"reverse_transformer_layers_per_block": [1, 1, 0, 1]},
      "reverse_transformer_layers_per_block is .* 1 or more",
    ),
    (
      {"addition_embed_type": "image"},
      "addition_embed_type is 'image'; supported is 'text_time'",
    ),
    ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ({"center_input_sample": True}, "center_input_sample is True"),
    ({"act_fn": "gelu"}, "act_fn is 'gelu'; supported is 'silu'"),
    ({"num_attention_heads": 8}, "num_attention_heads is 8"),
    ({"mid_block_type": None}, "mid_block_type is None"),
    ({"layers_per_block": [2, 2, 2, 2]}, r"block is \[2, .* needed is int$"),
    ({"norm_num_groups": None}, "norm_num_groups is None; needed is int$"),
    ({"norm_num_groups": 0}, "norm_num_groups is 0; needed is 1 or more"),
    ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'; needed is float"),
    (
      {"use_linear_projection": 1},
      "use_linear_projection is 1; needed is bool",
    ),
    (
      {"norm_num_groups": 48},
      "320, which norm_num_groups = 48 does not divide",
    ),
    ({"cross_attention_dim": [768] * 4}, r"cross_attention_dim is \[768"),
    ({"in_channels": True}, "in_channels is True"),
    ({"sample_size": 0}, "sample_size is 0"),
    ({"block_out_channels": 320}, r"is 320; needed is tuple\[int, \.\.\.\]"),
    ({"block_out_channels": [320, 0]}, "block_out_channels is .* 1 or more"),
    ({"block_out_channels": []}, "block_out_channels is .* 1 or more"),
    ({"attention_head_dim": [5, 10, 20]}, "needed is a list of 4"),
    ({"attention_head_dim": 7}, "7 heads, which do not divide a width of 320"),
    ({"attention_head_dim": 0}, "0 heads, which do not divide a width of 320"),
    (
      {"attention_head_dim": None},
      r"attention_head_dim is None; needed is int \| tuple\[int, \.\.\.\]",
    ),
    ({"up_block_types": ["UpBlock2D"]}, "up_block_types is .* a list of 4"),
    (
      {"down_block_types": ["AttnDownBlock2D"] * 4},
      "down_block_types has 'AttnDownBlock2D'; supported is CrossAttnDown",
    ),
  ],
)
def test_another_architecture_is_refused(change, message):
  with pytest.raises(ValueError, match=message) as error:
    Config.from_json(SD15 | change)
  assert "\n" not in str(error.value)


def test_layers_of_transformers_go_back_up_as_they_came_down():
  config = Config.from_json(SDXL)
  assert config.depths == ((0, 2, 10), 10, (10, 2, 0))
  assert config.pooled_dim == 1280
  up = {"reverse_transformer_layers_per_block": [3, 1, 7]}
  assert Config.from_json(SDXL | up).depths == ((0, 2, 10), 10, (3, 1, 0))
  assert Config.from_json(SD15).depths == ((1, 1, 1, 0), 1, (0, 1, 1, 1))


def test_absent_fields_have_the_defaults_of_diffusers():
  assert Config.from_json({}) == Config()
  assert Config().flip_sin_to_cos and Config().freq_shift == 0
  assert Config().norm_eps == 1e-5
  config = Config.from_json(SD15 | {"num_class_embeds": 4, "note": "mine"})
  assert config.layers_per_block == 2 and config.norm_num_groups == 32
  assert config.num_class_embeds == 4 and config.control_dim == 1280

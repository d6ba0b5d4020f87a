# SPDX-License-Identifier: Apache-2.0
"""Folders and arguments that ctrl_jax.diffusers refuses: one line each."""

import json
import re

import pytest

import ctrl_jax
from ctrl_jax.diffusers import pipelines
from ctrl_jax.diffusers.dit_config import Config as DiTConfig
from ctrl_jax.diffusers.schedules import Scheduler
from ctrl_jax.diffusers.unet2d_config import Config as UNetConfig
from tests import toy_diffusers as toy

# What the files of released models say.
DDPM = {
  "_class_name": "UNet2DModel",
  "_diffusers_version": "0.0.4",
  "act_fn": "silu",
  "attention_head_dim": None,
  "block_out_channels": [128, 128, 256, 256, 512, 512],
  "center_input_sample": False,
  "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "in_channels": 3,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-06,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 256,
  "time_embedding_type": "positional",
  "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
DIT = {
  "_class_name": "Transformer2DModel",
  "activation_fn": "gelu-approximate",
  "attention_bias": True,
  "attention_head_dim": 72,
  "cross_attention_dim": None,
  "dropout": 0.0,
  "in_channels": 4,
  "norm_elementwise_affine": False,
  "norm_num_groups": 32,
  "norm_type": "ada_norm_zero",
  "num_attention_heads": 16,
  "num_embeds_ada_norm": 1000,
  "num_layers": 28,
  "num_vector_embeds": None,
  "only_cross_attention": False,
  "out_channels": 8,
  "patch_size": 2,
  "sample_size": 32,
  "upcast_attention": False,
  "use_linear_projection": False,
}


def refusal(make, error=ValueError):
  """The one line in which something fails."""
  with pytest.raises(error) as caught:
    make()
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_released_models_are_read():
  unet, dit = UNetConfig.from_json(DDPM), DiTConfig.from_json(DIT)
  assert unet.sample_shape == (256, 256, 3) and unet.control_dim == 512
  assert unet.attends_down == [False] * 4 + [True, False]
  assert dit.dims == 1152 and dit.num_tokens == 256
  # What a file leaves out has the default of diffusers.
  assert unet.add_attention and unet.num_class_embeds is None
  assert dit.norm_eps == 1e-5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"resnet_time_scale_shift": "scale_shift"},
      "resnet_time_scale_shift is 'scale_shift'; supported is 'default', as in "
      "DDPM's U-Net",
    ),
    ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
    ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ({"downsample_type": "resnet"}, "downsample_type is 'resnet'"),
    ({"mid_block_type": None}, "mid_block_type is None"),
    ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DCond"),
    (
      {"down_block_types": ["SkipDownBlock2D"] * 6},
      "down_block_types has 'SkipDownBlock2D'; supported is AttnDownBlock2D",
    ),
    ({"out_channels": 6}, "out_channels is 6; needed are as many as"),
    ({"downsample_padding": 2}, "downsample_padding is 2; needed is 0 or 1"),
    ({"sample_size": None}, "sample_size is None; needed is the side"),
    ({"sample_size": 100}, "sample_size is 100; .* multiples of 32"),
    ({"sample_size": [256, 100]}, r"sample_size is \(256, 100\)"),
    ({"attention_head_dim": 7}, "is 7, which does not divide a width of 512"),
    ({"norm_eps": None}, "norm_eps is None; needed is float"),
  ],
)
def test_another_unet_is_refused(change, message):
  found = refusal(lambda: UNetConfig.from_json(DDPM | change))
  assert re.search(message, found), found


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'"),
    ({"activation_fn": "geglu"}, "activation_fn is 'geglu'"),
    ({"cross_attention_dim": 768}, "cross_attention_dim is 768"),
    ({"norm_elementwise_affine": True}, "norm_elementwise_affine is True"),
    ({"_class_name": "PixArtTransformer2DModel"}, "_class_name is 'PixArt"),
    ({"out_channels": 5}, "out_channels is 5; needed are as many as"),
    ({"patch_size": 3}, "sample_size is 32, which patch_size = 3"),
    ({"patch_size": None}, "patch_size is None; needed is int"),
    ({"num_layers": 0}, "num_layers is 0"),
    (
      {"num_attention_heads": 1, "attention_head_dim": 6},
      "num_attention_heads x attention_head_dim is 6",
    ),
  ],
)
def test_another_transformer_is_refused(change, message):
  assert message in refusal(lambda: DiTConfig.from_json(DIT | change))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"thresholding": True}, "thresholding is True"),
    ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name is 'ScoreSdeVe"),
    ({"clip_sample": "yes"}, "clip_sample is 'yes'; needed is bool"),
    ({"clip_sample_range": 0}, "clip_sample_range is 0.0; it must be positive"),
  ],
)
def test_another_scheduler_is_refused(change, message):
  assert message in refusal(lambda: Scheduler.from_json(change))


def test_another_pipeline_is_refused(tmp_path):
  load = lambda: ctrl_jax.diffusers.load(tmp_path)
  assert "no model_index.json in" in refusal(load, FileNotFoundError)
  for kind, message in (
    ("LDMPipeline", "holds a LDMPipeline; supported are DDPMPipeline, DDIM"),
    ("StableDiffusionPipeline", "reads prompts: ctrl_jax.diffusers.load_pro"),
    ("StableDiffusion3Pipeline", "reads prompts: ctrl_jax.diffusers.load_pr"),
  ):
    index = {"_class_name": kind}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert message in refusal(load)
  steps = lambda: ctrl_jax.diffusers.kernel(tmp_path, 9)
  assert "has no folder transformer" in refusal(steps, FileNotFoundError)
  (tmp_path / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
  assert "holds a LDMPipeline; supported are" in refusal(steps)


def test_what_does_not_suit_the_model_is_refused(tmp_path):
  pixels = toy.write_pixels(tmp_path / "pixels")
  latents = toy.write_dit(tmp_path / "latents")
  load = ctrl_jax.diffusers.load
  for folder, settings, message in (
    (pixels, {"clip": True}, "this scheduler cuts nothing"),
    (pixels, {"guidance": 2.0}, "guidance is 2.0; DDPMPipeline has none"),
    (pixels, {"classes": (0,)}, "this model has none"),
    (latents, {"guidance": 0.5}, "guidance must be 1 or more, got 0.5"),
    (latents, {"classes": (3,)}, "classes has 3; the classes are 0 ... 2"),
  ):
    assert message in refusal(lambda: load(folder, **settings))  # noqa: B023
  file = latents / "vae" / "config.json"
  wide = json.loads(file.read_text()) | {"latent_channels": 8}
  file.write_text(json.dumps(wide))
  assert "does not fit the network" in refusal(lambda: load(latents))


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ({"3": "owl"}, "id2label has 'owl' for '3'"),
    ({"0": 7}, "id2label has 7 for '0'; needed is a text"),
    (["owl"], "id2label is ['owl']; needed is an object"),
  ],
)
def test_labels_that_are_none_are_refused(labels, message):
  index = {"id2label": labels}
  assert message in refusal(lambda: pipelines.labels(index, 3))


def test_classes_that_are_none_are_refused():
  labels = ("tench, Tinca tinca", "crane", "crane, bird")
  for chosen, message in (
    (("crane",), "'crane', that of 2 classes, [1, 2]; a number is needed"),
    (("owl",), "classes has the name 'owl', of none"),
    ((-1,), "classes has -1; the classes are 0 ... 2"),
    ((0, "tench"), "needed is one or more, each of them once"),
    ((), "needed is one or more"),
  ):
    assert message in refusal(lambda: pipelines.choose(labels, chosen))  # noqa: B023
  assert pipelines.choose(labels, None).names == (
    "tench",
    "crane (1)",
    "crane (2)",
  )

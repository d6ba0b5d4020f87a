# SPDX-License-Identifier: Apache-2.0
"""Small parts of Stable Diffusion 3 and 3.5 that diffusers writes."""

import json
import pathlib

import diffusers
import transformers

from tests.parity import toy_t5
from tests.parity.against_torch import perturb

# Positions of images of up to 6 patches a side, in the scale of 4.
SD3 = {
  "sample_size": 8,
  "patch_size": 2,
  "in_channels": 16,
  "out_channels": 16,
  "num_layers": 3,
  "attention_head_dim": 8,
  "num_attention_heads": 4,
  "joint_attention_dim": 40,
  "caption_projection_dim": 32,
  "pooled_projection_dim": 24,
  "pos_embed_max_size": 6,
}
SD35 = SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
# Of which no released model has any: a last block that is dual, one patch to a
# latent, and an odd table.
ODD = SD35 | {
  "num_layers": 2,
  "patch_size": 1,
  "dual_attention_layers": (1,),
  "pos_embed_max_size": 9,
}
TRANSFORMERS = {"sd3": SD3, "sd35": SD35, "odd": ODD}


def transformer(kind: str) -> diffusers.SD3Transformer2DModel:
  """The network, with nothing at 0 or 1."""
  return perturb(diffusers.SD3Transformer2DModel(**TRANSFORMERS[kind]))


# Of the two CLIPs: together as wide as pooled_projection_dim says.
CLIPS = {
  "": {"hidden_size": 12, "projection_dim": 10, "hidden_act": "quick_gelu"},
  "_2": {"hidden_size": 16, "projection_dim": 14, "hidden_act": "gelu"},
}
_LETTERS = [*"acdgot", *(f"{letter}</w>" for letter in "acdgot")]
_WORDS = [*_LETTERS, "<|startoftext|>", "<|endoftext|>", "!"]


def write_pipeline(
  folder: pathlib.Path, kind: str, *, with_t5: bool
) -> diffusers.StableDiffusion3Pipeline:
  """The folder of a StableDiffusion3Pipeline; returns the pipeline."""
  parts = {}
  for i, (suffix, sizes) in enumerate(CLIPS.items()):
    parts[f"tokenizer{suffix}"] = _clip_tokenizer(folder / f"vocabulary{i}", i)
    config = transformers.CLIPTextConfig(
      vocab_size=len(_WORDS),
      intermediate_size=24,
      num_hidden_layers=3,
      num_attention_heads=2,
      bos_token_id=len(_WORDS) - 3,
      eos_token_id=len(_WORDS) - 2,
      **sizes,
    )
    encoder = transformers.CLIPTextModelWithProjection(config)
    parts[f"text_encoder{suffix}"] = perturb(encoder, seed=10 + i)
  if with_t5:
    parts["tokenizer_3"] = toy_t5.write_tokenizer(folder / "vocabulary2")
    encoder = toy_t5.encoder(d_model=TRANSFORMERS[kind]["joint_attention_dim"])
    parts["text_encoder_3"] = encoder
  vae = diffusers.AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
  )
  pipe = diffusers.StableDiffusion3Pipeline(
    transformer=transformer(kind),
    vae=perturb(vae, seed=1),
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    **{"tokenizer_3": None, "text_encoder_3": None} | parts,
  )
  pipe.save_pretrained(folder)
  pipe.set_progress_bar_config(disable=True)
  return pipe


def _clip_tokenizer(folder: pathlib.Path, i: int) -> transformers.CLIPTokenizer:
  """Letters for words; the second pads with "!", as that of bigG does."""
  folder.mkdir(parents=True)
  ids = {token: number for number, token in enumerate(_WORDS)}
  (folder / "vocab.json").write_text(json.dumps(ids))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  return transformers.CLIPTokenizer(
    str(folder / "vocab.json"),
    str(folder / "merges.txt"),
    model_max_length=77,
    pad_token=("<|endoftext|>", "!")[i],
  )

# SPDX-License-Identifier: Apache-2.0
"""Small parts of Stable Diffusion 3 and 3.5 that diffusers writes."""

import diffusers

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

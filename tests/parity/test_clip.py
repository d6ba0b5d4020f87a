# SPDX-License-Identifier: Apache-2.0
"""CLIP's towers against transformers, on weights that transformers wrote.

Bars are maximal differences relative to the largest value; in float32 the
contract is 1e-4. Every parameter is moved by noise before it is saved: biases
of 0 and scales of 1 would hide a tensor that went to the wrong place.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from ctrl_jax.stable_diffusion import clip, clip_text, weights

BAR = 1e-4
VOCAB, END, TOKENS = 120, 119, 77
SD1 = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "eos_token_id": 2}
SD2 = {"num_hidden_layers": 23, "hidden_act": "gelu", "eos_token_id": 2}
NEW = {"num_hidden_layers": 2, "eos_token_id": 7}
TEXT = {
  "vocab_size": VOCAB,
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_attention_heads": 4,
  "projection_dim": 32,
  "bos_token_id": 0,
  "pad_token_id": 1,
}
VISION = {
  "hidden_size": 48,
  "intermediate_size": 96,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "image_size": 32,
  "patch_size": 8,
  "projection_dim": 32,
}


def error(ours: Any, theirs: torch.Tensor) -> float:
  """Largest difference over the largest value."""
  reference = theirs.detach().float().numpy()
  assert ours.shape == reference.shape
  found = np.asarray(ours, np.float32)
  return float(abs(found - reference).max() / abs(reference).max())


def perturb(model: torch.nn.Module) -> torch.nn.Module:
  """The model, every parameter moved, far enough to bend activations."""
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model.eval()


def save_as_of_old(model: torch.nn.Module, folder: pathlib.Path) -> None:
  """Writes what transformers 4 wrote: one more prefix and a buffer."""
  model.save_pretrained(folder)
  file = folder / "model.safetensors"
  tensors = {
    name if name.startswith("text_") else f"text_model.{name}": tensor
    for name, tensor in safetensors.torch.load_file(file).items()
  }
  tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
  safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / "config.json").read_text())


def load(model: Any, folder: pathlib.Path, *inputs: Any) -> Any:
  """Variables of the model from the folder."""
  template = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  return {"params": weights.load(folder, template)}


def encode(
  folder: pathlib.Path, ids: np.ndarray, dtype: Any = jnp.float32
) -> clip_text.TextOutput:
  """What our text encoder makes of the weights in a folder."""
  model = clip_text.TextEncoder(
    clip_text.Config.from_json(read_config(folder)), dtype
  )
  variables = load(model, folder, jnp.asarray(ids))
  return jax.jit(model.apply)(variables, jnp.asarray(ids))


def token_ids() -> np.ndarray:
  """Three prompts; ends of text by either rule, and some after the first."""
  ids = np.random.default_rng(0).integers(8, END, (3, TOKENS))
  for row, end in enumerate((5, 40, 76)):
    ids[row, end:] = END
    ids[row, end // 2 :: 20] = 7  # the end mark of NEW, several times
  return ids


def pixels(side: int = 32) -> np.ndarray:
  shape = (2, side, side, 3)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def channels_first(images: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
  ("kind", "sizes"),
  [
    ("CLIPTextModel", SD1),
    ("CLIPTextModel", SD2),
    ("CLIPTextModel", NEW),
    ("CLIPTextModelWithProjection", SD2),
  ],
)
def test_text_encoder(
  tmp_path: pathlib.Path, kind: str, sizes: Mapping[str, Any]
) -> None:
  config = transformers.CLIPTextConfig(**TEXT, **sizes)
  network = perturb(getattr(transformers, kind)(config))
  save_as_of_old(network, tmp_path)
  # Those who wrote the old names read them as what they are.
  network = type(network).from_pretrained(tmp_path).eval()
  ids = token_ids()
  with torch.no_grad():
    theirs = network(input_ids=torch.from_numpy(ids))
  ours = encode(tmp_path, ids)
  found = {"last_hidden_state": error(ours.hidden, theirs.last_hidden_state)}
  if kind == "CLIPTextModel":
    assert ours.embedding is None
    found["pooler_output"] = error(ours.pooled, theirs.pooler_output)
  else:
    found["text_embeds"] = error(ours.embedding, theirs.text_embeds)
  print(kind, dict(sizes), {k: f"{v:.1e}" for k, v in found.items()})
  assert max(found.values()) < BAR


def test_bfloat16_is_as_far_from_the_truth_as_in_torch(
  tmp_path: pathlib.Path,
) -> None:
  """Root mean squares; their largest values are of few numbers, and vary."""
  network = perturb(
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, **SD1))
  ).to(torch.bfloat16)
  save_as_of_old(network, tmp_path)
  ids = token_ids()
  with torch.no_grad():
    rounded = network(input_ids=torch.from_numpy(ids)).last_hidden_state
    exact = network.float()(input_ids=torch.from_numpy(ids)).last_hidden_state
  ours = encode(tmp_path, ids, jnp.bfloat16).hidden
  assert ours.dtype == jnp.bfloat16
  distance = lambda x: np.sqrt(np.square(x - exact.numpy()).mean())
  found = distance(np.asarray(ours, np.float32))
  bar = distance(rounded.float().numpy())
  print(f"bfloat16: {found:.1e}, torch {bar:.1e}")
  assert 1e-3 < bar < 1e-1
  assert found < 1.25 * bar


def test_text_encoder_with_the_names_of_transformers_5(
  tmp_path: pathlib.Path,
) -> None:
  network = perturb(
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, **NEW))
  )
  network.save_pretrained(tmp_path)
  with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
    assert "final_layer_norm.bias" in file.keys()  # noqa: SIM118
  ids = token_ids()
  with torch.no_grad():
    theirs = network(input_ids=torch.from_numpy(ids))
  ours = encode(tmp_path, ids)
  assert error(ours.hidden, theirs.last_hidden_state) < BAR


def _gradients(
  model: clip.Clip, variables: Any, network: Any, images: np.ndarray
) -> tuple[jax.Array, torch.Tensor]:
  """Ours and theirs of the images' embeddings along one direction."""
  leaf = channels_first(images).requires_grad_()
  seen = network.vision_model(pixel_values=leaf).pooler_output
  theirs = network.visual_projection(seen)
  direction = np.random.default_rng(2).normal(size=theirs.shape)
  (theirs * torch.from_numpy(direction)).sum().backward()
  _, pullback = jax.vjp(
    lambda x: model.apply(variables, x, method="embed_images"),
    jnp.asarray(images),
  )
  (ours,) = pullback(jnp.asarray(direction, jnp.float32))
  return ours, leaf.grad.permute(0, 2, 3, 1)


@pytest.mark.parametrize("old", [False, True])
def test_whole_clip(tmp_path: pathlib.Path, old: bool) -> None:
  config = transformers.CLIPConfig(
    text_config=TEXT | NEW, vision_config=VISION, projection_dim=24
  )
  network = perturb(transformers.CLIPModel(config))
  network.save_pretrained(tmp_path)
  if old:  # a second description, which transformers prefers
    fields = read_config(tmp_path)
    fields["text_config_dict"] = TEXT | SD1 | {"num_hidden_layers": 2}
    fields["vision_config_dict"] = None
    (tmp_path / "config.json").write_text(json.dumps(fields))
    network = transformers.CLIPModel.from_pretrained(tmp_path).eval()
  ids, images = token_ids(), pixels()
  with torch.no_grad():
    theirs = network(
      input_ids=torch.from_numpy(ids), pixel_values=channels_first(images)
    )

  model = clip.Clip(clip.Config.from_json(read_config(tmp_path)), remat=True)
  inputs = jnp.asarray(ids), jnp.asarray(images)
  variables = load(model, tmp_path, *inputs)
  ours = jax.jit(model.apply)(variables, *inputs)
  texts = model.apply(variables, inputs[0], method="embed_texts")
  shown = model.apply(variables, inputs[1], method="embed_images")
  unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
  scores = clip.cosine(texts[:2], shown)
  gradient, expected = _gradients(model, variables, network, images)
  reference = (theirs.text_embeds[:2] * theirs.image_embeds).sum(1)
  found = [
    error(ours, theirs.logits_per_text),
    error(unit(texts), theirs.text_embeds),
    error(unit(shown), theirs.image_embeds),
    error(scores, reference),
    error(gradient, expected),
  ]
  print("logits, texts, images, scores, d:", [f"{e:.1e}" for e in found])
  assert max(found) < BAR

# SPDX-License-Identifier: Apache-2.0
"""Files of adapters: their scale, under every name that they have had."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ctrl_jax.stable_diffusion import lora_file, released

HEADER = "lora_adapter_metadata"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
MODULES = {f"{BLOCK}.to_q": (2, 6), f"{BLOCK}.to_out.0": (4, 8)}  # rank, out
PATHS = [
  "down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_q/kernel",
  "down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_out.0/kernel",
]


def kohya(module: str, side: str) -> str:
  return f"lora_unet_{module.replace('.', '_')}.lora_{side}.weight"


def processor(module: str, side: str) -> str:
  at, _, layer = module.removesuffix(".0").rpartition(".")
  return f"{at}.processor.{layer}_lora.{side}.weight"


NAMES: dict[str, Any] = {
  "unet.lora_A": lambda m, s: f"unet.{m}.lora_{'AB'[s == 'up']}.weight",
  "lora_A": lambda m, s: f"{m}.lora_{'AB'[s == 'up']}.weight",
  "peft": lambda m, s: f"base_model.model.{m}.lora_{'AB'[s == 'up']}.weight",
  "unet.lora.down": lambda m, s: f"unet.{m}.lora.{s}.weight",
  "processor": lambda m, s: f"unet.{processor(m, s)}",
  "bare processor": processor,
  "kohya": kohya,
}


def tensors(form: str = "unet.lora_A", dtype: Any = np.float32) -> Any:
  """Adapters under one form of their names; up down is 2 everywhere."""
  values = {}
  for module, (rank, out) in MODULES.items():
    down = np.full((rank, 8), 2 / rank, dtype)
    values[NAMES[form](module, "down")] = down
    values[NAMES[form](module, "up")] = np.ones((out, rank), dtype)
  return values


def write(
  file: pathlib.Path, values: Any, config: Any = None, prefix: str = "unet."
) -> pathlib.Path:
  """The file, with a config in its header, of names with a prefix."""
  header = {"format": "pt"}
  if config is not None:
    named = {f"{prefix}{name}": value for name, value in config.items()}
    header[HEADER] = json.dumps(named)
  safetensors.numpy.save_file(values, file, metadata=header)
  return file


def products(adapters: lora_file.Adapters) -> list[float]:
  """The one value of A B, of to_q and of to_out.0."""
  assert sorted(adapters) == sorted(PATHS)
  found = []
  for path in PATHS:
    pair = {
      side: np.asarray(v, np.float64) for side, v in adapters[path].items()
    }
    product = pair["a"] @ pair["b"]
    assert np.ptp(product) < 1e-6
    found.append(float(product[0, 0]))
  return found


@pytest.mark.parametrize("form", NAMES)
def test_every_form_of_names_without_a_word_of_scale(tmp_path, form) -> None:
  file = write(tmp_path / lora_file.FILE, tensors(form))
  if form == "peft":
    with pytest.raises(ValueError, match=r"needs adapter_config\.json beside"):
      lora_file.load(file)
  else:
    assert products(lora_file.load(tmp_path)) == [2, 2]


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ({"r": 2, "lora_alpha": 8, "rank_pattern": {"to_out.0": 4}}, [8, 4]),
    (
      {
        "r": 2,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {f"^{BLOCK}.to_out.0": 4},
      },
      [2 * 8 / 2**0.5, 2 * 8 / 4**0.5],
    ),
    (
      {
        "r": 4,
        "lora_alpha": 2.0,
        "rank_pattern": {"attn1.to_q": 2, "to_q": 7},
        "alpha_pattern": {r"attn1\.to_out\.0": -4, "ut.0": 99, "0": 5},
      },
      [2, -2],
    ),
    # What is absent or null is PEFT's default, 8.
    ({"rank_pattern": {"to_q": 2, "0": 4}, "alpha_pattern": None}, [8, 4]),
  ],
)
@pytest.mark.parametrize("place", ["header", "bare header", "beside", "peft"])
def test_scales_of_a_config(tmp_path, place, config, expected) -> None:
  form = {"bare header": "lora_A", "peft": "peft"}.get(place, "unet.lora_A")
  file = tmp_path / lora_file.FILE
  if place in ("header", "bare header"):
    write(file, tensors(form), config, "" if place != "header" else "unet.")
    # A config beside has no say where the header speaks.
    (tmp_path / "adapter_config.json").write_text('{"r": 77}')
  else:
    name = "adapter_model.safetensors" if place == "peft" else file.name
    write(tmp_path / name, tensors(form))
    fields = config | {"peft_type": "LORA", "bias": "none", "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
  found = products(lora_file.load(tmp_path))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_alphas_that_are_tensors(tmp_path) -> None:
  values = tensors("kohya")
  name = kohya(f"{BLOCK}.to_q", "down").replace("lora_down.weight", "alpha")
  values[name] = np.array(8, np.float32)
  write(tmp_path / "kohya.safetensors", values)
  assert products(lora_file.load(tmp_path / "kohya.safetensors")) == [8, 2]
  values = tensors() | {f"unet.{BLOCK}.to_out.0.alpha": np.ones(1, np.float16)}
  file = write(tmp_path / "dots.safetensors", values)
  assert products(lora_file.load(file)) == [2, 0.5]


def test_scaled_adapters_in_half_precision_are_not_rounded(tmp_path) -> None:
  config = {"r": 2, "lora_alpha": 3, "use_rslora": True}
  config["rank_pattern"] = {"to_out.0": 4}
  values = tensors(dtype=jnp.bfloat16)
  file = write(tmp_path / lora_file.FILE, values, config)
  found = products(lora_file.load(file))
  np.testing.assert_allclose(found, [6 / 2**0.5, 3], rtol=1e-6)


def test_the_checkpoints_of_the_authors_have_a_scale_too(tmp_path) -> None:
  values = tensors("bare processor")
  values["class_embedding.weight"] = np.zeros((2, 12), np.float32)
  config = {"r": 2, "lora_alpha": 8, "rank_pattern": {"0": 4}}
  file = write(tmp_path / "ctrl.safetensors", values, config)
  assert products(released.load(file)["lora"]) == [8, 4]


@pytest.mark.parametrize("ranks", [(2, 2), (2, 4)])
def test_what_is_written_says_that_its_scale_is_1(tmp_path, ranks) -> None:
  adapters = {
    path: {"a": jnp.ones((8, r)), "b": jnp.full((r, 6), 2 / r)}
    for path, r in zip(PATHS, ranks, strict=True)
  }
  lora_file.save(tmp_path, adapters)
  with safetensors.safe_open(tmp_path / lora_file.FILE, "np") as file:
    config = json.loads(file.metadata()[HEADER])
  assert config["unet.r"] == config["unet.lora_alpha"] == max(ranks)
  assert config["unet.use_rslora"] is False
  others = {f"^{BLOCK}.to_q": 2} if ranks == (2, 4) else {}
  assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == others
  assert sorted(config["unet.target_modules"]) == sorted(MODULES)
  assert products(lora_file.load(tmp_path)) == [2, 2]
  with pytest.raises(ValueError, match="no adapters to write"):
    lora_file.save(tmp_path, {})


GOOD = {"r": 2, "lora_alpha": 8, "rank_pattern": {"to_out.0": 4}}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"r": 3}, "r is 3, but .*to_q has rank 2"),
    ({"r": "2"}, "r is '2', but"),
    ({"rank_pattern": {}}, "r is 2, but .*to_out.0 has rank 4"),
    ({"rank_pattern": [4]}, r"rank_pattern is \[4\]; needed is an object"),
    ({"rank_pattern": {"(a+)+$": 4}}, r"rank_pattern has '\(a\+\)\+\$', not a"),
    ({"lora_alpha": None}, "alpha is None; needed is a number"),
    ({"lora_alpha": float("nan")}, "alpha is nan; needed is a number"),
    ({"alpha_pattern": {"to_q": "8"}}, "alpha is '8'; needed is a number"),
    ({"use_rslora": "no"}, "use_rslora is 'no'; needed is bool"),
    ({"use_dora": True}, "use_dora is True, not supported"),
    ({"lora_bias": True}, "lora_bias is True, not supported"),
    ({"bias": "all"}, "bias is 'all'; supported is 'none'"),
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; supported is 'LORA'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', not supp"),
  ],
)
def test_what_scales_cannot_be_told_from(tmp_path, change, message) -> None:
  file = write(tmp_path / lora_file.FILE, tensors(), GOOD | change)
  with pytest.raises(ValueError, match=message) as error:
    lora_file.load(file)
  assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({f"unet.{BLOCK}.to_q.alpha": 8.0}, "an alpha in the file and in its con"),
    ({f"{BLOCK}.to_q.lora_A.weight": [[1.0]]}, "is there under two names"),
    ({"lora_te_text_model.lora_down.weight": [[1.0]]}, "is no adapter of a D"),
    ({"text_encoder.fc1.lora_A.weight": [[1.0]]}, "is no adapter of a Dense"),
    ({"unet.conv1.lora_A.weight": [[[[1.0]]]]}, "is no adapter of a Dense"),
    ({f"unet.{BLOCK}.to_q.dora_scale": [[1.0]]}, "is no adapter of a Dense"),
    ({f"unet.{BLOCK}.to_k.lora_A.weight": [[np.inf]]}, "is not finite"),
    ({"unet.x.lora_A.weight": np.ones((2, 2), np.int8)}, "is I8, which is no"),
  ],
)
def test_what_else_a_file_may_hold(tmp_path, more, message) -> None:
  extra = {
    name: value
    if isinstance(value, np.ndarray)
    else np.array(value, np.float32)
    for name, value in more.items()
  }
  file = write(tmp_path / lora_file.FILE, tensors() | extra, GOOD)
  with pytest.raises(ValueError, match=message) as error:
    lora_file.load(file)
  assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_adapters_and_a_header_that_is_no_json(tmp_path) -> None:
  file = write(tmp_path / lora_file.FILE, {})
  with pytest.raises(ValueError, match="holds no adapters"):
    lora_file.load(file)
  for text in ("[" * 10**5, "{", "2", '{"unet.r": 2, "unet.r": 4}'):
    header = {"format": "pt", HEADER: text}
    safetensors.numpy.save_file(tensors(), file, metadata=header)
    with pytest.raises(ValueError, match="lora_adapter_metadata") as error:
      lora_file.load(file)
    assert "\n" not in str(error.value)

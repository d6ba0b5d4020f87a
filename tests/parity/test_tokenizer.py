# SPDX-License-Identifier: Apache-2.0
"""Ids of 1,000 prompts against transformers' CLIPTokenizer.

The vocabulary is CLIP's own. OpenAI publishes it as a list of merges, which
the package open-clip-torch carries; vocab.json and merges.txt follow from it.
"""

import gzip
import importlib.util
import json
import pathlib
import sys
from typing import Any

import pytest
import transformers

from ctrl_jax.stable_diffusion import tokenizer
from tests.parity import prompts as varied

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
NUM_MERGES = 48894


def write_vocabulary(folder: pathlib.Path) -> None:
  """vocab.json and merges.txt, as OpenAI's code derives them from the list."""
  package = importlib.util.find_spec("open_clip")
  if package is None or package.origin is None:
    pytest.fail(
      "the parity environment needs open-clip-torch: see `make parity`"
    )
  file = pathlib.Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
  lines = gzip.decompress(file.read_bytes()).decode().split("\n")
  merges = lines[1 : NUM_MERGES + 1]
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [chr(byte) for byte in printable]
  letters += [chr(256 + i) for i in range(256 - len(printable))]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
  tokens += ["".join(merge.split()) for merge in merges] + [BEGIN, END]
  vocab = {token: i for i, token in enumerate(tokens)}
  assert len(vocab) == 49408
  (folder / "vocab.json").write_text(json.dumps(vocab))
  text = "#version: 0.2\n" + "\n".join(merges) + "\n"
  (folder / "merges.txt").write_text(text, encoding="utf-8")


def token(content: str, **more: Any) -> dict[str, Any]:
  flags = {"lstrip": False, "rstrip": False, "single_word": False}
  return {"content": content, "normalized": True, **flags, **more}


def write_settings(folder: pathlib.Path, name: str) -> None:
  """The files beside the vocabulary in a folder of Stable Diffusion."""
  added = {"__type": "AddedToken"}
  roles = {"bos_token": BEGIN, "eos_token": END, "unk_token": END}
  config: dict[str, Any] = {k: token(v, **added) for k, v in roles.items()} | {
    "pad_token": END,
    "model_max_length": 77,
    "do_lower_case": True,
  }
  names = {k: token(v) for k, v in roles.items()}
  names["pad_token"] = END if name == "sd1" else "!"
  if name == "sd2-later":
    config |= roles | {"pad_token": "!"}
    config["added_tokens_decoder"] = {
      "0": token("!", special=True, normalized=False),
      "49406": token(BEGIN, special=True, normalized=False),
      "49407": token(END, special=True),
    }
  config["tokenizer_class"] = "CLIPTokenizer"
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "special_tokens_map.json").write_text(json.dumps(names))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["bare", "sd1", "sd2", "sd2-later"])
def test_ids_of_a_thousand_prompts(
  tmp_path: pathlib.Path, name: str, again: bool
) -> None:
  write_vocabulary(tmp_path)
  if name != "bare":
    write_settings(tmp_path, name)
  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
  folder = tmp_path
  if again:  # as transformers 5 writes it: without vocab.json
    folder = tmp_path / "again"
    theirs.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
  ours = tokenizer.Tokenizer.from_folder(folder)

  prompts = varied.make_prompts()
  assert len(prompts) == 1000
  assert len(set(prompts)) > 900
  expected = theirs(
    prompts, padding="max_length", max_length=77, truncation=True
  ).input_ids
  whole = theirs(prompts).input_ids
  tokens = ours(prompts)
  equal = sum(
    a == b for a, b in zip(tokens.ids.tolist(), expected, strict=True)
  )
  print(f"{name}, again {again}: {equal} of 1,000 equal", file=sys.stderr)
  assert equal == 1000
  assert tokens.truncated.tolist() == [len(ids) > 77 for ids in whole]
  assert 20 < tokens.truncated.sum() < 500
  assert tokens.ids.max() == 49407
  # The ids that CLIP's users know by heart.
  cat = prompts.index("a photo of a cat")
  assert expected[cat][:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
  assert expected[cat][7] == (0 if name.startswith("sd2") else 49407)

# SPDX-License-Identifier: Apache-2.0
"""CLIP's byte-pair encoding on a vocabulary small enough to merge by hand."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ctrl_jax.stable_diffusion.tokenizer import Tokenizer, Tokens

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "!'acst123"
MERGES = ["a t</w>", "c at</w>", "' s</w>", "s at</w>"]
# Bytes of é in UTF-8, as the letters that stand for them.
ACUTE = ["\u00c3", "\u00a9"]


def make_vocabulary() -> dict[str, int]:
  letters = [*LETTERS, *ACUTE]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
  tokens += [merge.replace(" ", "") for merge in MERGES] + [BEGIN, END]
  return {token: i for i, token in enumerate(tokens)}


VOCAB = make_vocabulary()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
  (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
  (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
  return tmp_path


def write(folder: pathlib.Path, name: str, fields: Any) -> None:
  (folder / name).write_text(json.dumps(fields))


def encode(folder: pathlib.Path, prompt: str) -> list[str]:
  """The tokens between the marks, by name."""
  names = {i: name for name, i in VOCAB.items()}
  (ids,) = Tokenizer.from_folder(folder)([prompt]).ids
  tokens = [names[int(i)] for i in ids]
  assert tokens[0] == BEGIN
  return tokens[1 : tokens.index(END)]


@pytest.mark.parametrize(
  ("prompt", "tokens"),
  [
    ("cat", ["cat</w>"]),
    ("sat", ["sat</w>"]),
    ("at cats", ["at</w>", "c", "a", "t", "s</w>"]),
    ("  CAT\t\n\u3000cat\u00a0", ["cat</w>", "cat</w>"]),
    ("cat's", ["cat</w>", "'s</w>"]),
    ("'cat", ["'</w>", "cat</w>"]),
    ("12 3", ["1</w>", "2</w>", "3</w>"]),  # a digit is a word
    ("!!cat!", ["!", "!</w>", "cat</w>", "!</w>"]),
    ("\u00e9", [ACUTE[0], f"{ACUTE[1]}</w>"]),
    ("\u00c9", [ACUTE[0], f"{ACUTE[1]}</w>"]),
    ("", []),
    (" \n", []),
  ],
)
def test_encoding_by_hand(
  folder: pathlib.Path, prompt: str, tokens: list[str]
) -> None:
  assert encode(folder, prompt) == tokens


def test_marks_that_combine_are_composed(folder: pathlib.Path) -> None:
  assert encode(folder, "e\u0301") == encode(folder, "\u00e9")


def test_what_the_vocabulary_lacks_is_the_end_mark(
  folder: pathlib.Path,
) -> None:
  (ids,) = Tokenizer.from_folder(folder)(["cat x cat"]).ids
  cat = VOCAB["cat</w>"]
  assert ids[:5].tolist() == [VOCAB[BEGIN], cat, VOCAB[END], cat, VOCAB[END]]


def test_prompts_are_padded_and_cut(folder: pathlib.Path) -> None:
  prompts = ["cat", "cat " * 75, "cat " * 76, "!" * 3000]
  tokens = Tokenizer.from_folder(folder)(prompts)
  assert tokens.ids.shape == (4, 77)
  assert tokens.ids.dtype == np.int32
  assert tokens.truncated.tolist() == [False, False, True, True]
  assert (tokens.ids[0, 2:] == VOCAB[END]).all()
  assert tokens.ids[1].tolist() == tokens.ids[2].tolist()
  assert (tokens.ids[1, 1:76] == VOCAB["cat</w>"]).all()
  assert (tokens.ids[:, 0] == VOCAB[BEGIN]).all()
  assert (tokens.ids[:, 76] == VOCAB[END]).all()


def test_no_prompts(folder: pathlib.Path) -> None:
  tokens = Tokenizer.from_folder(folder)(())
  assert tokens.ids.shape == (0, 77)
  assert tokens.truncated.shape == (0,)


def test_prompts_do_not_depend_on_each_other(folder: pathlib.Path) -> None:
  tokenizer = Tokenizer.from_folder(folder)
  prompts = ["cat", "sat 12", "cat " * 80]
  together = tokenizer(iter(prompts))
  alone = [tokenizer([prompt]) for prompt in prompts]
  stacked = Tokens(*(np.concatenate(x) for x in zip(*alone, strict=True)))
  np.testing.assert_array_equal(together.ids, stacked.ids)
  np.testing.assert_array_equal(together.truncated, stacked.truncated)


def test_length_of_the_folder(folder: pathlib.Path) -> None:
  write(folder, "tokenizer_config.json", {"model_max_length": 5})
  tokens = Tokenizer.from_folder(folder)(["cat", "cat " * 4])
  assert tokens.ids.shape == (2, 5)
  assert tokens.truncated.tolist() == [False, True]
  # What transformers writes if it does not know.
  write(folder, "tokenizer_config.json", {"model_max_length": int(1e30)})
  assert Tokenizer.from_folder(folder).length == 77


def test_padding_of_stable_diffusion_2(folder: pathlib.Path) -> None:
  """An old folder names the padding in the second of two files."""
  write(folder, "tokenizer_config.json", {"pad_token": END})
  write(folder, "special_tokens_map.json", {"pad_token": "!"})
  (ids,) = Tokenizer.from_folder(folder)(["cat! cat"]).ids
  cat, pad = VOCAB["cat</w>"], VOCAB["!"]
  marks = [VOCAB[BEGIN], cat, pad, cat, VOCAB[END]]
  assert ids.tolist() == marks + [pad] * 72
  # A later one lists its special tokens, and then the first file counts.
  added = {"0": {"content": "!", "normalized": False, "special": True}}
  config = {"added_tokens_decoder": added, "pad_token": END}
  write(folder, "tokenizer_config.json", config)
  (ids,) = Tokenizer.from_folder(folder)(["cat! cat"]).ids
  assert ids.tolist() == marks + [VOCAB[END]] * 72


@pytest.mark.parametrize("normalized", [None, False, True])
def test_marks_within_a_prompt(
  folder: pathlib.Path, normalized: bool | None
) -> None:
  """They are themselves; in capitals too, if described as normalised."""
  if normalized is not None:  # else of bare text
    mark = {"content": BEGIN, "normalized": normalized}
    write(folder, "special_tokens_map.json", {"bos_token": mark})
  assert encode(folder, f"cat{BEGIN}cat") == ["cat</w>", BEGIN, "cat</w>"]
  (ids,) = Tokenizer.from_folder(folder)([BEGIN.upper()]).ids
  assert (ids[1] == VOCAB[BEGIN]) == bool(normalized)


@pytest.mark.parametrize("pairs", [False, True])
def test_vocabulary_in_one_file(folder: pathlib.Path, pairs: bool) -> None:
  prompts = ["a cat's", "sat 123 !", "cat " * 80]
  expected = Tokenizer.from_folder(folder)(prompts)
  merges = [merge.split() for merge in MERGES] if pairs else MERGES
  model = {"type": "BPE", "vocab": VOCAB, "merges": merges}
  write(folder, "tokenizer.json", {"model": model, "added_tokens": []})
  for name in ("vocab.json", "merges.txt"):
    (folder / name).unlink()
  tokens = Tokenizer.from_folder(folder)(prompts)
  np.testing.assert_array_equal(tokens.ids, expected.ids)
  np.testing.assert_array_equal(tokens.truncated, expected.truncated)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_files_are_named(folder: pathlib.Path, name: str) -> None:
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=name) as caught:
    Tokenizer.from_folder(folder)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("vocab.json", '{"a": 0', "vocab.json is not valid JSON"),
    ("vocab.json", "[]", "vocab.json holds no JSON object"),
    ("vocab.json", b"\xff\xfe", "vocab.json is not UTF-8"),
    ("vocab.json", '{"a": "b"}', "vocab.json: token 'a' has 'b' for an id"),
    ("merges.txt", b"\xff\xfe", "merges.txt is not UTF-8"),
    ("merges.txt", "c at</w> a", "merges.txt: 'c at</w> a' is no pair"),
    ("merges.txt", "c 1", "merges.txt: 'c 1' is no pair"),
    (
      "tokenizer_config.json",
      "null",
      "tokenizer_config.json holds no JSON object",
    ),
    (
      "tokenizer_config.json",
      '{"tokenizer_class": "T5Tokenizer"}',
      "'T5Tokenizer' is not CLIPTokenizer",
    ),
    (
      "tokenizer_config.json",
      '{"model_max_length": 2}',
      "model_max_length=2 is no length",
    ),
    (
      "tokenizer_config.json",
      '{"model_max_length": "long"}',
      "model_max_length='long' is no length",
    ),
    (
      "tokenizer_config.json",
      '{"pad_token": 0}',
      "pad_token=0 is no token",
    ),
    ("added_tokens.json", '{"<new>": 30}', "'<new>' is not in the vocabulary"),
    (
      "special_tokens_map.json",
      '{"pad_token": "[PAD]"}',
      r"'\[PAD\]' is not in the vocabulary",
    ),
  ],
)
def test_faulty_files_are_one_line(
  folder: pathlib.Path, name: str, content: str | bytes, message: str
) -> None:
  data = content if isinstance(content, bytes) else content.encode()
  (folder / name).write_bytes(data)
  with pytest.raises(ValueError, match=message) as caught:
    Tokenizer.from_folder(folder)
  assert "\n" not in str(caught.value)


def test_a_file_without_byte_pairs_is_refused(folder: pathlib.Path) -> None:
  (folder / "vocab.json").unlink()
  for model in ({"type": "Unigram", "vocab": []}, None):
    write(folder, "tokenizer.json", {"model": model})
    with pytest.raises(ValueError, match="holds no byte-pair encoding"):
      Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    ("a cat", "a list of prompts is needed, not one: 'a cat'"),
    (["cat", None], "prompt 1 is no text: None"),
    ([b"cat"], "prompt 0 is no text: b'cat'"),
    (["cat", "\ud83d"], r"prompt 1 holds half a character: '\\ud83d'"),
  ],
)
def test_prompts_that_are_none(
  folder: pathlib.Path, prompts: Any, message: str
) -> None:
  tokenizer = Tokenizer.from_folder(folder)
  # An iterator, for the type checker of the tests looks into lists.
  given = prompts if isinstance(prompts, str) else iter(prompts)
  with pytest.raises(ValueError, match=message):
    tokenizer(given)

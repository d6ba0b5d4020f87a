# SPDX-License-Identifier: Apache-2.0
"""T5 against the same in NumPy, and what its tokenizer makes of words."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ctrl_jax.stable_diffusion import fields
from ctrl_jax.stable_diffusion_3 import t5, t5_tokenizer
from tests import toy_t5
from tests.toy_networks import random_params

XXL = {
  "model_type": "t5",
  "architectures": ["T5EncoderModel"],
  "d_model": 4096,
  "d_kv": 64,
  "d_ff": 10240,
  "num_layers": 24,
  "num_heads": 64,
  "vocab_size": 32128,
  "feed_forward_proj": "gated-gelu",
  "relative_attention_num_buckets": 32,
}


def _norm(h, scale):
  return scale * h / np.sqrt((h**2).mean(-1, keepdims=True) + 0.1)


def _gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _bucket(distance):
  """Of 8 up to 6: 0, 1, then 2 to 3.46, and 3; 4 more for what comes later."""
  far = abs(distance)
  found = far if far < 2 else 2 + (far >= 2 * math.sqrt(3))
  return found + 4 * (distance > 0)


def test_encoder():
  ids = np.array([[3, 5, 1, 0, 0, 7], [8, 1, 15, 2, 4, 4]])
  network = t5.TextEncoder(toy_t5.CONFIG)
  params = random_params(network, jnp.asarray(ids))
  found = jax.jit(network.apply)(params, jnp.asarray(ids))
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]
  h = p["shared"]["embedding"][ids]
  first = p["encoder.block.0"]["layer.0.SelfAttention"]
  table = first["relative_attention_bias"]["embedding"]
  for i in range(2):
    part = p[f"encoder.block.{i}"]
    normed = _norm(h, part["layer.0.layer_norm"]["scale"])
    q, k, v = (
      normed @ part["layer.0.SelfAttention"][name]["kernel"] for name in "qkv"
    )
    mixed = np.zeros_like(q)
    for head, (b, n) in itertools.product(range(2), np.ndindex(2, 6)):
      of = slice(4 * head, 4 * head + 4)
      bias = [table[_bucket(m - n), head] for m in range(6)]
      weights = scipy.special.softmax(k[b, :, of] @ q[b, n, of] + bias)
      mixed[b, n, of] = weights @ v[b, :, of]
    h = h + mixed @ part["layer.0.SelfAttention"]["o"]["kernel"]
    normed = _norm(h, part["layer.1.layer_norm"]["scale"])
    dense = lambda x, name: (
      x @ part[f"layer.1.DenseReluDense.{name}"]["kernel"]  # noqa: B023
    )
    h = h + dense(_gelu(dense(normed, "wi_0")) * dense(normed, "wi_1"), "wo")
  expected = _norm(h, p["encoder.final_layer_norm"]["scale"])
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_the_largest_has_as_many_parameters_as_published():
  # 4.7 billion: the half of 11 that is no decoder.
  network = t5.TextEncoder(t5.Config.from_json(XXL))
  tree = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )
  size = sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert round(size / 1e9, 2) == 4.76


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "umt5"}, "model_type is 'umt5'; needed is 't5'"),
    ({"feed_forward_proj": "relu"}, "supported is 'gated-gelu', as in T5 1.1"),
    ({"num_heads": 0}, "num_heads is 0; needed is 1 or more"),
    ({"d_ff": "wide"}, "d_ff is 'wide'; needed is int"),
    ({"relative_attention_num_buckets": 31}, "num_buckets is 31, and"),
    ({"relative_attention_max_distance": 8}, "max_distance 8; needed are"),
  ],
)
def test_another_encoder_is_refused(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    t5.Config.from_json(XXL | changes)
  assert "\n" not in str(caught.value)


def test_an_old_t5_does_not_say_what_it_is():
  without = {k: v for k, v in XXL.items() if k != "feed_forward_proj"}
  with pytest.raises(ValueError, match="feed_forward_proj is 'relu'"):
    t5.Config.from_json(without)


def test_ids_without_an_embedding_are_refused():
  with pytest.raises(ValueError, match="has an id 3, .* vocab_size=3"):
    fields.check_tokens(3, np.array([[1, 3]]))


def _likeliest(word):
  """Of all ways to cut a word, by trying them."""
  ways = [
    [word[i:j] for i, j in itertools.pairwise((0, *cuts, len(word)))]
    for number in range(len(word))
    for cuts in itertools.combinations(range(1, len(word)), number)
  ]
  known = [way for way in ways if set(way) <= toy_t5.PIECES.keys()]
  return max(known, key=lambda way: math.prod(map(toy_t5.PIECES.get, way)))


def test_a_word_is_cut_the_likeliest_way(tmp_path):
  tokenizer = t5_tokenizer.load(toy_t5.write_tokenizer(tmp_path), length=12)
  ids = {piece: 3 + i for i, piece in enumerate(toy_t5.PIECES)}
  texts = ["a cat", "cats", "\n catcat\t a ", "acts", ""]
  found = tokenizer(texts)
  for text, row in zip(texts, found.ids.tolist(), strict=True):
    pieces = [p for word in text.split() for p in _likeliest("▁" + word)]
    expected = [*(ids[piece] for piece in pieces), 1]
    assert row == [*expected, *[0] * (12 - len(expected))]
  assert _likeliest("▁cats") == ["▁ca", "ts"]
  # What no piece has; a token in the text; and too much of it.
  found = tokenizer(["x", "a<extra_id_0>a", "a " * 11, "a " * 12])
  assert found.ids[0, :3].tolist() == [ids["▁"], 2, 1]
  assert found.ids[1, :4].tolist() == [ids["▁a"], 14, ids["▁a"], 1]
  assert found.truncated.tolist() == [False, False, False, True]
  assert found.ids[3].tolist() == found.ids[2].tolist()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": {"type": "BPE"}}, "has the type 'BPE', not Unigram"),
    ({"model": {"vocab": [["a", 0.0]]}}, "the vocabulary has no <pad>"),
    ({"model": {"vocab": ["a"]}}, "vocab has 'a', no piece with its score"),
    ({"model": {"vocab": [["a", "b"]]}}, "piece 'a' has 'b'"),
    ({"model": {"vocab": [["a", 0], ["a", 1]]}}, "vocab has a piece twice"),
    ({"model": 3}, "model is 3; needed is an object"),
    ({"added_tokens": [{"content": "<mine>"}]}, "tokens added to T5's"),
    ({"normalizer": {"precompiled_charsmap": "?"}}, "is '\\?', no table"),
    ({"normalizer": {"precompiled_charsmap": "AAAA"}}, "no table of ch"),
  ],
)
def test_another_tokenizer_is_refused(tmp_path, changes, message):
  toy_t5.write_tokenizer(tmp_path, **changes)
  with pytest.raises(ValueError, match=message) as caught:
    t5_tokenizer.load(tmp_path)
  assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match="tokenizer.json"):
    t5_tokenizer.load(tmp_path)
  (tmp_path / "spiece.model").touch()
  with pytest.raises(FileNotFoundError, match="spiece.model alone: transform"):
    t5_tokenizer.load(tmp_path)
  with pytest.raises(ValueError, match="a prompt of 1 tokens has no room"):
    t5_tokenizer.load(tmp_path, length=1)

# SPDX-License-Identifier: Apache-2.0
"""T5 and its tokenizer against transformers' own."""

import json
import sys

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
from transformers.models.t5 import modeling_t5

from ctrl_jax.stable_diffusion import weights
from ctrl_jax.stable_diffusion_3 import t5, t5_tokenizer
from tests.parity import prompts as varied
from tests.parity import toy_t5 as toy
from tests.parity.against_torch import check

# As that of the first, of fewer buckets than a sequence is long.
CONFIGS = {
  "xxl": {},
  "odd": {
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-2,
    "vocab_size": 50,
  },
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  theirs = toy.encoder(**CONFIGS[request.param])
  theirs.save_pretrained(folder)
  found = json.loads((folder / "config.json").read_text())
  network = t5.TextEncoder(t5.Config.from_json(found))
  ids = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), ids)["params"]
  return theirs, network, weights.load(folder, shapes, ignore=(t5.DUPLICATE,))


def test_hidden_states_are_those_of_transformers(pair):
  theirs, network, params = pair
  ids = np.random.default_rng(0).integers(
    network.config.vocab_size, size=(2, 60)
  )
  ids[1, 20:] = 0  # padding, to which words attend
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids)).last_hidden_state
  ids = jnp.asarray(ids, jnp.int32)
  check(jax.jit(network.apply)({"params": params}, ids), expected)


def test_buckets_are_those_of_transformers_however_far(pair):
  theirs, network, _ = pair
  attention = theirs.encoder.block[0].layer[0].SelfAttention
  place = torch.arange(600)
  expected = attention._relative_position_bucket(
    place[None] - place[:, None],
    num_buckets=attention.relative_attention_num_buckets,
    max_distance=attention.relative_attention_max_distance,
  )
  np.testing.assert_array_equal(
    t5.buckets(network.config, 600), expected.numpy()
  )


def test_every_tensor_of_transformers_has_its_parameter(pair):
  theirs, _, params = pair
  paths = flax.traverse_util.flatten_dict(params)
  names = {weights.tensor_name(path) for path in paths}
  of_theirs = theirs.state_dict()
  assert names == {n for n in of_theirs if not n.startswith(t5.DUPLICATE)}


def test_every_norm_has_the_epsilon_of_transformers(pair):
  theirs, network, params = pair
  found = {}

  def note(method, args, kwargs, context):
    if isinstance(context.module, nn.RMSNorm):
      found[".".join(context.module.path)] = context.module.epsilon
    return method(*args, **kwargs)

  with nn.intercept_methods(note):
    ids = jnp.zeros((1, 3), jnp.int32)
    jax.eval_shape(lambda p: network.apply({"params": p}, ids), params)
  assert found == {
    name: module.variance_epsilon
    for name, module in theirs.named_modules()
    if isinstance(module, modeling_t5.T5LayerNorm)
  }


def test_ids_of_a_thousand_prompts(tmp_path):
  theirs = toy.write_tokenizer(tmp_path)
  ours = t5_tokenizer.load(tmp_path)
  prompts = varied.make_prompts()
  prompts[0] = "a cat<extra_id_3> </s> and <pad><unk> a dog <extra_id_99>"
  settings = {"padding": "max_length", "truncation": True}
  expected = theirs(prompts, max_length=256, **settings).input_ids
  found = ours(prompts)
  pairs = zip(found.ids.tolist(), expected, strict=True)
  equal = sum(a == b for a, b in pairs)
  # As it was meant: SentencePiece itself, which leaves control characters in.
  whole = theirs(prompts).input_ids
  itself = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
  alike = sum(
    [*itself.encode(text), 1] == ids
    for text, ids in zip(prompts, whole, strict=True)
  )
  print(f"{equal} of 1,000 equal; {alike} of SentencePiece", file=sys.stderr)
  assert equal == 1000 and alike > 900
  assert found.truncated.tolist() == [len(ids) > 256 for ids in whole]
  assert 5 < found.truncated.sum() < 500
  pieces = {piece for ids in whole for piece in ids}
  assert len(pieces) > 1500 and 2 in pieces and found.ids.max() > 3000

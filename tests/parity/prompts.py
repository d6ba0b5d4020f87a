# SPDX-License-Identifier: Apache-2.0
"""1,000 prompts of every kind that a tokenizer may meet, always the same."""

import random
import unicodedata
from collections.abc import Callable
from typing import Any

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SCRIPTS = [  # first and last code points
  (0x41, 0x7A),  # Latin, and the signs within
  (0xC0, 0x24F),
  (0x370, 0x3FF),  # Greek
  (0x400, 0x52F),  # Cyrillic
  (0x531, 0x58F),  # Armenian
  (0x591, 0x5F4),  # Hebrew, with points
  (0x600, 0x6FF),  # Arabic
  (0x900, 0x97F),  # Devanagari
  (0x980, 0x9FE),  # Bengali
  (0xB82, 0xBFA),  # Tamil
  (0xE01, 0xE5B),  # Thai
  (0x10A0, 0x10FF),  # Georgian
  (0x1100, 0x11FF),  # Hangul, in parts
  (0x1200, 0x137C),  # Ethiopic
  (0x13A0, 0x13FD),  # Cherokee, whose lower case came last
  (0x1780, 0x17F9),  # Khmer
  (0x1E00, 0x1FFE),  # Latin and Greek with several marks
  (0x3041, 0x30FF),  # Kana
  (0x4E00, 0x9FFF),  # Han
  (0xAC00, 0xD7A3),  # Hangul
  (0xFB00, 0xFDFB),  # ligatures
  (0xFF01, 0xFFEE),  # wide and half wide forms
  (0x10400, 0x1044F),  # Deseret, beyond 16 bits
  (0x1D400, 0x1D7FF),  # mathematical letters
]
ANIMALS = ["cat", "dog", "horse", "monkey", "spider", "zebra", "sheep", "deer"]
STYLES = [
  "a photo of a {}",
  "A {} riding a bicycle, oil on canvas, by Rembrandt",
  "{}, highly detailed, trending on artstation, 8k, octane render!!!",
  "(masterpiece:1.2), best quality, ((a {})), [blurry], f/1.8, 85mm",
  "An EXTREMELY cute {}'s portrait; it's what we'd love, they're & you've",
  "the {} isn't here... I'll say I'm \u201csure\u201d \u2014 don\u2019t you?",
]
SPACES = (
  " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u3000\ufeff"
)
CONTROLS = (
  "".join(map(chr, [*range(32), *range(127, 160)])) + "\u200b\u200d\u202e"
)
EMOJI = [
  "\U0001f600",
  "\U0001f44d\U0001f3fd",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467",
  "\U0001f1e9\U0001f1ea",
  "\u2764\ufe0f",
  "1\ufe0f\u20e3",
  "\u00a9",
  "\U0001f9a5",
]
ENTITIES = ["&amp;", "&lt;b&gt;", "&#39;", "&quot;", "&eacute;", "&amp;amp;"]
DIGITS = ["0123456789", "3.14159", "1,000", "\u00b2\u00bd", "\u2163", "\u0664"]
CASES = "\u0130I\u0131i \u00df\u1e9e \u03a3\u03a3 \u01c5 \ufb01 \u0149 STRASSE"
MARKS = "\u0300\u0301\u0308\u0323\u0327\u20d0\u093c\u0654"
SPECIAL = [
  BEGIN,
  END,
  "<|EndOfText|>",
  "<|startoftext",
  "|>",
  "</w>",
  "!",
  "!!",
]


def pick(source: random.Random, items: Any, most: int) -> list[Any]:
  return [source.choice(items) for _ in range(source.randint(1, most))]


def script(source: random.Random) -> str:
  first, last = source.choice(SCRIPTS)
  words = [
    "".join(
      chr(source.randint(first, last)) for _ in range(source.randint(1, 9))
    )
    for _ in range(source.randint(1, 12))
  ]
  return " ".join(words)


def anything(source: random.Random) -> str:
  """Code points of any plane; halves of a character are none."""
  points = [source.randrange(0x110000) for _ in range(source.randint(1, 30))]
  return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def described(source: random.Random) -> str:
  return source.choice(STYLES).format(source.choice(ANIMALS))


def long(source: random.Random) -> str:
  word = "".join(pick(source, "abcdefgh", 400))
  return source.choice([" ", ""]).join(pick(source, [word, "cat", "7"], 300))


def spaced(source: random.Random) -> str:
  return "".join(pick(source, [*SPACES, "cat", "dog"], 20))


def marked(source: random.Random) -> str:
  text = "".join(pick(source, "aeocnAEO\u0915\u0627" + MARKS * 2, 30))
  return unicodedata.normalize(source.choice(["NFC", "NFD", "NFKD"]), text)


def mixed(source: random.Random) -> str:
  """All at once, glued together."""
  parts = [*EMOJI, *ENTITIES, *DIGITS, *SPECIAL, *CASES, *CONTROLS, "'s", "'T"]
  return "".join(pick(source, [*parts, *"cats and dogs"], 25))


def punctuated(source: random.Random) -> str:
  ascii_signs = "".join(c for c in map(chr, range(33, 127)) if not c.isalnum())
  return "".join(pick(source, ascii_signs + "\u2026\u00bf\u3001\u2014 ax1", 40))


def kinds(items: list[str], joint: str) -> Callable[[random.Random], str]:
  return lambda source: joint.join(pick(source, items, 12))


GENERATORS = [
  described,
  script,
  script,
  anything,
  long,
  spaced,
  marked,
  mixed,
  mixed,
  punctuated,
  kinds(EMOJI, ""),
  kinds([*CONTROLS, "cat"], ""),
  kinds([*ENTITIES, "cat"], " "),
  kinds(DIGITS, " "),
  kinds([*CASES, *CASES.split()], ""),
  kinds(["'s", "'T", "'Re", "it", "\u2019s", "'", "d", "'ll", "''m"], ""),
  kinds(SPECIAL, " "),
]


def make_prompts() -> list[str]:
  source = random.Random(0)
  fixed = ["", " ", "\n\n", "a photo of a cat", "cat " * 75, "cat " * 76, CASES]
  drawn = [
    GENERATORS[i % len(GENERATORS)](source) for i in range(1000 - len(fixed))
  ]
  return fixed + drawn

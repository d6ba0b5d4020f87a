# SPDX-License-Identifier: Apache-2.0
"""A file of an image as a square of pixels.

It becomes a square by its shorter side: it is resized so that this side is
`size`, and cut in the middle, as torchvision's Resize and CenterCrop do.
Orientation is that of the EXIF tag; what is transparent becomes white; grey is
repeated in three channels; colour profiles are ignored.

Only decoders of FORMATS look at a file: others of Pillow's run programs. And a
small file may promise a huge image. Its header says so, and beyond max_pixels
nothing is decoded. As decoding takes up to 15 bytes a pixel, the largest images
are decoded one at a time, whatever the number of threads.
"""

import concurrent.futures
import io
import itertools
import math
import threading

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

FORMATS = {  # Pillow's names, and how their files end
  "AVIF": (".avif", ".avifs"),
  "BMP": (".bmp",),
  "DIB": (".dib",),
  "GIF": (".gif",),
  "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
  "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
  "PCX": (".pcx",),
  "PNG": (".apng", ".png"),
  "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
  "QOI": (".qoi",),
  "TGA": (".icb", ".tga", ".vda", ".vst"),
  "TIFF": (".tif", ".tiff"),
  "WEBP": (".webp",),
}
SUFFIXES = tuple(sorted(itertools.chain(*FORMATS.values())))
MAX_PIXELS = 2**26  # 8192 x 8192, which take a gigabyte to decode
_LARGE = 2**24  # pixels beyond which images are decoded one at a time

Pixels = UInt8[np.ndarray, "size size 3"]

_headers = threading.Lock()
# A thread rather than a lock: the C library keeps a heap for each thread.
_alone = concurrent.futures.ThreadPoolExecutor(1)


def decode(
  content: bytes, *, size: int, min_side: int, max_pixels: int
) -> Pixels:
  """The square in the middle of an image, uint8 [size, size, 3].

  Args:
    content: of the file.
    size: pixels a side of the square.
    min_side: pixels that the shorter side of the image must have.
    max_pixels: width times height that it may have, in place of Pillow's limit.

  Raises:
    Exception: whatever a decoder makes of a damaged file; a ValueError of an
      image that is too small, too large, or not of 8 bits.
  """
  with _open(content) as file:
    width, height = file.size
    if width * height > max_pixels:
      raise ValueError(
        f"{width}x{height} pixels, more than max_pixels = {max_pixels}"
      )
    if min(width, height) < min_side:
      raise ValueError(f"{width}x{height} pixels, fewer than {min_side}")
    if file.mode[0] in "IF":  # beyond 8 bits: Pillow would cut them off
      raise ValueError(f"pixels of mode {file.mode}, not of 8 bits")
    # A JPEG of many times that size is decoded at a fraction of it, which is
    # three times as fast and looks the same.
    file.draft(None, (2 * size, 2 * size))
    # Of a progressive one all coefficients are held, whatever the fraction.
    whole = "progressive" in file.info
    held = width * height if whole else math.prod(file.size)
    work = lambda: _square(_opaque(ImageOps.exif_transpose(file)), size)
    return _alone.submit(work).result() if held > _LARGE else work()


def _open(content: bytes) -> ImageFile.ImageFile:
  """An image of which the header has been read, whatever its size."""
  with _headers:
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      return Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    finally:
      Image.MAX_IMAGE_PIXELS = kept


def _opaque(image: Image.Image) -> Image.Image:
  """In red, green and blue, before a white ground."""
  if not image.has_transparency_data:
    return image.convert("RGB")
  ground = Image.new("RGBA", image.size, "white")
  ground.alpha_composite(image.convert("RGBA"))
  return ground.convert("RGB")


def _square(image: Image.Image, size: int) -> Pixels:
  """The middle of an image at the size asked for, uint8 [size, size, 3]."""
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  square = image.resize((size, size), Image.Resampling.BICUBIC, box)
  return np.asarray(square)

# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST: its files, where they come from, and what is wrong in them."""

import calendar
import functools
import gzip
import hashlib
import http.server
import pathlib
import threading
import tracemalloc

import numpy as np
import pytest

from ctrl_jax.datasets import fashion_mnist, idx
from ctrl_jax.datasets import fashion_mnist_dataset_builder as builder
from experiments.runtime import downloads
from tests import toy_garments

# Debian's files, where they are installed: the same arrays as the authors'.
INSTALLED = fashion_mnist.is_in(fashion_mnist.DEBIAN)


def test_images_are_those_of_the_files(tmp_path):
  images, labels = toy_garments.write(tmp_path / "files", 30)
  data = fashion_mnist.load(tmp_path / "files", tmp_path / "records")
  np.testing.assert_allclose(data.images[..., 0], images / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(data.labels, labels)
  assert data.images.dtype == np.float32 and data.labels.dtype == np.int32
  # Prepared once: the files are not needed any more.
  few = fashion_mnist.load(tmp_path / "no", tmp_path / "records", num_images=7)
  np.testing.assert_array_equal(few.images, data.images[:7])
  with pytest.raises(ValueError, match="31 images .* asked for, but .* has 30"):
    fashion_mnist.load(tmp_path, tmp_path / "records", num_images=31)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="does not hold train-images.*Debian"):
    fashion_mnist.load(tmp_path, tmp_path / "records")
  assert not (tmp_path / "records").exists()


BYTES = np.arange(6, dtype=np.uint8)
CONTENT = toy_garments.idx(BYTES)
# The time is in the file, and would be in the names of the tests.
compress = functools.partial(gzip.compress, mtime=0)
WHOLE = compress(CONTENT)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (WHOLE[:-9], "truncated or damaged"),
    (WHOLE[:-8] + bytes((WHOLE[-8] ^ 1,)) + WHOLE[-7:], "damaged"),
    (CONTENT, "is no gzip file"),
    (b"", "is no IDX file"),
    (compress(b""), "begins with nothing instead of 00000801"),
    (compress(CONTENT[:5]), "ends within its header"),
    (compress(CONTENT[:-1]), "holds 5 bytes where .* promises .6,."),
    (compress(CONTENT + b"."), "holds more bytes where .* promises .6,."),
    (
      compress(CONTENT[:4] + b"\xff" * 4 + CONTENT[8:]),
      "4294967295 bytes: they are more than max_bytes = 268435456",
    ),
    (
      compress(toy_garments.idx(BYTES.reshape(2, 3))),
      "begins with 00000802 instead of 00000801",
    ),
  ],
)
def test_damaged_files_are_named(tmp_path, content, message):
  path = tmp_path / "some.gz"
  path.write_bytes(WHOLE)
  np.testing.assert_array_equal(idx.read(path, dims=1), BYTES)
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f"some.gz .*{message}"):
    idx.read(path, dims=1)


@pytest.mark.parametrize(
  ("name", "array", "message"),
  [
    (builder.IMAGES, np.zeros((3, 8, 8), np.uint8), "shape .8, 8."),
    (builder.LABELS, np.zeros(2, np.uint8), "3 images, but .* 2 labels"),
    (builder.LABELS, np.full(3, 10, np.uint8), "has a label 10"),
  ],
)
def test_files_of_something_else_are_refused(tmp_path, name, array, message):
  toy_garments.write(tmp_path, 3)
  (tmp_path / name).write_bytes(gzip.compress(toy_garments.idx(array)))
  with pytest.raises(ValueError, match=message):
    fashion_mnist.load(tmp_path, tmp_path / "records")
  toy_garments.write(tmp_path, 3)  # nothing half-made is in the way
  assert len(fashion_mnist.load(tmp_path, tmp_path / "records").labels) == 3


@pytest.fixture
def site(tmp_path):
  """The address of a web server of files in tmp_path/web."""
  folder = tmp_path / "web"
  folder.mkdir()

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
      super().__init__(*arguments, directory=folder)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_downloads_are_whole_or_not_there(tmp_path, site, capfd):
  content = bytes(range(256)) * 1000
  (tmp_path / "web" / "file").write_bytes(content)
  path = tmp_path / "new" / "file"
  right = hashlib.sha256(content).hexdigest()
  with pytest.raises(ValueError, match=f"gave .*SHA-256 {right} instead of 00"):
    downloads.fetch(f"{site}/file", path, sha256="00")
  with pytest.raises(OSError, match="cannot be downloaded .*404.*data.dir"):
    downloads.fetch(f"{site}/none", path, sha256=right)
  assert not list(path.parent.iterdir())
  downloads.fetch(f"{site}/file", path, sha256=right)
  assert path.read_bytes() == content
  assert [p.name for p in path.parent.iterdir()] == ["file"]
  assert "100%" in capfd.readouterr().err
  downloads.fetch("http://127.0.0.1:9/never-asked", path, sha256=right)
  path.write_bytes(content[1:])
  with pytest.raises(ValueError, match=f"new/file has .* of {right}: delete"):
    downloads.fetch(f"{site}/file", path, sha256=right)
  assert path.read_bytes() == content[1:]  # what is there is not ours to delete


def test_a_file_is_read_no_further_than_it_promises(tmp_path):
  path = tmp_path / "bomb.gz"
  zeros = bytes(2**20)
  with gzip.open(path, "wb", compresslevel=1) as file:
    file.write(toy_garments.idx(BYTES[:1]))
    for _ in range(64):
      file.write(zeros)
  tracemalloc.start()
  with pytest.raises(ValueError, match=r"holds more bytes where .* \(1,\)"):
    idx.read(path, dims=1)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20
  path.write_bytes(WHOLE)
  with pytest.raises(ValueError, match="6 bytes: .* more than max_bytes = 5"):
    idx.read(path, dims=1, max_bytes=5)


def test_downloads_are_the_authors_and_nobody_elses():
  assert fashion_mnist.URL.startswith("https://")
  assert fashion_mnist.SHA256.keys() == {builder.IMAGES, builder.LABELS}


@pytest.mark.skipif(not INSTALLED, reason="Debian's package is not installed")
@pytest.mark.parametrize("name", fashion_mnist.SHA256)
def test_files_of_debian_are_the_authors_but_for_the_header(name):
  content = (fashion_mnist.DEBIAN / name).read_bytes()
  packed = (2017, 8, 31, 10, 50, 6)  # when the authors did, UTC
  time = calendar.timegm(packed).to_bytes(4, "little")
  flags, named = b"\x08", name.removesuffix(".gz").encode() + b"\0"
  header = content[:3] + flags + time + content[8:10] + named
  assert (
    hashlib.sha256(header + content[10:]).hexdigest()
    == (fashion_mnist.SHA256[name])
  )


@pytest.mark.skipif(not INSTALLED, reason="Debian's package is not installed")
def test_files_of_debian():
  images, labels = builder.read(pathlib.Path(fashion_mnist.DEBIAN))
  assert images.shape == (60000, 28, 28)
  np.testing.assert_array_equal(np.bincount(labels), [6000] * 10)
  # Of the data set's own description: the first image is an ankle boot.
  assert builder.CLASSES[labels[0]] == "ankle boot"

# SPDX-License-Identifier: Apache-2.0
"""Files from the web, whole and checked, with a progress bar."""

import hashlib
import pathlib
import urllib.request

import tqdm

from ctrl_jax import files

_PART = 2**16  # bytes read at a time
_PATIENCE = 30  # seconds without an answer


def fetch(url: str, path: pathlib.Path, *, sha256: str) -> None:
  """Downloads a file unless it is there already, which is checked as well.

  It is written beside its place and moved there when its checksum is right,
  so that a file of that name is always whole.

  Args:
    url: where it comes from.
    path: where it goes; folders are made.
    sha256: its checksum in hexadecimal digits.

  Raises:
    OSError: it cannot be had, or written.
    ValueError: what came, or was there, is not what was expected.
  """
  if path.exists():
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
      raise ValueError(
        f"{path} has SHA-256 {digest} instead of {sha256}: delete it, and it "
        "is downloaded again"
      )
    return
  with files.draft(path) as made:
    with made.open("xb") as file:
      digest = _copy(url, file, path.name)
    if digest != sha256:
      raise ValueError(
        f"{url} gave a file of SHA-256 {digest} instead of {sha256}: try "
        f"again, or put the right one at {path}"
      )


def _copy(url, file, name):
  """Copies the content of a URL to an open file; returns its SHA-256."""
  digest = hashlib.sha256()
  try:
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
      total = int(answer.headers.get("Content-Length", 0)) or None
      with tqdm.tqdm(desc=name, total=total, unit="B", unit_scale=True) as bar:
        while part := answer.read(_PART):
          file.write(part)
          digest.update(part)
          bar.update(len(part))
  except OSError as error:
    raise OSError(
      f"{url} cannot be downloaded ({error}): put the file into a folder and "
      "name it by --config.data.dir, or try again"
    ) from error
  return digest.hexdigest()

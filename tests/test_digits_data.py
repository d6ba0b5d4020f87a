# SPDX-License-Identifier: Apache-2.0
"""Digits on disk: what is written once, and read for ever after."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ctrl_jax.datasets import digits

# Ends the process, as a kill would, in the middle of writing the records.
_KILLED = """
import os, sys
from ctrl_jax.datasets import digits, digits_dataset_builder as module
rows = module.Builder._generate_examples
def some(self):
  for index, row in rows(self):
    if index == 100:
      os._exit(9)
    yield index, row
module.Builder._generate_examples = some
digits.load(sys.argv[1])
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("data")
  digits.load(path)
  return path


def _record_files(path):
  return sorted(path.glob("digits/1.0.0/*array_record*"))


def test_digits_are_those_of_scikit_learn_in_order(data_dir):
  data, truth = digits.load(data_dir), load_digits()
  np.testing.assert_array_equal((data.images[..., 0] + 1) * 8, truth.images)
  np.testing.assert_array_equal(data.labels, truth.target)
  assert data.images.shape == (digits.NUM_IMAGES, 8, 8, 1)
  assert data.images.dtype == np.float32 and data.labels.dtype == np.int32
  assert set(data.labels.tolist()) == set(range(digits.NUM_CLASSES))


def test_loading_again_reads_the_files_and_writes_nothing(data_dir):
  before = [(p, p.stat().st_mtime_ns) for p in _record_files(data_dir)]
  digits.load(data_dir)
  assert before == [(p, p.stat().st_mtime_ns) for p in _record_files(data_dir)]
  assert len(before) == 1


@pytest.mark.slow  # imports everything anew
def test_preparation_is_silent_and_without_tensorflow(tmp_path):
  code = (
    "import sys; from ctrl_jax.datasets import digits; "
    "assert 'tensorflow_datasets' not in sys.modules; "
    f"digits.load({str(tmp_path)!r}); assert 'tensorflow' not in sys.modules"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_full_disk_is_one_error(tmp_path):
  code = (
    "import resource, sys; from ctrl_jax.datasets import digits; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)); "
    "digits.load(sys.argv[1])"
  )
  run = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
  )
  last = run.stderr.splitlines()[-1]
  assert last.startswith("OSError: the digits data set cannot be written to ")
  assert "File too large" in last
  digits.load(tmp_path)  # nothing of it is in the way


@pytest.mark.slow
def test_interrupted_preparation_is_done_again(tmp_path):
  run = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)])
  assert run.returncode == 9
  assert list(tmp_path.glob("digits/*"))  # it had begun
  assert not _record_files(tmp_path)  # and left nothing that looks finished
  assert len(digits.load(tmp_path).labels) == digits.NUM_IMAGES


def test_another_process_may_finish_first(tmp_path, data_dir, monkeypatch):
  from ctrl_jax.datasets import digits_dataset_builder as module

  rows = module.Builder._generate_examples

  def overtaken(self):
    yield from rows(self)
    (tmp_path / "digits" / "1.0.0").symlink_to(data_dir / "digits" / "1.0.0")

  monkeypatch.setattr(module.Builder, "_generate_examples", overtaken)
  assert len(digits.load(tmp_path).labels) == digits.NUM_IMAGES


@pytest.mark.parametrize("name", ["dataset_info.json", "array_record"])
def test_damaged_files_are_named(tmp_path, name):
  digits.load(tmp_path)
  (path,) = tmp_path.glob(f"digits/1.0.0/*{name}*")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r"digits/1\.0\.0 is .* damaged: delete"):
    digits.load(tmp_path)

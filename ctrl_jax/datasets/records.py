# SPDX-License-Identifier: Apache-2.0
"""Record files of a tfds builder: written once, quietly, read whole.

Preparation is atomic: records are written to a temporary directory that is
renamed at the end, so an interrupted one is simply done again, and any number
of processes may share the directory.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any


def missing(error: ModuleNotFoundError) -> ImportError:
  """What a builder raises where the extra `data` is not installed."""
  return ImportError(
    f"data sets need {error.name}: pip install 'ctrl-jax[data]'",
    name=error.name,
  )


def rows(
  builder_class: Any,
  data_dir: str | os.PathLike[str],
  *,
  num_rows: int = 0,
  source: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
  """Rows of the split `train`, prepared under `data_dir` if need be.

  Args:
    builder_class: a `tfds.core.GeneratorBasedBuilder`.
    data_dir: root of tfds data sets; files go to NAME/VERSION in it.
    num_rows: how many, from the first; 0: all.
    source: folder from which the builder reads (its `manual_dir`), if any.

  Raises:
    ValueError: the prepared files are damaged, which are named, or hold fewer
      rows. Also what the builder raises.
  """
  root = os.path.expanduser(data_dir)
  name = builder_class.name
  folder = os.path.join(root, name, str(builder_class.VERSION))
  with _damage_named(name, folder):
    builder = builder_class(data_dir=root, file_format="array_record")
  _prepare(builder, source)
  available = builder.info.splits["train"].num_examples
  if num_rows > available:
    raise ValueError(
      f"{num_rows} images of {name} asked for, but {folder} has {available}: "
      f"ask for {available} or fewer"
    )
  with _damage_named(name, folder):
    split = f"train[:{num_rows}]" if num_rows else "train"
    found = list(builder.as_data_source(split))
    expected = num_rows or available
    if len(found) != expected:
      raise ValueError(f"{len(found)} rows instead of {expected}")
    return found


@contextlib.contextmanager
def _damage_named(name: str, folder: str) -> Iterator[None]:
  """Turns any error of a reader into one that says what to do."""
  try:
    yield
  except Exception as error:  # array_record, protobuf and JSON have their own
    raise ValueError(
      f"the {name} data set in {folder} is incomplete or damaged: delete that "
      "directory and run again"
    ) from error


def _prepare(builder: Any, source: str | os.PathLike[str] | None) -> None:
  """Writes the data set unless it is there, without a word on the terminal."""
  if builder.data_path.exists():
    return
  import tensorflow_datasets as tfds  # slow: not before it is needed

  silence = io.StringIO()  # tfds prints, and its progress bar uses stderr
  settings = tfds.download.DownloadConfig(manual_dir=source)
  try:
    with (
      contextlib.redirect_stdout(silence),
      contextlib.redirect_stderr(silence),
    ):
      builder.download_and_prepare(download_config=settings)
  except OSError:
    # The last rename fails if another process was first; its files serve.
    if not builder.data_path.exists():
      raise
  except RuntimeError as error:  # what array_record makes of a full disk
    raise OSError(
      f"the {builder.name} data set cannot be written to "
      f"{builder.data_path.parent}: {str(error).splitlines()[0][:160]}"
    ) from error

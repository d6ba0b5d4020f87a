# SPDX-License-Identifier: Apache-2.0
"""Starts JAX: which devices, which hosts, and where programs are cached."""

import math
import os
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.rules import flatten


def batch_sizes(config: ConfigDict) -> dict[str, int]:
  """Every batch that the devices must share equally."""
  fields = flatten(config).items()
  return {f: v for f, v in fields if f.rpartition(".")[2] == "batch_size"}


def virtual(whole: int) -> int:
  """Devices that a CPU is divided into: at most one for each of its cores.

  An update that two devices share is faster than one whose operations two cores
  share: on two cores 1.2 to 1.4 times, of a small DiT and of Stable Diffusion.

  Args:
    whole: what the devices share equally, such as a batch.
  """
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  return max(n for n in range(1, cores + 1) if whole % n == 0)


def shared(config: ConfigDict) -> int:
  """Divides every batch, and leaves the controls' parts and groups whole."""
  control = config.control
  whole = list(batch_sizes(config).values())
  for objective in {control.objective, *config.compare.objectives}:
    settings = control[objective]
    unit = settings.get("accumulate", 1) * max(settings.get("group", 0), 1)
    whole.append(max(control.batch_size // unit, 1))
  return math.gcd(*whole)


def start(config: ConfigDict, *, distributed: bool = False) -> bool:
  """Prepares JAX; to be called before anything is computed.

  The cache of compiled programs is CTRL_JAX_CACHE or ~/.cache/ctrl_jax; a user
  without a home has none. The number of virtual CPU devices is left alone where
  the user sets it by XLA_FLAGS or JAX_NUM_CPU_DEVICES.

  Returns:
    Whether this host is the one, among several, that writes files.

  Raises:
    ValueError: the devices cannot share a batch, or there are fewer than
      config.devices; JAX cannot do what its variables ask for.
  """
  try:
    import jax  # slow: not before the command line is known to be right
  except ValueError as error:
    raise ValueError(f"a variable JAX_... is wrong: {error}") from error
  cache = cache_folder()
  if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  chosen = "xla_force_host_platform_device_count" in os.environ.get(
    "XLA_FLAGS", ""
  )
  if not chosen and "JAX_NUM_CPU_DEVICES" not in os.environ:
    whole = virtual(shared(config)) if config.sharding.model == 1 else 1
    count = config.devices or whole * config.sharding.model
    jax.config.update("jax_num_cpu_devices", count)
  if distributed:
    _join()
  check_settings()
  _check_devices(config, jax.local_device_count(), jax.device_count())
  return jax.process_index() == 0


def cache_folder() -> str:
  """Where compiled programs are kept; "" for a user that has no home."""
  if cache := os.environ.get("CTRL_JAX_CACHE"):
    return cache
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return "" if caches[0] == "~" else os.path.join(caches, "ctrl_jax")


def check_settings() -> None:
  """Checks what the environment asks of JAX, once all hosts have met.

  Raises:
    ValueError: JAX lacks a platform, or Flax and Optax cannot do with it.
  """
  import jax

  if os.environ.get("JAX_NUMPY_DTYPE_PROMOTION") == "strict":
    raise ValueError(
      "JAX_NUMPY_DTYPE_PROMOTION is strict, which Flax and Optax cannot do "
      "with: unset it"
    )
  try:
    jax.local_device_count()
  except (RuntimeError, AssertionError) as error:  # the second without a plugin
    said = f" ({error})" if str(error) else ""
    raise ValueError(
      f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')}, which JAX "
      f"cannot use here: unset it, or install JAX for it{said}"
    ) from error


def _join() -> None:
  """Meets the other hosts; a host that is lost ends all within a minute.

  TPU pods, SLURM, Open MPI and Kubernetes say who is who; elsewhere the
  environment does: JAX_COORDINATOR_ADDRESS, the same HOST:PORT for all,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  import jax

  number, index = (
    int(value) if (value := os.environ.get(f"JAX_{name}")) else None
    for name in ("NUM_PROCESSES", "PROCESS_ID")
  )
  jax.distributed.initialize(
    num_processes=number, process_id=index, heartbeat_timeout_seconds=30
  )


def mesh(config: ConfigDict) -> Any:
  """The devices of all hosts, as a `jax.sharding.Mesh`.

  Those of a group share weights: config.sharding.model of them or, where a
  finished run is looked at elsewhere, as many as divide what is there.
  """
  import jax

  from ctrl_jax import parallel

  return parallel.make_mesh(model=_group(config, jax.device_count()))


def weights_mesh(config: ConfigDict) -> Any:
  """What frozen weights are loaded onto; None: the default device."""
  return mesh(config) if config.sharding.model > 1 else None


def _group(config: ConfigDict, everywhere: int) -> int:
  return math.gcd(config.sharding.model, everywhere)


def _check_devices(config: ConfigDict, here: int, everywhere: int) -> None:
  """Raises ValueError unless the devices are there and share every batch."""
  if config.devices not in (0, here):
    raise ValueError(f"devices is {config.devices}, but JAX sees {here}: use 0")
  group = _group(config, everywhere)
  shares, who = everywhere // group, "devices"
  if group > 1:
    who = f"groups of {group} devices"
  for field, size in batch_sizes(config).items():
    if size % shares:
      raise ValueError(
        f"{field} is {size}, which {shares} {who} cannot share equally: use a "
        f"multiple of {shares}"
      )

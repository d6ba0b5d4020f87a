# SPDX-License-Identifier: Apache-2.0
"""Recipes for clusters, with stand-ins for the clusters' own commands."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from tests.toy_processes import HASTE, wait_for

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
CONFIG = ROOT / "experiments" / "configs" / "mixture.py"
PYTHON = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
SETTINGS = {
  "XLA_FLAGS": HASTE,
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "2",
  "PYTHONPATH": str(ROOT),
}

# Two tasks on this machine, told who they are as SLURM tells them; SIGTERM goes
# to both of them and not to the script of the job.
SRUN = """#!/usr/bin/env bash
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1
for index in 0 1; do
  SLURM_PROCID=$index SLURM_LOCALID=$index "$@" &
  tasks="$tasks $!"
done
trap 'kill -TERM $tasks' TERM
echo $$ > "$STANDINS/srun.pid"
code=0
for task in $tasks; do wait $task || wait $task || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$STANDINS/scontrol.log"
"""
GCLOUD = """#!/bin/sh
printf '%s\\n' "$@" > "$STANDINS/gcloud.log"
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def standins(tmp_path, monkeypatch):
  """A folder of commands that clusters have, and what they were asked."""
  folder = tmp_path / "standins"
  for name, text in (
    ("srun", SRUN),
    ("scontrol", SCONTROL),
    ("gcloud", GCLOUD),
  ):
    executable(folder / name, text)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("STANDINS", str(folder))
  for name, value in SETTINGS.items():
    monkeypatch.setenv(name, value)
  return folder


@pytest.mark.long
def test_a_job_of_slurm_that_is_stopped_queues_again_and_ends(
  standins, tmp_path, monkeypatch
):
  monkeypatch.setenv("PYTHON", sys.executable)
  monkeypatch.setenv("SLURM_JOB_ID", str(random.randrange(4096)))
  run, asked = tmp_path / "run", standins / "scontrol.log"
  command = [LAUNCH / "slurm.sh", run, f"--config={CONFIG}:smoke"]
  command += ["--config.control.save_every=5"]
  with subprocess.Popen(command, cwd=ROOT) as job:
    wait_for(run, "checkpoints/control/5", job)
    os.kill(int((standins / "srun.pid").read_text()), signal.SIGTERM)
  assert job.returncode == 0
  assert asked.read_text().split() == ["requeue", os.environ["SLURM_JOB_ID"]]
  assert not (run / "results.json").exists()

  subprocess.run(command, cwd=ROOT, check=True)
  assert json.loads((run / "results.json").read_text())["methods"]["ctrl"]
  assert len(asked.read_text().splitlines()) == 1  # done: not queued again


def pods():
  """Command and environment of each pod, as Kubernetes would fill them in."""
  parts = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
  service, job = list(parts)
  pod = job["spec"]["template"]["spec"]
  container = pod["containers"][0]
  assert pod["subdomain"] == service["metadata"]["name"]
  assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
  assert job["spec"]["completions"] == job["spec"]["parallelism"]
  for index in range(job["spec"]["completions"]):
    environment = {
      entry["name"]: entry.get("value", str(index))
      for entry in container["env"]
    }
    first = f"{job['metadata']['name']}-0.{pod['subdomain']}:"
    address = environment["JAX_COORDINATOR_ADDRESS"]
    assert address.startswith(first)
    local = {"JAX_COORDINATOR_ADDRESS": address.replace(first, "127.0.0.1:")}
    yield container["command"], environment | local


@pytest.mark.long
def test_pods_that_are_evicted_say_that_they_are_not_done(standins, tmp_path):
  executable(tmp_path / ".venv" / "bin" / "python", PYTHON)
  run = tmp_path / "run"
  settings = {"CONFIG": f"{CONFIG}:smoke", "WORKDIR": str(run)}
  started = [
    subprocess.Popen(command, cwd=tmp_path, env=os.environ | given | settings)
    for command, given in pods()
  ]
  wait_for(run, "config.json", started[0])
  for pod in started:
    pod.send_signal(signal.SIGTERM)
  assert [pod.wait(timeout=300) for pod in started] == [143, 143]


def test_hosts_of_a_tpu_pod_get_the_command_as_it_was_given(
  standins, monkeypatch
):
  monkeypatch.setenv("TPU", "pod")
  monkeypatch.setenv("ZONE", "here")
  words = [f"--config={CONFIG}:smoke", "--config.reward.gamma=2"]
  words += ["--config.compare.strengths=(1.0, 2.0)"]
  command = [LAUNCH / "tpu_vm.sh", "run", "/a folder/run", *words]
  subprocess.run(command, check=True)
  asked = (standins / "gcloud.log").read_text()
  assert "--worker=all" in asked.splitlines()
  remote = shlex.split(asked.partition("--command=")[2])
  assert remote[:3] == ["cd", "ctrl_jax", "&&"]
  start = remote.index("experiments.run") + 1
  given = ["--distributed", "--workdir=/a folder/run", *words]
  assert remote[start:] == given


def test_what_a_tpu_pod_is_given_is_no_part_of_the_command(
  standins, monkeypatch
):
  monkeypatch.setenv("TPU", "pod")
  monkeypatch.setenv("ZONE", "here")

  def remote(*words):
    subprocess.run([LAUNCH / "tpu_vm.sh", *words], check=True)
    asked = (standins / "gcloud.log").read_text()
    return shlex.split(asked.partition("--command=")[2])

  hostile = "--x; $(touch here) 'a b'"
  words = remote("setup", hostile)
  start = words.index("clone")
  assert words[start + 1 : start + 4] == ["--", hostile, "ctrl_jax"]
  words = remote("run", hostile)  # without options
  given = ["--distributed", f"--workdir={hostile}"]
  assert words[words.index("experiments.run") + 1 :] == given


def test_pods_have_no_more_rights_than_they_need():
  _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
  pod = job["spec"]["template"]["spec"]
  container = pod["containers"][0]
  assert pod["securityContext"]["runAsNonRoot"]
  assert pod["securityContext"]["runAsUser"] > 0
  assert not pod["automountServiceAccountToken"]
  rights = container["securityContext"]
  assert not rights["allowPrivilegeEscalation"]
  assert rights["readOnlyRootFilesystem"]
  assert rights["capabilities"] == {"drop": ["ALL"]}
  # What is written lies on a volume.
  mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
  assert {*mounts.values()} == {volume["name"] for volume in pod["volumes"]}
  variables = {e["name"]: e.get("value") for e in container["env"]}
  for name in ("WORKDIR", "CTRL_JAX_CACHE", "HOME"):
    path = pathlib.PurePosixPath(container["workingDir"], variables[name])
    assert any(path.is_relative_to(mount) for mount in mounts)
  assert "/tmp" in mounts


@pytest.mark.parametrize("command", [["slurm.sh"], ["tpu_vm.sh", "walk"]])
def test_recipes_say_how_they_are_used(standins, monkeypatch, command):
  monkeypatch.setenv("TPU", "pod")
  monkeypatch.setenv("ZONE", "here")
  done = subprocess.run(
    [LAUNCH / command[0], *command[1:]], capture_output=True, text=True
  )
  assert done.returncode != 0
  assert "usage: " in done.stderr and done.stderr.count("\n") == 1

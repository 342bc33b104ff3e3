"""The script for Slurm, with stand-ins for Slurm's own commands: it trains, and a pre-empted job goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.tiny import classifier, data_files, save

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    data_files(tmp_path / "data")
    save(classifier(layers=1), tmp_path / "small")
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return tmp_path


def start(desk: Path, steps: int) -> subprocess.Popen[str]:
    argv = ["train", "task=sequence_classification", "dataset.path=data", "student.path=small", "task.max_length=32"]
    argv += [f"train.max_steps={steps}", "train.batch_size=8", "dataset.cache=false", "output_dir=out"]
    argv += ["train.log_every=1", "train.evaluate_every=100000"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "PROCESSES_PER_NODE": "2"}
    path = f"{desk / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts/slurm_train.sh"), *argv],
        cwd=desk,
        env={
            **os.environ,
            **slurm,
            "PORT": str(port),
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_preempted_job_is_requeued_and_goes_on(desk: Path):
    process = start(desk, 3000)
    until = time.monotonic() + 120
    while not ((desk / "out/metrics.jsonl").exists() and (desk / "out/metrics.jsonl").read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode != 0, printed
    assert (desk / "requeued").read_text() == "requeue 7\n"
    [checkpoint] = (desk / "out/checkpoints").glob("step-*")
    again = start(desk, 3000)
    while again.poll() is None and "resuming from" not in printed:
        printed = again.stdout.readline()
    assert str(checkpoint.relative_to(desk)) in printed
    again.send_signal(signal.SIGUSR1)
    again.communicate(timeout=120)


def test_the_kubernetes_example_is_one_job():
    job = yaml.safe_load((ROOT / "scripts/kubernetes_train.yaml").read_text())
    assert job["kind"] == "PyTorchJob"
    command = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
    assert command[:4] == ["torchrun", "-m", "distillkit", "train"]

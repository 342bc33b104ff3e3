"""Processes: two that meet over gloo, and how they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit import launch
from distillkit.errors import UserError
from distillkit.launch import accelerate_config
from distillkit.schema import Config, LaunchSettings

ROOT = Path(__file__).parents[2]
PROBE = r"""
import os, signal, sys, time
from distillkit.errors import UserError

def main(config):
    if config.name == "frozen":
        from accelerate import Accelerator
        from torch import distributed
        state = Accelerator().state
        found = (state.process_index, distributed.get_world_size(), distributed.get_backend(), state.device.type)
        os.write(1, f"{' '.join(map(str, found))} {os.environ['OMP_NUM_THREADS']}\n".encode())
        return {}
    if config.name == "refuse" and os.environ["RANK"] == "1" or config.name == "refuse both":
        raise UserError("wrong", where="some.key")
    if config.name == "crash" and os.environ["RANK"] == "1":
        raise RuntimeError("boom")
    if config.name == "killed" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(1, f"{os.getpid()}\n".encode())
    signal.pause()
"""
START = """
import os, sys
from distillkit import cli, launch
from distillkit.schema import Config, LaunchSettings
def dispatch(argv):
    settings = LaunchSettings(num_processes=2, max_restarts=int(os.environ.get("MAX_RESTARTS", "0")))
    launch.start("probe", Config(name=argv[0], output_dir="out", launch=settings))
    return 0
cli.dispatch = dispatch
sys.exit(cli.main())
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A command `probe` that every process started from here knows."""
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    extend = f"import distillkit.commands\ndistillkit.commands.__path__.append({str(tmp_path)!r})\n"
    (tmp_path / "sitecustomize.py").write_text(extend, encoding="utf-8")
    (tmp_path / "start.py").write_text(START, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    return [sys.executable, str(tmp_path / "start.py")]


def environment(folder: Path, **more: str) -> dict[str, str]:
    ours = {"PYTHONPATH": f"{folder}:{ROOT}", "TMPDIR": str(folder / "tmp")}
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "OMP_NUM_THREADS")
    }
    return {**inherited, **ours, **more}


def run(command: list[str], folder: Path, name: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder, **more)
    return subprocess.run(
        [*command, name], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def nothing_left(folder: Path) -> bool:
    return not (folder / "out").exists() and not list((folder / "tmp").glob("distillkit-*"))


def test_two_processes_meet_over_gloo(command: list[str], tmp_path: Path) -> None:
    leaking = tmp_path / "accelerate/default_config.yaml"  # a user's default of one process must not leak in
    leaking.parent.mkdir()
    leaking.write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', num_processes: 1, use_cpu: true}")
    result = run(command, tmp_path, "frozen", HF_HOME=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert sorted(result.stdout.splitlines()) == [f"0 2 gloo cpu {threads}", f"1 2 gloo cpu {threads}"], result.stderr
    assert result.returncode == 0
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("name", ["refuse", "refuse both"])
def test_bad_input_is_reported_once_whichever_process_finds_it(command: list[str], tmp_path: Path, name: str) -> None:
    result = run(command, tmp_path, name, MAX_RESTARTS="1")  # starting again does not mend it
    assert (result.returncode, result.stderr) == (2, "distillkit: error: some.key: wrong\n")
    assert nothing_left(tmp_path)


def test_a_bug_in_one_process_ends_the_others_and_they_start_again_as_often_as_they_may(
    command: list[str], tmp_path: Path
) -> None:
    result = run(command, tmp_path, "crash", MAX_RESTARTS="1")
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: boom")
    assert result.stderr.count("RuntimeError: boom") == 2
    assert result.stderr.count("distillkit: starting again, 1 of 1 times") == 1


def test_a_killed_process_ends_the_others(command: list[str], tmp_path: Path) -> None:
    result = run(command, tmp_path, "killed")
    assert result.returncode == 1
    assert result.stderr == "distillkit: error: process 1 was ended by SIGKILL; the others were stopped\n"


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "distillkit: interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_no_process_outlives_the_command(
    command: list[str], tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, "wait"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None
    assert process.stderr is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    process.stdout.read()  # returns when the last process that could write has ended
    assert (process.wait(), process.stderr.read()) == (code, said)
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_a_process_of_torchrun_works_in_place(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "0")
    monkeypatch.setattr(launch, "run", lambda command, config: {"ran": command})
    assert launch.start("train", Config(launch=LaunchSettings(num_processes=2))) == {"ran": "train"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (LaunchSettings(num_processes=3, num_machines=2), "launch.num_processes: 3 processes do not spread over 2"),
        (LaunchSettings(num_processes=0), "launch.num_processes"),
        (LaunchSettings(num_processes=4, num_machines=2), "launch.main_process_ip"),
        (LaunchSettings(num_processes=2, machine_rank=1), "launch.machine_rank: must be from 0 to 0, got 1"),
        (LaunchSettings(config_file="nowhere.yaml"), "launch.config_file: no such file: nowhere.yaml"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: LaunchSettings, expected: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError) as error:
        launch.start("train", Config(launch=settings))
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(("processes", "gpus", "cpu"), [(2, 0, "true"), (2, 2, None), (1, 8, None)])
def test_gloo_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, processes: int, gpus: int, cpu: str | None
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    launch.choose_devices(processes, gpus)
    assert os.environ.get("ACCELERATE_USE_CPU") == cpu


def test_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(UserError, match=r"^launch\.num_processes: 2 processes on a machine with 1 GPUs"):
        launch.choose_devices(2, 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch.choose_devices(2, 1)


def test_several_machines_share_one_address() -> None:
    settings = LaunchSettings(
        num_processes=16, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", main_process_port=29500
    )
    config = accelerate_config(settings)
    assert (config["main_process_ip"], config["main_process_port"], config["machine_rank"]) == ("10.0.0.1", 29500, 1)

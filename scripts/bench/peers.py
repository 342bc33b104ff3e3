"""Compare distillkit with other tools for distillation: the same models, rows and settings, in one run.

classify   an encoder learns labels and soft labels    distillkit, transformers' Trainer, TextBrewer, torchdistill
language   a language model learns next-token odds     distillkit, transformers' Trainer, TRL (and its chunked loss)
embed      an encoder learns a larger one's vectors    distillkit, sentence-transformers

Each case is a process of its own with one thread, and the cases take turns: A, B, C, A, B, C, … with another seed in
each round. Measured are seconds by the clock and of all CPUs (which other people's work disturbs less), of the training
alone and of the whole command; the peak of resident memory; what the student can do, by one evaluator for all; and the
lines that a user writes. peers/README.md says what is compared and shows results.

python scripts/bench/peers.py --install                                    # first: an environment for each peer
python scripts/bench/peers.py --prepare --sst2 FOLDER --wikitext FOLDER    # then: teachers, students, rows
python scripts/bench/peers.py                                              # measure
python scripts/bench/peers.py --jobs classify --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "peers"
sys.path.insert(0, str(HERE))

from lines import count_lines  # noqa: E402
from table import show  # noqa: E402

OURS = "distillkit"
JOBS = {
    "classify": {OURS: OURS, "Trainer": "trainer", "TextBrewer": "textbrewer", "torchdistill": "torchdistill"},
    "language": {OURS: OURS, "Trainer": "trainer", "TRL": "trl", "TRL, chunked": "trl"},
    "embed": {OURS: OURS, "sentence-transformers": "sentence-transformers"},
}
SCRIPTS = {"TRL, chunked": "language_trl_chunked.py"}  # where the name of the environment does not say it
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "tokenizers", OURS)


@dataclass(frozen=True)
class Taken:
    """What one process took; `training` is the part that `clock.py` sees."""

    job: str
    case: str
    seed: int
    items: int
    wall_seconds: float
    cpu_seconds: float
    training_wall_seconds: float
    training_cpu_seconds: float
    peak_mib: float


def main() -> None:
    """Install, prepare or measure."""
    arguments = parse()
    folder = arguments.folder.resolve()
    environments = (arguments.environments or folder / "envs").resolve()
    if arguments.install:
        install(environments)
    if arguments.prepare:
        from prepare import prepare

        sizes = (arguments.rows, arguments.texts)
        prepare(folder / "job", arguments.base, arguments.tokenizer, arguments.sst2, arguments.wikitext, *sizes)
    if not (arguments.install or arguments.prepare):
        result = measure(folder, environments, arguments)
        show(result, OURS)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/peers"), help="for everything that is written")
    parser.add_argument("--environments", type=Path, help="of the peers; FOLDER/envs if not said")
    parser.add_argument("--install", action="store_true", help="make the environments")
    parser.add_argument("--prepare", action="store_true", help="make teachers, students and rows in FOLDER/job")
    parser.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2", help="encoder: folder or hub id")
    parser.add_argument("--tokenizer", default="HuggingFaceTB/SmolLM2-135M", help="with a large vocabulary")
    parser.add_argument("--sst2", type=Path, help="folder with train.jsonl and validation.jsonl (text, label)")
    parser.add_argument("--wikitext", type=Path, help="the same, of long texts (text)")
    parser.add_argument("--rows", type=int, default=1_600, help="of classify and embed, to --prepare")
    parser.add_argument("--texts", type=int, default=80, help="of language, to --prepare")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="begin no further round that would not end within these")
    parser.add_argument("--output", type=Path, help="the JSON; FOLDER/peers.json if not said")
    arguments = parser.parse_args()
    if arguments.prepare and not (arguments.sst2 and arguments.wikitext):
        parser.error("--prepare needs --sst2 and --wikitext")
    return arguments


def install(folder: Path) -> None:
    """Make an environment for each file in peers/requirements."""
    constraints = HERE / "requirements" / "constraints.txt"
    for requirements in sorted((HERE / "requirements").glob("*.txt")):
        if requirements != constraints:
            venv.create(folder / requirements.stem, with_pip=True, clear=True)
            argv = [python(folder, requirements.stem), "-m", "pip", "install", "-c", constraints, "-r", requirements]
            subprocess.run(argv, check=True)


def python(folder: Path, name: str) -> str:
    """Return the interpreter of an environment; distillkit's is the one that runs this."""
    return sys.executable if name == OURS else str(folder / name / "bin" / "python")


def measure(folder: Path, environments: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the cases take turns, then evaluate all students; write the JSON after each run."""
    output = arguments.output or folder / "peers.json"
    runs: list[Taken] = []
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(environments, arguments.jobs),
        "lines": {job: {case: count_lines(script(job, case)) for case in JOBS[job]} for job in arguments.jobs},
    }
    shutil.rmtree(folder / "runs", ignore_errors=True)
    started = time.monotonic()
    for seed in range(1, arguments.rounds + 1):
        for job in arguments.jobs:
            for case, name in JOBS[job].items():
                runs.append(run(folder, python(environments, name), job, case, seed))
                print(runs[-1], file=sys.stderr)
                write(output, result | {"runs": [asdict(taken) for taken in runs]})
        if arguments.minutes and (time.monotonic() - started) * (seed + 1) / seed > 60 * arguments.minutes:
            break
    result["runs"] = [asdict(taken) for taken in runs]
    result["quality"] = {job: quality(folder, job, seed) for job in arguments.jobs}
    write(output, result)
    return result


def machine() -> dict[str, Any]:
    """Say what this runs on."""
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    cores = os.cpu_count()
    return {"cpu": models[0].split(": ")[1], "cores": cores, "threads": 1, "python": platform.python_version()}


def versions(environments: Path, jobs: Iterable[str]) -> dict[str, dict[str, str]]:
    """Ask each environment what it has."""
    found = {}
    for name in sorted({name for job in jobs for name in JOBS[job].values()}):
        code = (
            "import json\nfrom importlib.metadata import PackageNotFoundError, version\nfound = {}\n"
            f"for name in {sorted({*PACKAGES, name} - {'trainer'})}:\n"
            "    try: found[name] = version(name)\n    except PackageNotFoundError: pass\nprint(json.dumps(found))"
        )
        asked = subprocess.run([python(environments, name), "-c", code], check=True, stdout=subprocess.PIPE)
        found[name] = json.loads(asked.stdout)
    return found


def script(job: str, case: str) -> Path:
    """Return what a user writes for a case."""
    ending = ".txt" if case == OURS else ".py"
    return HERE / SCRIPTS.get(case, f"{job}_{JOBS[job][case].replace('-', '_')}{ending}")


def run(folder: Path, interpreter: str, job: str, case: str, seed: int) -> Taken:
    """Run a case in a process of its own, with empty caches."""
    rows, output = folder / "job" / job, student(folder, job, case, seed).parent
    output.parent.mkdir(parents=True, exist_ok=True)
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    path = script(job, case)
    argv = [HERE / "distillkit_timed.py", path] if case == OURS else [path]
    command = [interpreter, *map(str, argv), str(rows), str(output), str(seed)]
    started = time.monotonic()
    with output.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment(cache))
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{case} failed with code {process.returncode}: see {output.with_suffix('.log')}")
    clock = json.loads((output / "clock.json").read_text(encoding="utf-8"))
    items = sum(1 for _ in (rows / "train.jsonl").open(encoding="utf-8"))
    cpu = usage.ru_utime + usage.ru_stime
    return Taken(job, case, seed, items, wall, cpu, clock["wall"], clock["cpu"], usage.ru_maxrss / 1024)


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of every process: one thread, no GPU, no network."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **threads, **quiet, "HF_HOME": str(cache / "hf"), "XDG_CACHE_HOME": str(cache)}


def student(folder: Path, job: str, case: str, seed: int) -> Path:
    """Return where a run saves its student."""
    return folder / "runs" / f"{job}-{case.replace(', ', '-')}-{seed}" / "model"


def quality(folder: Path, job: str, rounds: int) -> dict[str, dict[str, float]]:
    """Evaluate teacher, untrained student and all trained ones."""
    models = {f"{case}/{n}": student(folder, job, case, n) for case in JOBS[job] for n in range(1, rounds + 1)}
    models = {name: folder / "job" / job / name for name in ("teacher", "student")} | models
    rows, output = folder / "job" / job / "validation.jsonl", folder / "runs" / f"{job}-eval"
    if job == "embed":
        argv = [str(HERE / "embed_compare.py"), str(rows), *(f"{name}={path}" for name, path in models.items())]
        asked = subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.PIPE, env=environment(folder))
        return json.loads(asked.stdout)
    task = {"classify": "sequence_classification", "language": "causal_lm"}[job]
    argv = ["eval", f"task={task}", f"dataset.train={rows.with_name('train.jsonl')}", f"dataset.validation={rows}"]
    argv += ["evaluate.resamples=0", "evaluate.speed=false", "evaluate.samples=0", "evaluate.differences=0"]
    argv += [f"+evaluate.models.{named(name)}={path}" for name, path in models.items()]
    argv += ["evaluate.batch_size=8", f"output_dir={output}"]
    with output.with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-m", OURS, *argv]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment(folder / "cache"))
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    found = {name: report["eval"]["models"][named(name)] for name in models}
    return {name: {**model["metrics"], "divergence": model["divergence"] or 0.0} for name, model in found.items()}


def named(name: str) -> str:
    """Make a name that is a key on distillkit's command line."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

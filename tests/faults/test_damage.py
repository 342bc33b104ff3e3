"""Files that were cut off or of which a bit was flipped are found and named, and nothing wrong is ever loaded.

What can be made again is made again, with a notice; everything else is refused in one line with exit code 2.
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distillkit import cli
from distillkit.generation.soft_labels import AskedForLabels
from distillkit.generation.teacher_store import AskedForStore
from distillkit.losses.objective import Objective
from distillkit.reporting.history import read_history
from distillkit.training.records import Records
from tests.tiny import accelerator, classifier, data_files, save

FLIPS = int(os.environ.get("DISTILLKIT_FLIPS", "9"))
OUT = Path("out")  # where every trial runs
COMMON = ["task=sequence_classification", "task.max_length=32", "dataset.path=data", f"output_dir={OUT}", "name=bench"]
TRAIN = ["train", *COMMON, "student=from_teacher", "student.layers=1", "loss=kd", "train.max_steps=8"]
TRAIN += ["train.batch_size=8", "train.learning_rate=0.01", "train.evaluate_every=2", "train.checkpoint_every=3"]
LIVE = ["teacher=live", "teacher.path=teacher"]
KEEP = ["generate-pseudo", *COMMON, *LIVE, "generate=teacher_store", "generate.shard_rows=8"]
LABEL = ["generate-pseudo", *COMMON, *LIVE, "generate=soft_labels", "generate.shard_rows=8"]
UNCACHED = "dataset.cache=false"


@dataclass(frozen=True)
class Kind:
    """One kind of files.

    Attributes:
        files: Patterns of those that are damaged.
        command: What reads them.
        kept: What has to be there in the end, the same as without damage.
        remade: Whether the command may go on without the damaged file, or with what was not damaged in it.
        named: Whether it then names the file.
        flipped: Whether a flipped bit is found too.
    """

    files: tuple[str, ...]
    command: list[str]
    kept: str
    remade: bool = False
    named: bool = False
    flipped: bool = True


WEIGHTS = "out/model/model.safetensors"
NEWEST = "out/checkpoints/step-000006"
KINDS = {
    "named checkpoint": Kind((f"{NEWEST}/*",), [*TRAIN, *LIVE, UNCACHED, f"resume={NEWEST}"], WEIGHTS),
    "newest checkpoint": Kind(
        (f"{NEWEST}/*", "out/checkpoints/best.safetensors"), [*TRAIN, *LIVE, UNCACHED], WEIGHTS, remade=True, named=True
    ),
    "store": Kind(
        ("out/teacher-store/part-*.arrow", "out/teacher-store/store.json"),
        [*TRAIN, UNCACHED, "teacher=cached", "teacher.path=out/teacher-store"],
        WEIGHTS,
    ),
    "unfinished store": Kind(("out/teacher-store/*",), [*KEEP, UNCACHED], "out/teacher-store/part-*", remade=True),
    "unfinished labels": Kind(("out/generated/*",), [*LABEL, UNCACHED], "out/pseudo/part-*", remade=True),
    "pseudo data": Kind(
        ("out/pseudo/*",),
        [*TRAIN, *LIVE, UNCACHED, "dataset.path=null", "dataset.train=out/pseudo/*.parquet"],
        WEIGHTS,
    ),
    "encoded rows": Kind(
        ("cache/*/rows.arrow", "cache/*/facts.json"),
        [*TRAIN, *LIVE, "dataset.cache=cache"],
        WEIGHTS,
        remade=True,
        named=True,
    ),
    "packed data": Kind(
        ("packed/train.jsonl.gz",), [*TRAIN, *LIVE, UNCACHED, "dataset.path=packed"], WEIGHTS, remade=True
    ),
    "data": Kind(("data/train.jsonl",), [*TRAIN, *LIVE, UNCACHED], WEIGHTS, flipped=False),
}


@dataclass
class Bench:
    """Folders as they were before any damage, by kind of files, and what comes of them."""

    folder: Path
    expected: dict[str, dict[str, bytes]]

    def lay_out(self, kind: str) -> None:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.folder / kind, Path(), dirs_exist_ok=True)


def contents(pattern: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().glob(pattern))}


def interrupted(command: list[str], owner: type, method: str, calls: int) -> None:
    """Run a command that is stopped in one of the calls of a method."""
    before: Callable[..., Any] = getattr(owner, method)
    done = 0

    def counted(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt
        return before(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, counted)
        assert cli.main(command) == 130


PREPARE: dict[str, Callable[[], Any]] = {
    "checkpoint": lambda: interrupted(KINDS["newest checkpoint"].command, Objective, "forward", 8),
    "store": lambda: cli.main(KINDS["unfinished store"].command),
    "unfinished store": lambda: interrupted(KINDS["unfinished store"].command, AskedForStore, "answer", 4),
    "unfinished labels": lambda: interrupted(KINDS["unfinished labels"].command, AskedForLabels, "answer", 4),
    "pseudo data": lambda: cli.main(KINDS["unfinished labels"].command),
    "encoded rows": lambda: cli.main(KINDS["encoded rows"].command),
}


def clear(kind: str) -> None:
    """Leave of a finished run what the next command reads, and no more."""
    keep = {"store": {"teacher-store"}, "pseudo data": {"pseudo"}, "encoded rows": set()}.get(kind)
    for path in OUT.iterdir() if keep is not None else ():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("pristine"), {})
    data_files(made.folder / "start/data")
    save(classifier(), made.folder / "start/teacher")
    (made.folder / "start/packed").mkdir()
    for path in (made.folder / "start/data").iterdir():
        (made.folder / "start/packed" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        for kind in KINDS:
            made.lay_out("start")
            step = "checkpoint" if "checkpoint" in kind else kind
            if step in PREPARE:
                PREPARE[step]()
                clear(kind)
            shutil.copytree(Path(), made.folder / kind)
            assert cli.main(KINDS[kind].command) == 0, kind
            made.expected[kind] = contents(KINDS[kind].kept)
        yield made


def harm(path: Path, draw: random.Random, flip: bool) -> str:
    """Flip a bit of a file or cut it off, in a line if it has some; return how."""
    data = bytearray(path.read_bytes())
    if flip:
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {place} of {len(data)} flipped"
    size = draw.randrange(len(data))
    while path.suffix == ".jsonl" and b"\n" in data[size - 1 : size + 1]:  # rows are missing, and nobody can tell
        size = draw.randrange(len(data))
    path.write_bytes(data[:size])
    return f"cut off after {size} of {len(data)} bytes"


def test_lines_of_the_metrics_that_are_none_do_not_stop_a_run(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl", accelerator())
    records.write("train", 1, {"loss": 1.0})
    whole = records.path.read_bytes()
    records.path.write_bytes(whole + b'{"event": "tr\xe1in", "step": 2}\n[1]\n{"stap": 3}\n\0\0\0')
    history = read_history("train", records.path)
    assert history is not None
    assert history.terms == {"loss": ([1], [1.0])}
    records.rewind(9)
    assert records.path.read_bytes() == whole


@pytest.mark.parametrize("trial", range(FLIPS))
def test_damage_is_found_and_named(bench: Bench, capsys: pytest.CaptureFixture[str], trial: int) -> None:
    draw, name = random.Random(trial), list(KINDS)[trial % len(KINDS)]
    kind = KINDS[name]
    bench.lay_out(name)
    path = draw.choice(sorted(path for pattern in kind.files for path in Path().glob(pattern)))
    about = f"{name}: {path}: {harm(path, draw, kind.flipped and draw.random() < 0.6)}"
    capsys.readouterr()
    code = cli.main(kind.command)
    said = capsys.readouterr()
    print(f"{about} → {code} {said.err}")
    assert code == 2 or (kind.remade and code == 0), about
    lines = [line for line in said.err.splitlines() if line.strip() and "Warning" not in line]
    assert len(lines) == (code == 2), (about, said.err)
    if code == 2:
        assert path.stem in lines[0], (about, lines)
        assert not Path(WEIGHTS).exists(), about
    else:
        assert contents(kind.kept) == bench.expected[name], about
        assert path.name in said.out or not kind.named or path.parent.name == "checkpoints", about

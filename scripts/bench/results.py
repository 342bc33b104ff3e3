"""What distillation brings, by recipes alone: teachers, students alone and students distilled, over seeds.

Each set gets one teacher, fine-tuned from `--base`; its answers to the rows and their variants are written once. Each
seed then trains students of half the layers (recipe `augment`: from labels alone, by plain KD, and from the variants)
and of an eighth of the layers' compute (recipe `eighth`). All students of one size take as many steps. For the student
alone several learning rates are tried, and the one that is best on the very rows that are judged is taken: this favours
it. No weights are chosen by an evaluation (`train.keep_best=false`), so validation and test rows are judged together.

python scripts/bench/results.py tweet_emotion banking77 sst2 --data FOLDER --base FOLDER

FOLDER of the data has NAME/train.jsonl, NAME/validation.jsonl and NAME/test.jsonl. What is finished is not done again;
`--seeds` can grow. Figures go to scripts/bench/results/NAME.json; the tables of all sets that are there are printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

KEPT = Path(__file__).with_name("results")
UNJUDGED = ["train.keep_best=false", "train.evaluate_every=1000000"]
TITLES = ("model", "accuracy %", "kept %", "against alone, points", "seeds", "parameters", "MB", "ms a row")


@dataclass(frozen=True)
class Setting:
    """How a set is learned.

    Attributes:
        teacher_epochs: Of fine-tuning the teacher.
        teacher_rate: Its learning rate.
        variants: Of each row.
        epochs: Of the students that learn from rows and variants.
        rates: Learning rates that are tried for the students alone.
    """

    teacher_epochs: float
    teacher_rate: float = 1e-4
    variants: int = 6
    epochs: float = 2
    rates: tuple[float, ...] = (2e-4, 4e-4)

    @property
    def alone_epochs(self) -> float:
        """Epochs over the rows alone that take as many steps."""
        return self.epochs * (1 + self.variants)


SETTINGS = {
    "tweet_emotion": Setting(6, variants=8, epochs=3),
    "banking77": Setting(8, 2e-4, variants=3),
    "sst2": Setting(2, variants=1, epochs=1.5),
}


@dataclass(frozen=True)
class Runs:
    """The commands of one set.

    Attributes:
        name: Of the set.
        setting: How it is learned.
        data: Folder of its files.
        base: Model that the teacher is fine-tuned from.
        folder: Where everything is written.
        extra: Overrides of every command.
    """

    name: str
    setting: Setting
    data: Path
    base: Path
    folder: Path
    extra: tuple[str, ...]

    def teach(self) -> None:
        """Fine-tune the teacher, and let it label rows and variants."""
        left_out = [f"~stages.{stage}" for stage in ("alone", "distilled", "eval")]
        teacher = "stages.teacher.set.train"
        rates = [
            f"{teacher}.epochs={self.setting.teacher_epochs}",
            f"{teacher}.learning_rate={self.setting.teacher_rate}",
        ]
        variants = [f"vars.variants={self.setting.variants}", f"vars.base={self.base}"]
        self._run("run", "augment", "taught", *left_out, *rates, *variants, "train.seed=0")

    def half(self, seed: int) -> dict[str, Any]:
        """Train and judge students of half the layers, with plain KD besides."""
        plain = f"kd-{seed}"
        epochs = f"train.epochs={self.setting.alone_epochs}"
        self._run("train", "augment", plain, epochs, f"teacher.path={self._teacher}", f"train.seed={seed}")
        model = f"+stages.eval.set.evaluate.models.kd={self.folder / self.name / plain}/model"
        return self._students("augment", "half", seed, [model])

    def eighth(self, seed: int) -> dict[str, Any]:
        """Train and judge students of an eighth of the compute."""
        return self._students("eighth", "eighth", seed)

    def tune(self, recipe: str, size: str) -> dict[str, float]:
        """Try learning rates of the student alone; return the accuracy of each."""
        found = {}
        for rate in self.setting.rates:
            folder = f"{size}-alone-{rate:g}"
            left_out = [
                f"~stages.{stage}" for stage in ("teacher", "inputs", "distilled", "eval.set.evaluate.models.distilled")
            ]
            report = self._run(
                "run", recipe, folder, *left_out, *self._alone(rate), *self._taught(recipe), "train.seed=0"
            )
            found[f"{rate:g}"] = report["stages"]["eval"]["models"]["alone"]["metrics"]["accuracy"]
        return found

    def _students(self, recipe: str, size: str, seed: int, more: Sequence[str] = ()) -> dict[str, Any]:
        tried = self.tune(recipe, size)
        best = float(max(tried, key=lambda rate: tried[rate]))
        left_out = [
            "~stages.teacher",
            "~stages.inputs",
            f"stages.distilled.set.dataset.train={self._taught_rows}",
            f"stages.distilled.set.teacher.path={self._teacher}",
        ]
        settings = [
            *self._alone(best),
            *self._taught(recipe),
            f"vars.epochs={self.setting.epochs}",
            f"train.seed={seed}",
        ]
        speed = [f"+stages.eval.set.evaluate.speed={str(seed == 1).lower()}"]
        report = self._run("run", recipe, f"{size}-{seed}", *left_out, *settings, *speed, *more)
        return {"seed": seed, "learning_rates_alone": tried, **_judged(report)}

    def _alone(self, rate: float) -> list[str]:
        alone = "stages.alone.set.train"
        return [f"{alone}.epochs={self.setting.alone_epochs}", f"+{alone}.learning_rate={rate:g}"]

    def _taught(self, recipe: str) -> list[str]:
        cut = [f"compress.model={self._teacher}"] if recipe == "eighth" else []
        return [*cut, f"teacher.path={self._teacher}", f"stages.eval.set.evaluate.models.teacher={self._teacher}"]

    @property
    def _teacher(self) -> Path:
        return self.folder / self.name / "taught/teacher/model"

    @property
    def _taught_rows(self) -> str:
        return f"{self.folder / self.name}/taught/inputs/pseudo/*.parquet"

    def _run(self, command: str, recipe: str, name: str, *overrides: str) -> dict[str, Any]:
        folder = self.folder / self.name / name
        files = {split: self.data / self.name / f"{split}.jsonl" for split in ("train", "validation", "test")}
        judged = f"vars.validation=[{files['validation']},{files['test']}]"
        shared = [f"output_dir={folder}", f"name={self.name}", f"vars.train={files['train']}", judged, *UNJUDGED]
        line = [sys.executable, "-m", "distillkit", command, recipe, *shared, *self.extra, *overrides]
        if subprocess.run(line, check=False).returncode:
            raise SystemExit(f"failed: {' '.join(line)}")
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))[command]


def main() -> None:
    """Train what is missing, keep the figures, show the tables."""
    options = parse()
    for name in options.sets:
        setting = SETTINGS[name]
        runs = Runs(
            name, setting, options.data.resolve(), options.base.resolve(), options.folder.resolve(), tuple(options.set)
        )
        runs.teach()
        for seed in range(1, options.seeds + 1):
            for size, judge in (("eighth", runs.eighth), ("half", runs.half)):
                if size in options.sizes:
                    keep(name, setting, size, judge(seed))
    for name in SETTINGS:
        if (KEPT / f"{name}.json").exists():
            show(json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8")))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="what to train; none: only show what is kept")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--base", type=Path, default=Path("base"))
    parser.add_argument("--folder", type=Path, default=Path("outputs/results"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=["half", "eighth"], default=["half", "eighth"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override of every command")
    options = parser.parse_args()
    for name in options.sets:
        if name not in SETTINGS:
            parser.error(f"no set '{name}'; choose of {', '.join(SETTINGS)}")
    return options


def keep(name: str, setting: Setting, size: str, result: dict[str, Any]) -> None:
    """Put the figures of a seed into the set's file."""
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"set": name, "sizes": {}}
    seeds = {entry["seed"]: entry for entry in known["sizes"].get(size, [])} | {result["seed"]: result}
    known["setting"] = vars(setting)
    known["sizes"][size] = [seeds[seed] for seed in sorted(seeds)]
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _judged(report: dict[str, Any]) -> dict[str, Any]:
    """Pick what a table needs from the report of a run."""
    judged = report["stages"]["eval"]
    costs = ("parameters", "bytes", "latency_ms", "rows_per_second", "agreement")
    models = {
        name: {"accuracy": it["metrics"]["accuracy"], **{cost: it.get(cost) for cost in costs}}
        for name, it in judged["models"].items()
    }
    return {"rows": judged["rows"], "environment": judged["environment"], "models": models}


def show(kept: dict[str, Any]) -> None:
    """Print the table of a set."""
    for size, seeds in kept["sizes"].items():
        table = Table(*TITLES, title=f"{kept['set']}, {size}: {seeds[0]['rows']:,} rows judged", title_justify="left")
        for row in rows(seeds):
            table.add_row(*row)
        Console(width=120).print(table)


def rows(seeds: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Write a line for each model: means over seeds, and the paired difference to the student alone."""
    teacher = seeds[0]["models"]["teacher"]["accuracy"]
    alone = [entry["models"]["alone"]["accuracy"] for entry in seeds]
    for name, first in seeds[0]["models"].items():
        found = [entry["models"][name]["accuracy"] for entry in seeds]
        spread = f" ± {100 * stdev(found):.2f}" if len(found) > 1 and name != "teacher" else ""
        against = "" if name in ("teacher", "alone") else difference([a - b for a, b in zip(found, alone, strict=True)])
        size, latency = first["bytes"], first["latency_ms"]
        yield [
            name,
            f"{100 * mean(found):.2f}{spread}",
            f"{100 * mean(found) / teacher:.1f}",
            against,
            str(len(seeds)) if name != "teacher" else "1",
            f"{first['parameters'] / 1e6:.1f} M",
            f"{size / 1e6:.1f}",
            "" if latency is None else f"{latency:.2f}",
        ]


def difference(points: list[float]) -> str:
    """Write the mean of paired differences with its 95 % interval over seeds, by Student's t."""
    if len(points) < 2:
        return f"{100 * points[0]:+.2f}"
    half = stats.t.ppf(0.975, len(points) - 1) * stdev(points) / len(points) ** 0.5
    low, high = 100 * (mean(points) - half), 100 * (mean(points) + half)
    return f"{100 * mean(points):+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()

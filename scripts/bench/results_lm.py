"""What distillation brings to small language models from scratch, by the recipe `quickstart` on real texts, over seeds.

Each seed trains a teacher, and students of a quarter of its size: alone, distilled for as many steps, and distilled for
60 % of the steps. For the student alone several learning rates are tried on the rows that are judged, which favours it.

python scripts/bench/results_lm.py wikitext2 tinyshakespeare --data FOLDER

FOLDER has NAME/train.jsonl, NAME/validation.jsonl and NAME/test.jsonl with the column `text`. What is finished is not
done again. Figures go to scripts/bench/results/NAME.json; the tables of all sets that are there are printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from results import KEPT, difference
from rich.console import Console
from rich.table import Table

SETS = ("wikitext2", "tinyshakespeare")
RATES = (2e-3, 4e-3, 8e-3)
STEPS = 800
SHORT, SHORTER = 0.6, "in_60_percent"  # of the steps
TEACHER_STEPS = 2000
TEACHER, ALONE = (f"stages.{stage}.set.train" for stage in ("teacher", "alone"))


@dataclass(frozen=True)
class Runs:
    """The commands of one set."""

    name: str
    data: Path
    folder: Path
    extra: tuple[str, ...]

    def seed(self, seed: int, rates: dict[str, float]) -> dict[str, Any]:
        """Train and judge the teacher and the students of a seed."""
        rate = min(rates, key=lambda tried: rates[tried])
        whole = f"seed-{seed}"
        self._run(
            "run", whole, "~stages.compress", "~stages.eval", f"+{ALONE}.learning_rate={rate}", *self._teacher(seed)
        )
        teacher = f"teacher.path={self._model(f'{whole}/teacher')}"
        self._run("train", f"{whole}-short", f"train.max_steps={int(STEPS * SHORT)}", teacher, f"train.seed={seed}")
        models = {name: f"{whole}/{name}" for name in ("teacher", "alone", "distilled")}
        report = self._judge(f"{whole}-eval", models | {SHORTER: f"{whole}-short"})
        picked = ("bits_per_byte", "perplexity", "loss")
        found = {name: {metric: it["metrics"][metric] for metric in picked} for name, it in report["models"].items()}
        sizes = {name: it["parameters"] for name, it in report["models"].items()}
        facts = {"learning_rates_alone": rates, "parameters": sizes, "environment": report["environment"]}
        return {"seed": seed, "models": found, **facts}

    def tune(self) -> dict[str, float]:
        """Try learning rates of the student alone; return the test loss of each."""
        left_out = [f"~stages.{stage}" for stage in ("alone", "distilled", "compress", "eval")]
        self._run("run", "tune", *left_out, *self._teacher(0))
        teacher = f"teacher.path={self._model('tune/teacher')}"
        for rate in RATES:
            self._run("train", f"tune-{rate}", "loss=hard", teacher, f"train.learning_rate={rate}", "train.seed=0")
        report = self._judge("tune-eval", {f"rate_{number}": f"tune-{rate}" for number, rate in enumerate(RATES)})
        return {str(rate): it["metrics"]["loss"] for rate, it in zip(RATES, report["models"].values(), strict=True)}

    def _teacher(self, seed: int) -> list[str]:
        every = f"{TEACHER}.evaluate_every={TEACHER_STEPS}"
        return [f"{TEACHER}.max_steps={TEACHER_STEPS}", every, f"train.seed={seed}"]

    def _model(self, name: str) -> Path:
        return self.folder / self.name / name / "model"

    def _judge(self, name: str, models: dict[str, str]) -> dict[str, Any]:
        named = ",".join(f"{model}: '{self._model(folder)}'" for model, folder in models.items())
        quick = ["evaluate.speed=false", "evaluate.samples=0", "evaluate.resamples=0", "evaluate.divergence=false"]
        return self._run("eval", name, "evaluate.split=test", *quick, f"+evaluate.models={{{named}}}")

    def _run(self, command: str, name: str, *overrides: str) -> dict[str, Any]:
        folder = self.folder / self.name / name
        shared = [f"output_dir={folder}", f"name={self.name}", "dataset=files", f"dataset.path={self.data / self.name}"]
        steps = [f"train.max_steps={STEPS}", f"train.evaluate_every={STEPS}", "train.keep_best=false"]
        line = [sys.executable, "-m", "distillkit", command, "quickstart", *shared, *steps, *self.extra, *overrides]
        if subprocess.run(line, check=False).returncode:
            raise SystemExit(f"failed: {' '.join(line)}")
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))[command]


def main() -> None:
    """Train what is missing, keep the figures, show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="what to train; none: only show what is kept")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--folder", type=Path, default=Path("outputs/results"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override of every command")
    options = parser.parse_args()
    for name in options.sets:
        if name not in SETS:
            parser.error(f"no set '{name}'; choose of {', '.join(SETS)}")
    KEPT.mkdir(exist_ok=True)
    for name in options.sets:
        runs = Runs(name, options.data.resolve(), options.folder.resolve(), tuple(options.set))
        rates = runs.tune()
        seeds = [runs.seed(seed, rates) for seed in range(1, options.seeds + 1)]
        kept = {"set": name, "steps": STEPS, "teacher_steps": TEACHER_STEPS, "seeds": seeds}
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for name in SETS:
        if (KEPT / f"{name}.json").exists():
            show(json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8")))


def show(kept: dict[str, Any]) -> None:
    """Print the table of a set: means over seeds, and the paired difference to the student alone."""
    table = Table("model", "bits per byte", "against alone, %", "parameters", title=kept["set"], title_justify="left")
    bits = {
        name: [seed["models"][name]["bits_per_byte"] for seed in kept["seeds"]] for name in kept["seeds"][0]["models"]
    }
    for name, found in bits.items():
        shares = [value / alone - 1 for value, alone in zip(found, bits["alone"], strict=True)]
        spread = f" ± {stdev(found):.4f}" if len(found) > 1 else ""
        against = "" if name in ("teacher", "alone") else difference(shares)
        size = kept["seeds"][0]["parameters"][name]
        table.add_row(name, f"{mean(found):.4f}{spread}", against, f"{size / 1e6:.2f} M")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

"""The output folder of a command: whose it is, whether it is finished, and taking it."""

from __future__ import annotations

import shutil
from enum import Enum
from pathlib import Path

from distillkit.errors import UserError
from distillkit.freeze import differences, digest, freeze, load
from distillkit.reporting.files import read_report
from distillkit.schema import Config

WRITES = {
    "train": ("checkpoints", "model", "metrics.jsonl", "trackers"),
    "eval": ("differences.jsonl",),
    "generate-pseudo": ("generated", "judged.jsonl", "pseudo", "rejected.jsonl", "teacher-store"),
    "compress": ("compressed",),
}

CHOSEN = "chosen"  # below "compressed": the variant that keeps the budget
LATER = {"generate-pseudo": ("generate.filters",)}  # keys of what is done last, to what is kept of the rest


class Standing(Enum):
    """What an output folder holds of a command's run."""

    new = "nothing of it"
    unfinished = "the same run, not finished"
    finished = "the same run, finished"


def standing(config: Config, command: str) -> Standing:
    """Compare the output folder with a config.

    Raises:
        UserError: If it holds another run of the same command, and `overwrite` is not set.
    """
    frozen = Path(config.output_dir) / f"{command}.yaml"
    if not frozen.exists():
        left = [name for name in WRITES[command] if (frozen.parent / name).exists()]
        if left and not config.overwrite:
            raise UserError(
                f"{frozen.parent} already has {', '.join(left)}, and no {frozen.name} that says where from",
                where="output_dir",
                fix="choose another output_dir, or set overwrite=true",
            )
        return Standing.new
    changed = differences(load(frozen), config, command)
    if changed and all(change.startswith(LATER.get(command, ())) for change in changed):
        return Standing.unfinished
    if changed and config.overwrite:
        return Standing.new
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{frozen.parent} holds another run ({', '.join(changed[:3])}{more})",
            where="output_dir",
            fix="choose another output_dir, or set overwrite=true to throw that run away",
        )
    done = read_report(frozen.parent).get(command, {}).get("digest") == digest(config, command)
    return Standing.finished if done else Standing.unfinished


def settled(config: Config, command: str) -> bool:
    """Tell whether nothing follows from a finished run's report: a missed budget is to be said, a choice to be copied.

    Otherwise the command itself has to be started again, which does no more than that.
    """
    folder = Path(config.output_dir)
    budget = read_report(folder)[command].get("budget")
    return budget is None or (budget["chosen"] is not None and (folder / "compressed" / CHOSEN).is_dir())


def claim(config: Config, command: str, state: Standing) -> None:
    """Take the folder: clear what another run of the command left (only a `new` one does) and freeze the config."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state is Standing.new:
            for name in WRITES[command]:
                path = folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        (folder / f"{command}.yaml").write_text(freeze(config), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror})", where="output_dir") from error

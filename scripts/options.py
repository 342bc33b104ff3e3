"""Write configs/README.md: every option of every config group, from the YAML files, their comments and the docstrings.

python scripts/options.py            # write it
python scripts/options.py --check    # exit with 1 if it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from distillkit import schema
from distillkit.app import OPTUNA

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "configs" / "README.md"
GROUPS = {
    "task": "what is learned",
    "dataset": "the rows",
    "teacher": "who answers",
    "student": "what is trained",
    "loss": "what is minimised",
    "train": "how it is optimised",
    "generate": "what the teacher writes",
    "evaluate": "what is compared and measured",
    "compress": "the steps of compression",
    "launch": "processes and machines",
    "tracker": "where numbers go besides metrics.jsonl",
    "hydra/sweeper": "how a sweep (`--multirun`) chooses values; a grid where none is named",
}
SWEEPERS = {OPTUNA: "distillkit.tuning.sweeper.Optuna"}  # the name that Hydra knows it by → where it is
INTRODUCTION = """\
# Every option

<!-- Written by scripts/options.py from the YAML files, their comments and the docstrings. Change these instead. -->

`GROUP=OPTION` on the command line swaps a whole part, `GROUP.KEY=VALUE` sets one key of it, and a recipe does both in
YAML. `distillkit COMMAND RECIPE --cfg job` shows what comes out. A class of your own goes into any group as
`GROUP=custom +GROUP._target_=mypackage.MyClass` with `DISTILLKIT_TRUST=mypackage` in the environment.
"""


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv:
        README.write_text(text, encoding="utf-8")
        return 0
    if README.read_text(encoding="utf-8") == text:
        return 0
    print("configs/README.md is out of date: python scripts/options.py", file=sys.stderr)
    return 1


def page() -> str:
    """Return the whole page."""
    folders = [(name, sorted((ROOT / "configs" / name).rglob("*.yaml"))) for name in GROUPS]
    parts = [INTRODUCTION, "## The root\n\n" + table(root_keys())]
    parts += [group(name, files) for name, files in folders]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def root_keys() -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of the keys outside the groups."""
    for line in inspect.getsource(schema.Config).splitlines():
        found = re.match(r"    (\w+): .* = (.*?)(?:  # (.*))?$", line)
        if found and found[1] not in GROUPS:
            default = "{}" if found[2].startswith("field(") else found[2].strip('"')
            yield found[1], default, found[3] or ROOT_KEYS.get(found[1], "")


ROOT_KEYS = {
    "name": "of the run, for folders, reports and model cards",
    "output_dir": "where everything is written; the same command goes on from what is there",
    "stages": "of `run`: name → command, choose (options of groups) and set (keys)",
}


def group(name: str, files: list[Path]) -> str:
    """Return the section of a config group."""
    folder = ROOT / "configs" / name
    lines = [f"## {name}: {GROUPS[name]}", "", "| option | |", "|---|---|"]
    everything, details = keys_of(files), list[str]()
    seen: set[tuple[str, str]] = set()
    for file in files:
        option = str(file.relative_to(folder).with_suffix(""))
        text = file.read_text(encoding="utf-8")
        choice = "=".join(f"{name}/{option}".rsplit("/", 1))
        lines.append(f"| `{choice}` | {cell(purpose(text))} |")
        keys = everything[file]
        fresh = [row for row in keys if (row[0], row[2]) not in seen]
        seen |= {(key, meaning) for key, _, meaning in keys}
        few = len(fresh) * 2 < len(keys)
        if fresh:
            title = f"### {choice}" + (", besides keys that options above have" if few else "")
            details.append(f"{title}\n\n{table(fresh if few else keys)}")
    return "\n".join(lines) + "\n\n" + "\n\n".join(details)


def keys_of(files: list[Path]) -> dict[Path, list[tuple[str, str, str]]]:
    """Return key, default and meaning of the values of a group's files, which explain each other's keys."""
    found = {file: list(leaves(file.read_text(encoding="utf-8"))) for file in files}
    known: dict[str, str] = {}
    for rows in found.values():
        for key, _, meaning in rows:
            if meaning:
                known.setdefault(key.split(".")[-1], meaning)
    return {
        file: [
            (key, default, meaning or by_place(key) or known.get(key.split(".")[-1], ""))
            for key, default, meaning in rows
        ]
        for file, rows in found.items()
    }


def by_place(key: str) -> str:
    """Return what a key means by where it stands."""
    *outer, name = key.split(".")
    if "columns" in outer:
        return f"what our column `{name}` is called there"
    if "terms" in outer and name == "weight":
        return "what the mean of the term is multiplied by"
    return f"as `train.{name}`" if outer and "train" in outer else ""


def purpose(text: str) -> str:
    """Return the first comment line of a file."""
    return text.splitlines()[0].lstrip("# ").strip()


def leaves(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, default and meaning of each value of a YAML file."""
    lines = text.splitlines()
    node = yaml.compose(text)
    if isinstance(node, yaml.MappingNode):
        yield from _leaves(node, (), lines, {})


def _leaves(
    node: yaml.MappingNode, path: tuple[str, ...], lines: list[str], known: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    named = {key.value: value for key, value in node.value}
    if "_target_" in named:
        known = meanings(named["_target_"].value)
    for key, value in node.value:
        if key.value in ("_target_", "defaults"):
            continue
        here = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, here, lines, {} if "_target_" in named else known)
        else:
            default = " ".join(source(value, lines).split())
            yield ".".join(here), default, comment(lines, value.end_mark.line) or known.get(key.value, "")


def source(node: yaml.Node, lines: list[str]) -> str:
    """Return a value as it is written."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    rest = [line.split("  #")[0].strip() for line in lines[start.line + 1 : end.line + 1]]
    return " ".join([lines[start.line][start.column :].split("  #")[0], *rest])


def comment(lines: list[str], line: int) -> str:
    """Return the comment behind a line, with the comment lines that go on with it."""
    if line >= len(lines):
        return ""
    found = re.search(r"\s#\s(.*)$", lines[line])
    if not found:
        return ""
    words = [found[1]]
    for following in lines[line + 1 :]:
        more = re.match(r"\s{4,}#\s+(.*)$", following)
        if not more:
            break
        words.append(more[1])
    return " ".join(words)


def meanings(target: str) -> dict[str, str]:
    """Return what the docstring of a class (or of those it derives from) says of its arguments."""
    module, _, name = SWEEPERS.get(target, target).rpartition(".")
    if not module:
        return {}
    found: dict[str, str] = {}
    for ancestor in reversed(getattr(import_module(module), name).__mro__):
        found |= arguments(ancestor)
    return found


def arguments(owner: Any) -> dict[str, str]:
    """Return the section Args of a docstring."""
    text = inspect.cleandoc(owner.__doc__ or "")
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    if not section:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def table(rows: Any) -> str:
    """Return a Markdown table of keys."""
    lines = ["| key | default | |", "|---|---|---|"]
    lines += [f"| `{key}` | `{cell(default)}` | {cell(meaning)} |" for key, default, meaning in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Escape what would end a cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())

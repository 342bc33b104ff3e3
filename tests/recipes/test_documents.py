"""The pages beside the README: their commands run or are put together, formulas hold, and tables leave nothing out."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from distillkit.arguments import recipe_files
from distillkit.commands import doctor
from distillkit.diagnosis.collectives import Collectives
from distillkit.losses.base import Loss
from distillkit.schema import TrainSettings
from distillkit.tuning.space import examples, space_of
from tests.terminal import distillkit

from .test_doctor import SPEED
from .test_readme import run

ROOT = Path(__file__).resolve().parents[2]
MATHEMATICS = "distillkit/losses/README.md"
PAGES = (MATHEMATICS, "recipes/README.md", "recipes/MIGRATION.md", "recipes/TROUBLESHOOTING.md")
ABSTRACT = {  # what losses derive from
    *("Loss", "LogitLoss", "FeatureLoss", "TaughtLoss", "Divergence"),
    *("VectorLoss", "ProjectedLoss", "RowLoss", "MapLoss", "MapKL"),
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), flags=re.MULTILINE | re.DOTALL)


def lines(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, with what a here-document gives it."""
    waiting = block.replace("\\\n", " ").splitlines()
    while waiting:
        line = waiting.pop(0)
        mark = re.search(r"<<'(\w+)'$", line)
        text = ""
        while mark and (following := waiting.pop(0)) != mark[1]:
            text += f"{following}\n"
        if shlex.split(line, comments=True):
            yield line, text


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "measure_speed", lambda _: SPEED)  # tests/unit/test_diagnosis measures
    monkeypatch.setattr(doctor, "try_collectives", lambda _: Collectives(2, "gloo", 1e-4, 1e9))
    for block in blocks(page, "bash"):
        for line, text in lines(block):
            words = shlex.split(line, comments=True)
            if words[:2] == ["cat", ">"]:
                (desk / words[2]).write_text(text, encoding="utf-8")
            else:
                run(line, monkeypatch)


def put_together(words: list[str]) -> None:
    """Compose a command; of a search, with a value of each range."""
    assert words[0] == "distillkit"
    if "-m" in words:
        ranges = [word for word in words[2:] if "=" in word and OverridesParser.create().parse_override(word)]
        swept = [word for word in ranges if OverridesParser.create().parse_override(word).is_sweep_override()]
        values = next(examples(space_of(OverridesParser.create().parse_overrides(swept))))
        words = [word for word in words if word not in (*swept, "-m")] + values
    result = distillkit(*words[1:], "--cfg", "job", "--resolve")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("line", [line for page in PAGES for block in blocks(page, "sh") for line, _ in lines(block)])
def test_what_is_only_put_together(line: str) -> None:
    put_together(shlex.split(line, comments=True))


@pytest.mark.parametrize("recipe", recipe_files())
def test_headers_say_how_what_it_costs_and_what_to_expect(recipe: str) -> None:
    text = recipe_files()[recipe].read_text(encoding="utf-8").split("defaults:")[0]
    title, command, blank, *rest = text.splitlines()
    assert title.startswith("# ")
    assert command.startswith(f"# distillkit run {recipe}")
    assert blank == "#"
    found = dict(re.findall(r"^# (Hub|Files|Cost|Expect): (.+)$", "\n".join(rest), flags=re.MULTILINE))
    assert list(found) == ["Hub", "Files", "Cost", "Expect"]
    for kind in ("Hub", "Files"):
        words = shlex.split(found[kind])
        assert words[:3] == ["distillkit", "run", recipe]
        put_together(words)


def test_the_decision_tables_have_every_recipe() -> None:
    first, second = (part.split("\n## ")[0] for part in read("recipes/README.md").split("\n## ")[1:3])
    named = set(re.findall(r"`(\w+)`", re.sub(r"\b[\w.]+\.\w+", "", first)))
    assert set(recipe_files()) <= named
    assert set(re.findall(r"^\| `(\w+)` \|", second, flags=re.MULTILINE)) == set(recipe_files())


def test_formulas_hold() -> None:
    exec("\n".join(blocks(MATHEMATICS, "python")), {})


def test_the_mathematics_leave_out_no_loss() -> None:
    modules = [import_module(f"distillkit.losses.{path.stem}") for path in (ROOT / "distillkit/losses").glob("*.py")]
    classes = {name: kind for module in modules for name, kind in inspect.getmembers(module, inspect.isclass)}
    losses = {name for name, kind in classes.items() if issubclass(kind, Loss)}
    assert losses >= ABSTRACT
    assert len(losses - ABSTRACT) > 20
    text = "\n".join(blocks(MATHEMATICS, "python"))
    assert [name for name in losses - ABSTRACT if f"{name}(" not in text] == []


def test_refusals_are_quoted_as_they_are_printed() -> None:
    sources = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "distillkit").rglob("*.py"))
    sources = re.sub(r'"\s*f?"', "", sources)  # of literals that are written one after the other
    start, stop = (part.split("\n## ")[0] for part in read("recipes/TROUBLESHOOTING.md").split("\n## ")[1:3])
    quoted = re.findall(r"^\| `([^`]+)`[^|]*\| ", start + stop, flags=re.MULTILINE)
    assert len(quoted) > 20
    for message in quoted:
        for piece in message.split("…"):
            assert piece.strip() in sources, message


def test_keys_of_train_that_pages_name_are_there() -> None:
    known = {field.name for field in fields(TrainSettings)}
    for page in (*PAGES, "README.md"):
        text = read(page)
        if page == "recipes/MIGRATION.md":  # the first column of a table is the other tool's
            text = re.sub(r"^\| [^|]* \|", "", text, flags=re.MULTILINE)
        assert set(re.findall(r"`train\.(\w+)", text)) - {"yaml"} <= known, page


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page)):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target

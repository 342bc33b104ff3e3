"""report.html: whole, self-contained, escaped, and there even where files are missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distillkit.reporting.files import write_report
from distillkit.reporting.history import read_history
from distillkit.reporting.page import page
from distillkit.reporting.pictures.axes import Axis, fitted
from distillkit.reporting.pictures.classes import change, matrix
from distillkit.reporting.pictures.curves import POINTS, Curve, curves
from distillkit.reporting.pictures.svg import element
from distillkit.reporting.pictures.tradeoff import tradeoff
from tests.reports import comparison, model, whole
from tests.tiny import write_jsonl

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Reader(HTMLParser):
    """Checks nesting, and collects elements, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        found = dict(attrs)
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.anchors |= {found["id"]} if "id" in found else set()
        assert not any(name.startswith("on") for name in found), attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def check(html: str) -> Reader:
    """Check everything that holds for every page."""
    reader = read(html)
    assert html.startswith("<!doctype html>")
    assert set(reader.seen).isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert all(link.startswith("#") for link in reader.links), reader.links
    assert {link[1:] for link in reader.links} <= reader.anchors
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.findall(r"https?://", html.replace("http://www.w3.org/2000/svg", ""))
    for drawn in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(drawn)
    assert "nan" not in re.findall(r'(?:d|x|y|x1|y1|cx|cy|transform)="[^"]*nan[^"]*"', html)
    return reader


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict]:
    """A whole run: a teacher and a student trained, and compared."""
    for stage, terms in (("teacher", ["hard"]), ("alone", ["hard", "kd"])):
        lines = [
            {"event": "train", "step": step, "loss": 3 / step, "terms": {name: 2 / step for name in terms}}
            for step in range(1, 600)
        ]
        lines.append({"event": "evaluate", "step": 600, "accuracy": 0.9, "loss": 0.2, "seconds": 1.0})
        write_jsonl(tmp_path / stage / "metrics.jsonl", lines)
        (tmp_path / stage / "train.yaml").write_text("name: <b>a</b>\n", encoding="utf-8")
    write_jsonl(tmp_path / "compress/compressed/retrain.metrics.jsonl", lines)
    trained = {"name": "tiny", "command": "train", "steps": 600, "seconds": 61, "metrics": {"accuracy": 0.9}}
    trained |= {"seed": 7, "loss": {"hard": "1 × CE"}, "best_metric": "accuracy", "task": "t", "dataset": "d"}
    stages = {
        "teacher": trained,
        "alone": trained,
        "compress": {**whole(), "command": "compress"},
        "eval": {**whole(), "command": "eval"},
    }
    return tmp_path, {"run": {"name": "tiny <run>", "stages": stages}}


def test_a_page_is_whole_self_contained_and_shows_everything(run):
    html = page(*run)
    reader = check(html)
    for text in ("teacher", "alone", "int8", "tiny <run>", "2026-01-02", "88.00 %", "Calibration", "Samples", "Stages"):
        assert text in reader.text, text
    assert "name: <b>a</b>" in reader.text
    assert "keeps 97.8 %" in reader.text
    for picture in ("MB on disk", "ms for one row", "reliability of int8", "F1 of each class", "loss by step"):
        assert picture in html, picture
    assert "accuracy on validation" in html
    for name in whole()["models"]:
        assert html.count(f">{name}<") > 3
    assert len(html) < 400_000


def test_no_text_of_an_example_becomes_markup(run):
    html = page(*run)
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html
    assert "<script>alert('x')</script> & \"so\"" in read(html).text


def test_both_schemes_are_there_and_so_is_paper():
    html = page(Path("nowhere"), {"eval": whole()})
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", "color-scheme: light dark"):
        assert rule in html
    assert 'name="viewport"' in html
    colours = set(re.findall(r"#[0-9a-fA-F]{3,6}\b", html[html.index("</style>") :]))
    assert colours == set(), "pictures take their colours from the style sheet"


def test_missing_files_and_broken_lines_are_survived(run):
    folder, report = run
    (folder / "teacher/metrics.jsonl").unlink()
    (folder / "teacher/train.yaml").unlink()
    with (folder / "alone/metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 7')
    assert "alone" in check(page(folder, report)).text
    check(page(folder / "nowhere", report))
    assert read_history("x", folder / "nowhere") is None


def test_every_command_has_a_page(tmp_path):
    trained = {"name": "n", "steps": 1, "seconds": 1.0, "metrics": {}, "loss": {}, "teacher": None}
    for command, result in {
        "train": trained,
        "generate-pseudo": {"name": "n", "rows": 5, "teacher": "t", "dataset": "d"},
        "compress": comparison({"start": model()}),
        "eval": comparison({"a": model(intervals={}), "b": model(intervals={}, bytes=None)}, split=None),
    }.items():
        write_report(tmp_path / command, command, result, "text")
        assert check((tmp_path / command / "report.html").read_text(encoding="utf-8")).text
    assert json.loads((tmp_path / "eval/report.json").read_text())["eval"]["models"]["a"]["metrics"]


def test_a_models_colour_is_that_of_the_stage_which_made_it(run):
    html = page(*run)
    alone = html[html.index("Loss by term") :]
    alone = alone[alone.index("alone") :]
    alone = alone[: alone.index("</figure>")]
    assert 'class="curve s1' in alone


def test_axes_have_round_ticks_inside():
    for low, high in ((0.0, 1.0), (3.71, 4.09), (0.0001, 0.0009), (120, 98_000)):
        ticks = Axis(low, high).ticks(5)
        assert 3 <= len(ticks) <= 8
        assert all(low <= tick <= high for tick in ticks)
    for low, high in ((0.3, 400.0), (0.9, 1.1), (5.0, 9.0), (1e-3, 1e6)):
        ticks = Axis(low, high, log=True).ticks()
        assert len(ticks) >= 2
        assert all(low <= tick <= high for tick in ticks)
    assert Axis(0, 10, down=True).share(2) == pytest.approx(0.8)
    assert fitted([5.0, 5.0]).low < 5 < fitted([5.0, 5.0]).high
    assert fitted([0.0]).low < fitted([0.0]).high


def test_labels_of_points_do_not_cover_one_another():
    models = {f"model-{n}": model(metrics={"accuracy": 0.9 + n / 1000}, intervals={}) for n in range(4)}
    drawn = tradeoff(comparison(models), {name: n for n, name in enumerate(models)}, "bytes", "MB", 1e-6)
    places = [
        (float(t.get("x")), float(t.get("y")))
        for t in ElementTree.fromstring(drawn).iter()
        if "label" in t.get("class", "")
    ]
    assert len(set(places)) == 4
    assert all(abs(a[1] - b[1]) >= 12 or abs(a[0] - b[0]) > 15 for a in places for b in places if a != b)


def test_pictures_that_would_show_nothing_are_left_out():
    one = comparison({"a": model()})
    assert tradeoff(one, {"a": 0}, "bytes", "MB") is None
    assert tradeoff(comparison({"a": model(), "b": model(bytes=None)}), {"a": 0, "b": 1}, "bytes", "MB") is None
    assert change(one, {"a": 0}) is None
    assert curves([], "loss") is None


def test_long_curves_are_thinned():
    drawn = curves([Curve("loss", list(range(5000)), [1 / (1 + n) for n in range(5000)], 0)], "loss")
    assert drawn.count("L") <= POINTS + 10
    assert "logarithmic" in drawn


def test_many_classes_fit():
    names = [f"a rather long class name {n}" for n in range(20)]
    drawn = matrix("m", [[n + m for n in range(20)] for m in range(20)], names, 9)
    assert ElementTree.fromstring(drawn) is not None
    assert "a rather long cla…" in drawn


def test_elements_are_escaped():
    written = element("text", "<b>&", class_='"x', stroke_width=1.25, href=None)
    assert written == '<text class="&#34;x" stroke-width="1.2">&lt;b&gt;&amp;</text>'

"""configs/README.md lists every option as the YAML files and docstrings have it, and says what each key means."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "options.py"))


def test_the_page_is_up_to_date(script):
    assert (ROOT / "configs" / "README.md").read_text(encoding="utf-8") == script["page"](), "python scripts/options.py"


def test_every_key_has_a_meaning(script):
    groups = [folder for folder in (ROOT / "configs").iterdir() if folder.is_dir()]
    silent = [
        f"{file.relative_to(ROOT)}: {key}"
        for folder in sorted(groups)
        for file, keys in script["keys_of"](sorted(folder.rglob("*.yaml"))).items()
        for key, _, meaning in keys
        if not meaning
    ]
    assert not silent

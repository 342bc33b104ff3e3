"""Which packages are installed: those that distillkit needs, and those of its extras."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from distillkit import __version__

SHOWN = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "hydra-core", "numpy")
PROJECT = Path(__file__).parents[2] / "pyproject.toml"  # of a checkout
DEVELOPMENT = ("test",)  # extras that no user installs


@dataclass(frozen=True)
class Versions:
    """What is installed.

    Attributes:
        packages: Name → version, Python and distillkit first.
        unmet: What distillkit needs and is missing or of another version, such as "transformers>=5.17 (5.1 is here)".
        extras: Extra → what it needs and is missing or of another version.
    """

    packages: dict[str, str]
    unmet: list[str]
    extras: dict[str, list[str]]


def find_versions() -> Versions:
    """Compare what distillkit asks for with what is installed."""
    packages = {"python": platform.python_version(), "distillkit": __version__}
    packages |= {name: found for name in SHOWN if (found := installed(name)) is not None}
    needed, *extras = wanted().items()
    return Versions(packages, _unmet(needed[1]), {name: _unmet(lines) for name, lines in extras})


def wanted(project: Path = PROJECT) -> dict[str, list[Requirement]]:
    """Return what distillkit ("") and each of its extras need, from the checkout or else from what pip wrote down."""
    if project.is_file():
        about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        lines = {"": about["dependencies"], **about["optional-dependencies"]}
        return {name: [Requirement(line) for line in lines[name]] for name in lines if name not in DEVELOPMENT}
    found: dict[str, list[Requirement]] = {"": []}
    for need in [Requirement(line) for line in requires("distillkit") or []]:
        text = str(need.marker or "")
        extra = text.partition("extra == ")[2].split()[0].strip("\"'") if "extra == " in text else ""
        if extra not in DEVELOPMENT:
            found.setdefault(extra, []).append(need)
    return found


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _unmet(needs: list[Requirement]) -> list[str]:
    """Say what is not there, and what is there in a version that does not do."""
    found = [(need, installed(need.name)) for need in needs]
    missing = [f"{need.name}{need.specifier}" for need, version_ in found if version_ is None]
    return missing + [
        f"{need.name}{need.specifier} ({version_} is here)"
        for need, version_ in found
        if version_ is not None and not need.specifier.contains(version_, prereleases=True)
    ]

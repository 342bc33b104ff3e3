"""The built-in corpus: source and documentation of Python's standard library, which every installation carries."""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from distillkit.data.rows import SPLITS, Rows
from distillkit.errors import UserError, did_you_mean

KINDS = ("code", "docstrings")
SHORTEST_DOCSTRING = 80  # characters

# Tests, tables, vendored parts, and what is packaged apart or generated for the machine: with these the corpus would
# differ between installations of one Python version.
EXCLUDED = re.compile(
    r"(site|dist)-packages|tests?|idle_test|__pycache__|__phello__|_bundled"
    r"|encodings|pydoc_data|stringprep\.py|entities\.py|this\.py"
    r"|idlelib|lib2to3|distutils|tkinter|turtle(demo|\.py)|ensurepip|msilib"
    r"|config-.*|_sysconfigdata.*|(site|user)customize\.py|_distutils_system_mod\.py"
)

# Modules that repeat each other's text always fall into one split. So do a module and its "_py" or "_" twin.
FAMILIES = {
    module: family
    for family in (
        ("aifc", "chunk", "sunau", "wave"),
        ("asynchat", "asyncore"),
        ("bz2", "gzip", "lzma"),
        ("cProfile", "profile"),
        ("genericpath", "ntpath", "posixpath"),
        ("imghdr", "sndhdr"),
    )
    for module in family
}


class StdlibDataset:
    """Source files, or the docstrings in them, of the running Python's standard library.

    A top-level module (`json`, with everything under it) falls into a split by the hash of the seed and its name:
    no module is in two splits, and neither the order of files nor the other modules matter. The same Python version
    gives the same rows. The shares are of modules, so splits differ from them in bytes (Python 3.11, seed 0:
    see `configs/dataset/stdlib.yaml`).

    Args:
        kind: "code": a row is a source file; "docstrings": a row is a docstring of at least 80 characters.
        seed: Of the split and of the order of the rows.
        validation: Share of the modules held out for validation; 0 for no such split.
        test: Share of the modules held out for the test; 0 for no such split.
        limit: Keep at most this many rows of each split, chosen by the seed.
    """

    def __init__(
        self,
        kind: str = "code",
        seed: int = 0,
        validation: float = 0.05,
        test: float = 0.05,
        limit: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise UserError(f"unknown kind '{kind}'", where="dataset.kind", fix=did_you_mean(kind, list(KINDS)))
        for name, share in (("validation", validation), ("test", test)):
            if not 0 <= share < 1:
                raise UserError(f"{share} is not a share in [0, 1)", where=f"dataset.{name}")
        if validation + test >= 1:
            raise UserError(f"validation + test = {validation + test:g} leaves nothing to train on", where="dataset")
        if limit is not None and limit < 1:
            raise UserError(
                f"{limit} rows are none", where="dataset.limit", fix="give at least 1, or null for all rows"
            )
        self.kind = kind
        self.seed = seed
        self.shares = {"test": test, "validation": validation}
        self.limit = limit

    def load(self) -> Rows:
        """Read the installation.

        Raises:
            UserError: If the installation carries no sources (zipped or embedded Pythons).
        """
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = sorted(find_sources(root), key=lambda path: self._fraction(path.as_posix()))
        if not paths:
            raise UserError(
                "this Python carries no sources of its standard library",
                where="dataset stdlib",
                fix="use an ordinary Python installation, or another dataset",
            )
        texts: dict[str, list[str]] = {name: [] for name in SPLITS if name == "train" or self.shares[name] > 0}
        places: dict[str, list[str]] = {name: [] for name in texts}
        for path in paths:
            split = self._split(family(path))
            found = list(self._texts(root / path))[: self._room(len(texts[split]))]
            texts[split] += found
            places[split] += [path.as_posix()] * len(found)
        return Rows(
            name=f"Python {platform.python_version()} standard library ({self.kind})",
            splits={name: Dataset.from_dict({"text": rows}) for name, rows in texts.items()},
            where=lambda split, index: f"standard library, {places[split][index]}",
        )

    def _texts(self, path: Path) -> Iterator[str]:
        with tokenize.open(path) as file:  # honours the encoding that the file declares
            source = file.read()
        if self.kind == "docstrings":
            yield from docstrings(source)
        elif source.strip():
            yield source

    def _room(self, rows: int) -> int | None:
        return None if self.limit is None else self.limit - rows

    def _split(self, name: str) -> str:
        fraction = self._fraction(name)
        if fraction < self.shares["test"]:
            return "test"
        return "validation" if fraction < self.shares["test"] + self.shares["validation"] else "train"

    def _fraction(self, name: str) -> float:
        """Hash a name, with the seed, to [0, 1)."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / (1 << 48)


def find_sources(root: Path) -> list[Path]:
    """List the Python files of a standard library that make the corpus, relative to its root."""
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return [path for path in found if not any(EXCLUDED.fullmatch(part) for part in path.parts)]


def family(path: Path) -> str:
    """Name what may not be divided between splits: the top-level module with its twins."""
    module = re.sub(r"^_(py_?)?", "", path.parts[0].removesuffix(".py"))
    return "-".join(FAMILIES.get(module, (module,)))


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions that are long enough to say something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= SHORTEST_DOCSTRING:
                yield text

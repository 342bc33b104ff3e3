"""The built-in corpus: what is in it, that its split leaks nothing, and that it repeats."""

import sysconfig

import pytest

from distillkit.data import stdlib
from distillkit.data.stdlib import StdlibDataset, docstrings, family, find_sources
from distillkit.errors import UserError


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Stand in a small installation for the real one, so that the tests know what is in it."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    return write


def many(count=200):
    return {f"m{i}/{part}.py": f"x = {i}  # {part}\n" for i in range(count) for part in ("__init__", "a", "b")}


def module_splits(rows):
    """Read the module's number back from each row of `many`."""
    return {name: {text.split()[2] for text in split["text"]} for name, split in rows.splits.items()}


def test_the_real_installation_is_enough_to_train_on():
    rows = StdlibDataset().load()
    size = {name: sum(map(len, split["text"])) for name, split in rows.splits.items()}
    assert size["train"] > 3_000_000
    assert size["validation"] > 30_000
    assert size["test"] > 30_000
    assert rows.splits["train"].column_names == ["text"]
    assert any("class JSONDecoder" in text for split in rows.splits.values() for text in split["text"])
    assert not any("turtle graphics" in text for split in rows.splits.values() for text in split["text"])


def test_a_module_is_in_one_split_only(installation):
    installation(many())
    found = module_splits(StdlibDataset(validation=0.2, test=0.2).load())
    assert sum(len(modules) for modules in found.values()) == 200
    assert len(set().union(*found.values())) == 200
    assert all(20 < len(found[name]) < 65 for name in ("validation", "test"))  # 40 of 200 expected


def test_the_split_of_a_module_depends_on_nothing_else(installation):
    installation(many(60))
    before = module_splits(StdlibDataset(validation=0.3, test=0.2).load())
    installation(many(100))
    after = module_splits(StdlibDataset(validation=0.3, test=0.2).load())
    assert all(before[name] <= after[name] for name in before)


def test_same_seed_same_rows_other_seed_other_rows(installation):
    installation(many())
    first, again, other = (StdlibDataset(seed=seed).load() for seed in (1, 1, 2))
    assert all(first.splits[name]["text"][:] == again.splits[name]["text"][:] for name in first.splits)
    assert module_splits(first) != module_splits(other)


def test_limit_keeps_rows_of_the_same_splits(installation):
    installation(many())
    rows, few = (StdlibDataset(limit=limit).load() for limit in (None, 3))
    for name, split in few.splits.items():
        assert len(split) == 3
        assert split["text"][:] == rows.splits[name]["text"][:3]


def test_a_share_of_zero_makes_no_split(installation):
    installation(many(10))
    rows = StdlibDataset(validation=0.0, test=0.0).load()
    assert list(rows.splits) == ["train"]
    assert len(rows.splits["train"]) == 30


def test_near_copies_share_a_split(installation):
    installation({f"{name}.py": "x = 1\n" for name in ("ntpath", "posixpath", "genericpath", "_pyio", "io", "_py_abc")})
    names = {path.stem: family(path) for path in find_sources(stdlib.Path(sysconfig.get_paths()["stdlib"]))}
    assert names["ntpath"] == names["posixpath"] == names["genericpath"]
    assert names["_pyio"] == names["io"]
    assert names["_py_abc"] == "abc"


def test_packages_tests_and_tables_are_left_out(installation):
    kept = ["json/decoder.py", "ast.py", "unittest/case.py"]
    out = [
        "site-packages/numpy/core.py",
        "test/test_ast.py",
        "ctypes/test/test_x.py",
        "encodings/cp437.py",
        "turtle.py",
    ]
    out += ["idlelib/run.py", "lib2to3/pytree.py", "_sysconfigdata__linux_.py", "sitecustomize.py", "json/notes.txt"]
    installation(dict.fromkeys(kept + out, "x = 1\n"))
    rows = StdlibDataset(validation=0.0, test=0.0).load()
    assert len(rows.splits["train"]) == len(kept)
    assert {rows.where("train", i) for i in range(3)} == {f"standard library, {name}" for name in kept}


def test_declared_encodings_and_line_ends_are_honoured(installation):
    installation({"a.py": b"# -*- coding: latin-1 -*-\r\nname = '\xe9'\r\n", "empty.py": "\n"})
    rows = StdlibDataset(validation=0.0, test=0.0).load()
    assert rows.splits["train"]["text"][:] == ["# -*- coding: latin-1 -*-\nname = 'é'\n"]


def test_docstrings_are_unindented_and_long_enough():
    long = "word " * 20
    source = (
        f'"""Short."""\nclass A:\n    """{long}.\n\n    More.\n    """\n    async def f(self):\n        """{long}!"""\n'
    )
    assert list(docstrings(source)) == [f"{long}.\n\nMore.", f"{long}!"]


def test_docstrings_are_rows(installation):
    long = "word " * 20
    installation({"a.py": f'"""{long}1"""\n\ndef f():\n    """{long}2"""\n', "b.py": "x = 1\n"})
    rows = StdlibDataset(kind="docstrings", validation=0.0, test=0.0).load()
    assert rows.splits["train"]["text"][:] == [f"{long}1", f"{long}2"]


def test_an_installation_without_sources_is_refused(installation):
    installation({"json/decoder.pyc": b"\x00"})
    with pytest.raises(UserError, match="carries no sources"):
        StdlibDataset().load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "docs"}, "did you mean 'docstrings'"),
        ({"validation": 1.0}, "dataset.validation"),
        ({"test": -0.1}, "dataset.test"),
        ({"validation": 0.5, "test": 0.5}, "nothing to train on"),
        ({"limit": 0}, "dataset.limit"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(UserError, match=message):
        StdlibDataset(**arguments)

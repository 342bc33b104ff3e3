"""Original and pseudo data in one training split."""

from __future__ import annotations

from collections import Counter

import pytest

from distillkit.data.files import FileDataset
from distillkit.data.mixed import MixedDataset
from distillkit.errors import UserError
from tests.tiny import write_jsonl


@pytest.fixture
def sources(tmp_path) -> dict[str, FileDataset]:
    real = write_jsonl(tmp_path / "real.jsonl", [{"text": f"r{row}", "label": row % 2} for row in range(10)])
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "v", "label": 1}])
    pseudo = write_jsonl(
        tmp_path / "pseudo.jsonl",
        [{"text": f"p{row}", "label": "1", "teacher_logits": [float(row), 0.5]} for row in range(4)],
    )
    columns = {"text": "text", "label": "label", "teacher_logits": "teacher_logits"}
    return {
        "real": FileDataset(train=str(real), validation=str(held), labels=["0", "1"]),
        "pseudo": FileDataset(train=str(pseudo), columns=columns),
    }


def test_everything_once_without_weights(sources):
    rows = MixedDataset({name: {"dataset": source} for name, source in sources.items()}).load()
    train = rows.splits["train"]
    assert train["text"][:] == [f"r{i}" for i in range(10)] + [f"p{i}" for i in range(4)]
    assert train["teacher_logits"][:] == [None] * 10 + [[float(i), 0.5] for i in range(4)]
    assert set(train["label"]) == {"0", "1"}
    assert rows.labels == ["0", "1"]
    assert rows.splits["validation"]["text"][:] == ["v"]
    assert "real" in rows.name or "+" in rows.name


def test_weights_are_shares_of_the_first_source(sources):
    mixed = MixedDataset(
        {"real": {"dataset": sources["real"], "weight": 0.5}, "pseudo": {"dataset": sources["pseudo"], "weight": 1.0}}
    )
    texts = mixed.load().splits["train"]["text"][:]
    real, pseudo = (Counter(text for text in texts if text[0] == kind) for kind in "rp")
    assert (real.total(), pseudo.total()) == (5, 10)
    assert set(real.values()) == {1}
    assert set(pseudo.values()) == {2, 3}
    assert mixed.load().splits["train"]["text"][:] == texts


def test_a_row_is_found_in_its_own_file(sources, tmp_path):
    rows = MixedDataset({name: {"dataset": source, "weight": 1.0} for name, source in sources.items()}).load()
    for index, text in enumerate(rows.splits["train"]["text"]):
        name = "real" if text[0] == "r" else "pseudo"
        assert rows.where("train", index) == f"{tmp_path / name}.jsonl:{int(text[1:]) + 1}"
    assert rows.where("validation", 0) == f"{tmp_path / 'held.jsonl'}:1"


def test_columns_that_do_not_fit_together(sources, tmp_path):
    path = write_jsonl(tmp_path / "odd.jsonl", [{"text": "x", "label": 1, "teacher_logits": "high"}])
    odd = FileDataset(train=str(path), columns={"text": "text", "teacher_logits": "teacher_logits"})
    with pytest.raises(UserError, match="do not fit together"):
        MixedDataset({"a": {"dataset": sources["pseudo"]}, "b": {"dataset": odd}}).load()


@pytest.mark.parametrize("part", [{}, {"dataset": None}, {"dataset": 1, "weight": 0}, {"dataset": 1, "wight": 1}])
def test_bad_sources_are_refused(part):
    with pytest.raises(UserError, match=r"dataset\.sources\.a"):
        MixedDataset({"a": part})
    with pytest.raises(UserError, match=r"dataset\.sources"):
        MixedDataset({})

"""What is read from lm-eval's results, by hand; and, where the package is installed, a task of one's own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from distillkit.commands.harness import check_harness
from distillkit.errors import UserError
from distillkit.evaluation import harness
from distillkit.evaluation.harness import collect, judge
from distillkit.evaluation.resampling import resample
from distillkit.reporting.files import read_report
from distillkit.schema import EvaluateSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests.terminal import distillkit
from tests.tiny import language_model, save, write_jsonl

FOUND = {
    "results": {
        "easy": {"alias": "easy", "acc,none": 0.75, "acc_stderr,none": 0.1, "acc_norm,none": 0.5, "sample_len": 4},
        "sums": {"exact_match,strict": 0.25, "exact_match_stderr,strict": "N/A", "exact_match,loose": 0.5},
        "text": {"word_perplexity,none": 20.0, "word_perplexity_stderr,none": float("nan")},
    },
    "higher_is_better": {
        "easy": {"acc": True, "acc_norm": True},
        "sums": {"exact_match": True},
        "text": {"word_perplexity": False},
    },
    "samples": {
        "easy": [{"acc": a, "acc_norm": n, "filter": "none"} for a, n in ((1, 1), (1, 0), (1, 1), (0, 0))],
        "sums": [
            {"exact_match": v, "filter": f} for f, vs in (("strict", (1, 0, 0, 0)), ("loose", (1, 1, 0, 0))) for v in vs
        ],
        "text": [{"word_perplexity": (3.0, 5)}],
    },
}


def test_scores_are_read_by_task_and_metric():
    found = collect(FOUND, ["easy", "sums", "text"])
    assert found.values == {
        "mean_acc": pytest.approx((0.5 + 0.25) / 2),
        "easy:acc": 0.75,
        "easy:acc_norm": 0.5,
        "sums:exact_match": 0.25,
        "text:word_perplexity": 20.0,
    }
    assert found.deciding == ["easy:acc_norm", "sums:exact_match"]
    assert (found.quality, found.higher_is_better) == ("mean_acc", True)
    assert found.intervals == {"easy:acc": [pytest.approx(0.75 - 0.196), pytest.approx(0.75 + 0.196)]}
    assert found.documents["score"] == ["easy:acc"] * 4 + ["easy:acc_norm"] * 4 + ["sums:exact_match"] * 4
    assert found.documents["value"] == [1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0]


def test_perplexity_alone_decides_by_itself():
    found = collect(FOUND, ["text"])
    assert (found.quality, found.higher_is_better) == ("text:word_perplexity", False)
    assert found.documents["value"] == []


def test_documents_are_resampled_like_examples():
    found = collect(FOUND, ["easy", "sums"])
    means = judge(found.deciding, found.quality)
    assert means(found.documents)["mean_acc"] == pytest.approx(found.values["mean_acc"])
    drawn = resample({"a": found.documents, "b": found.documents}, means, ("score", "value"), 200, 60, 0)
    low, high = drawn.interval("a", "mean_acc")
    assert low < found.values["mean_acc"] < high
    assert drawn.difference("a", "b", "mean_acc").p == 1


def test_what_is_missing_is_said_in_good_time(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"evaluate.tasks: .*pip install 'distillkit\[lm-eval\]'"):
        check_harness(EvaluateSettings(tasks=["arc_easy"]), CausalLM())
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="task: lm-eval asks causal language models"):
        check_harness(EvaluateSettings(tasks=["arc_easy"]), SequenceClassification())
    with pytest.raises(UserError, match=r"evaluate\.tasks_folder: no such folder"):
        check_harness(EvaluateSettings(tasks=["arc_easy"], tasks_folder="nowhere"), CausalLM())


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the lm-eval extra")
def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(language_model(), tmp_path / "one")
    save(language_model(seed=1), tmp_path / "two")
    lines = [{"q": "what a", "choices": ["joy", "pain"], "gold": n % 2} for n in range(6)]
    write_jsonl(tmp_path / "tasks/own.jsonl", lines)
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks/own.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks/own.yaml").write_text(json.dumps(task), encoding="utf-8")
    models = ["+evaluate.models.one=one", "+evaluate.models.two=two", "task.max_length=32"]
    asked = ["evaluate=lm_eval", "evaluate.tasks=[own]", "evaluate.tasks_folder=tasks", "output_dir=out"]
    result = distillkit("eval", *models, *asked)
    assert result.code == 0, result.err
    report = read_report(tmp_path / "out")["eval"]
    assert report["models"]["one"]["metrics"]["own:acc"] == 0.5
    assert report["rows"] == 6
    assert distillkit("eval", *models, *asked[:1], "evaluate.tasks=[arc_eezy]").code == 2

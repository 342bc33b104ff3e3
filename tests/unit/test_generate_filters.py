"""Generated text through all filters at once: a teacher and a judge behind servers, counts in every report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillkit.commands import generate_pseudo
from distillkit.errors import UserError
from tests.pseudo import FILES, config, read
from tests.server import FakeServer, Handler
from tests.tiny import write_jsonl

PROMPTS = [f"What is {a} plus {a}?" for a in range(12)]
FILTERS = "distillkit.generation.filters"
SERVER = "distillkit.generation.backends.server.Server"


def calculate(handler: Handler, body: dict) -> None:
    """The teacher: right but for 3, cut off at 5, silent at 7, and in circles at 9."""
    number = int(body["messages"][-1]["content"].split()[2])
    finish = "length" if number == 5 else "stop"
    texts = {3: "#### 7", 7: " ", 9: "It is eighteen. " * 20 + "#### 18"}
    text = texts.get(number, f"Twice {number} is\n#### {2 * number}")
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 5, "completion_tokens": 5}
    handler.reply(200, {"choices": [choice], "usage": usage})


def grade(handler: Handler, body: dict) -> None:
    """The judge: thinks little of what is about 11."""
    score = 2 if "What is 11 plus" in body["messages"][-1]["content"] else 9
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Score: {score}"}}
    handler.reply(200, {"choices": [choice]})


def server(behaviour) -> FakeServer:
    made = FakeServer()
    made.always = behaviour
    return made


@pytest.fixture
def run(tmp_path):
    teacher, judge = server(calculate), server(grade)
    rows = [{"prompt": text, "completion": f"#### {2 * index}"} for index, text in enumerate(PROMPTS)]
    files = {
        "train": str(write_jsonl(tmp_path / "train.jsonl", rows)),
        "test": str(write_jsonl(tmp_path / "test.jsonl", [{"prompt": PROMPTS[1], "completion": "#### 2"}])),
    }
    made = config(tmp_path, "out")
    made.task = {"_target_": "distillkit.tasks.causal_lm.CausalLM", "max_length": 64}
    columns = {"prompt": "prompt", "completion": "completion"}
    made.dataset = {"_target_": FILES, "columns": columns, "on_leak": "ignore", **files}
    score = {"_target_": f"{FILTERS}.judge.Judge", "backend": {"_target_": SERVER, "model": "j", "url": judge.url}}
    check = {"_target_": f"{FILTERS}.verifiers.ExactAnswer"}
    made.generate = {
        "_target_": "distillkit.generation.text.TeacherText",
        "backend": {"_target_": SERVER, "model": "t", "url": teacher.url},
        "shard_rows": 5,
        "filters": {
            "finished": {"_target_": f"{FILTERS}.finished.Finished"},
            "empty": {"_target_": f"{FILTERS}.empty.NotEmpty"},
            "repetition": {"_target_": f"{FILTERS}.repetition.Repetition"},
            "verified": {"_target_": f"{FILTERS}.verifiers.Verified", "check": check},
            "evaluation": {"_target_": f"{FILTERS}.evaluation_overlap.EvaluationOverlap"},
            "judge": {"_target_": f"{FILTERS}.at_least.AtLeast", "score": score, "minimum": 7.0},
        },
    }
    yield made, teacher, judge, tmp_path / "out"
    for one in (teacher, judge):
        one.shutdown()
        one.server_close()


def test_every_filter_counts_what_it_rejects(run):
    made, _, judge, folder = run
    report = generate_pseudo.main(made)
    assert [row["prompt"] for row in read(folder / "pseudo")] == [PROMPTS[i] for i in (0, 2, 4, 6, 8, 10)]
    assert report["generated"] == 12
    assert report["rows"] == 6
    assert report["rejected"] == dict.fromkeys(made.generate["filters"], 1)
    assert len(judge.asked) == report["judges"]["judge"]["requests"] == 7
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"]["prompt"] for line in lines] == [PROMPTS[i] for i in (5, 7, 9, 3, 1, 11)]
    markdown = (folder / "report.md").read_text()
    assert "| verified | 9 | 1 | 11.1 % | wrong |" in markdown
    html = (folder / "report.html").read_text()
    assert '<section id="filters">' in html
    assert "2, not at least 7" in html
    saved = json.loads((folder / "report.json").read_text())["generate-pseudo"]
    assert saved["rejects"]["finished"][0]["reason"] == "cut off (length)"


def test_other_filters_cost_no_new_answers_and_no_new_opinions(run):
    made, teacher, judge, folder = run
    generate_pseudo.main(made)
    first = {path.name: path.read_bytes() for path in (folder / "pseudo").glob("*.parquet")}
    asked = len(teacher.asked), len(judge.asked)
    filters = dict(made.generate["filters"])
    made.generate["filters"] = filters | {"verified": None, "judge": filters["judge"] | {"minimum": 2.0}}
    assert generate_pseudo.main(made)["rows"] == 8
    assert (len(teacher.asked), len(judge.asked)) == (asked[0], asked[1] + 1)  # about the answer that is not verified
    made.generate["filters"] = filters
    assert generate_pseudo.main(made)["rows"] == 6
    assert {path.name: path.read_bytes() for path in (folder / "pseudo").glob("*.parquet")} == first


def test_a_filter_that_rejects_everything_ends_the_run_in_one_line(run):
    made, *_, folder = run
    length = {"_target_": f"{FILTERS}.length.Length", "min_words": 1000}
    made.generate["filters"] = {"long": length}
    line = r"^generate\.filters\.long: no row is left: 12 of 12 were rejected by it; widen its limits"
    with pytest.raises(UserError, match=line):
        generate_pseudo.main(made)
    assert not (folder / "pseudo").exists()
    made.generate["filters"] = {}
    assert generate_pseudo.main(made)["rows"] == 12


def test_what_a_filter_needs_and_the_rows_lack_is_refused(run):
    made, *_ = run
    score = {"_target_": f"{FILTERS}.scores.LogProbability"}
    made.generate["filters"] = {"sure": {"_target_": f"{FILTERS}.at_least.AtLeast", "score": score, "minimum": -1.0}}
    line = (
        r"^generate\.filters\.sure: the answers came without log-probabilities; .* a server gives them with log_probs"
    )
    with pytest.raises(UserError, match=line):
        generate_pseudo.main(made)


def test_what_the_dataset_lacks_is_refused_before_anyone_is_asked(run):
    made, teacher, *_ = run
    check = {"_target_": f"{FILTERS}.verifiers.ExactAnswer", "column": "label"}
    nodes = {
        "right": ({"_target_": f"{FILTERS}.verifiers.Verified", "check": check}, "column: the dataset has no column"),
        "apart": (
            {"_target_": f"{FILTERS}.evaluation_overlap.EvaluationOverlap", "splits": ["dev"]},
            "there is no dev",
        ),
    }
    for name, (node, message) in nodes.items():
        made.generate["filters"] = {name: node}
        with pytest.raises(UserError, match=rf"^generate\.filters\.{name}: {message}"):
            generate_pseudo.main(made)
    for scorer in ("at_least.AtLeast", "best_of.BestOf"):
        limit = {"minimum": 1.0} if scorer.endswith("AtLeast") else {}
        made.generate["filters"] = {"right": {"_target_": f"{FILTERS}.{scorer}", "score": check, **limit}}
        with pytest.raises(UserError, match=r"^generate\.filters\.right: column: the dataset has no column"):
            generate_pseudo.main(made)
    assert teacher.asked == []


def test_the_files_of_one_run_are_those_of_another(run, tmp_path: Path):
    made, *_, folder = run
    generate_pseudo.main(made)
    made.output_dir = str(tmp_path / "again")
    made.generate["shard_rows"] = 3
    generate_pseudo.main(made)
    for path in (folder / "pseudo").glob("*.parquet"):
        assert (tmp_path / "again/pseudo" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "again/rejected.jsonl").read_bytes() == (folder / "rejected.jsonl").read_bytes()

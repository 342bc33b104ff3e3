"""A search with Optuna, really run: its trials, its report, and that a killed one goes on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from distillkit.commands import train
from distillkit.errors import UserError
from distillkit.losses.objective import Objective
from distillkit.training import loop
from distillkit.tuning.study import Search
from tests.terminal import Outcome, distillkit
from tests.tiny import classifier, data_files, save

SHORT = [
    "train.max_steps=3",
    "train.batch_size=8",
    "train.evaluate_every=3",
    "train.checkpoint_every=1",
    "task.max_length=32",
]
DATA = ["dataset.train=data/train.jsonl", "dataset.validation=data/validation.jsonl"]
BASE = ["train", *DATA, *SHORT, "student.path=student", "teacher=live", "teacher.path=teacher", "loss=kd"]
RANGES = ["loss.temperature=interval(1,8)", "train.learning_rate=tag(log,interval(1e-4,1e-1))"]
SHUFFLE = "train.group_by_length=true,false"
SEARCH = [*BASE, "-m", "hydra/sweeper=optuna", "hydra.sweeper.trials=4", "hydra.sweeper.startup=2", *RANGES]


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kit")
    save(classifier(), folder / "teacher")
    save(classifier(layers=1, seed=1), folder / "student")
    data_files(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        yield folder


def sweep(name: str) -> dict[str, Any]:
    return json.loads(Path(f"outputs/{name}/report.json").read_text(encoding="utf-8"))["sweep"]


def essence(name: str) -> list[tuple[Any, ...]]:
    return [(t["number"], t["state"], t["values"], t["value"], t["metrics"]) for t in sweep(name)["trials"]]


@pytest.fixture(scope="module")
def whole(kit: Path) -> Outcome:
    return distillkit(*SEARCH, "name=whole")


def test_trials_are_trainings_with_folders_of_their_own(whole: Outcome) -> None:
    assert (whole.code, whole.err) == (0, "")
    found = sweep("whole")
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2, 3]
    assert found["metric"] == "accuracy"
    for trial in found["trials"]:
        folder = Path(f"outputs/whole/{trial['number']}")
        assert (folder / "model/model.safetensors").is_file()
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))["train"]
        assert trial["value"] == report["metrics"]["accuracy"]
        assert report["learning_rate"] == float(trial["values"]["train.learning_rate"])
        assert 1 <= float(trial["values"]["loss.temperature"]) <= 8
        assert 1e-4 <= report["learning_rate"] <= 1e-1
    best = max(found["trials"], key=lambda trial: (trial["value"], -trial["number"]))
    assert found["best"] == best["number"]
    assert f"best: trial {best['number']}, accuracy" in whole.out
    values = [trial["values"]["loss.temperature"] for trial in found["trials"]]
    assert len(set(values)) == 4


def test_the_report_has_the_table_and_the_picture(whole: Outcome) -> None:
    text = Path("outputs/whole/report.md").read_text(encoding="utf-8")
    assert "| trial | loss.temperature | train.learning_rate | accuracy |" in text
    assert "it was" not in text
    page = Path("outputs/whole/report.html").read_text(encoding="utf-8")
    assert page.count("<title>trial ") == 4
    assert "accuracy by loss.temperature, train.learning_rate" in page
    assert "looks better there than it is" in page


def test_the_first_trial_is_the_recipe_as_it_is(whole: Outcome) -> None:
    found = sweep("whole")  # 5e-5, the usual rate, is out of range: that one is drawn
    assert found["recipe"] is None
    assert found["trials"][0]["values"]["loss.temperature"] == "2"
    search = [*BASE, "-m", "hydra/sweeper=optuna", "hydra.sweeper.trials=2", "name=own"]
    result = distillkit(*search, "loss.temperature=interval(1,8)", "train.schedule=cosine,linear", SHUFFLE)
    assert (result.code, result.err) == (0, "")
    assert sweep("own")["recipe"] == 0
    own = {"loss.temperature": "2", "train.schedule": "linear", "train.group_by_length": "True"}
    assert sweep("own")["trials"][0]["values"] == own


def test_the_same_command_is_finished_and_more_trials_go_on(whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    before = essence("whole")
    started = []
    monkeypatch.setattr(train, "fit", lambda run: started.append(run.folder) or loop.fit(run))
    assert distillkit(*SEARCH, "name=whole").code == 0
    assert (started, essence("whole")) == ([], before)
    assert distillkit(*SEARCH, "name=whole", "hydra.sweeper.trials=5").code == 0
    assert started == [Path("outputs/whole/4/checkpoints")]
    assert essence("whole")[:4] == before


def test_a_killed_search_goes_on_as_if_nothing_had_happened(whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, seen = Objective.forward, []

    def stop(self: Objective, *arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 9:  # in the last of the third trial's three steps
            raise KeyboardInterrupt
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", stop)
        assert distillkit(*SEARCH, "name=killed").code == 130
    assert [trial["number"] for trial in sweep("killed")["trials"]] == [0, 1]
    again = distillkit(*SEARCH, "name=killed")
    assert again.code == 0
    assert "resuming from outputs/killed/2/checkpoints/step-000002" in again.out
    assert again.out.count("[4/4]") == 1
    assert "[2/4]" not in again.out
    assert essence("killed") == essence("whole")[:4]


def test_another_search_is_refused_and_overwritten(whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distillkit(*SEARCH, "name=other", "hydra.sweeper.trials=1").code == 0
    result = distillkit(*SEARCH, "name=other", "hydra.sweeper.trials=1", "train.max_steps=2")
    assert result.code == 2
    assert "outputs/other holds another search (train.max_steps: 3 -> 2)" in result.err
    result = distillkit(*SEARCH, "name=other", "hydra.sweeper.trials=1", "train.max_steps=2", "overwrite=true")
    assert (result.code, result.err) == (0, "")
    assert json.loads(Path("outputs/other/0/report.json").read_text())["train"]["steps"] == 2
    started = []
    monkeypatch.setattr(train, "fit", lambda run: started.append(run.folder) or loop.fit(run))
    more = ["hydra.sweeper.trials=2", "train.max_steps=2", "overwrite=true"]
    assert distillkit(*SEARCH, "name=other", *more).code == 0  # the same search: nothing is thrown away
    assert started == [Path("outputs/other/1/checkpoints")]


def test_a_trial_that_fails_is_a_bad_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Any) -> Any:
        if run.folder.parent.name == "1":
            raise UserError("loss or gradient is not finite for 5 steps in a row")
        return loop.fit(run)

    monkeypatch.setattr(train, "fit", fail)
    result = distillkit(*SEARCH, "name=failing", "hydra.sweeper.trials=3")
    assert (result.code, result.err) == (0, "")
    assert [trial["state"] for trial in sweep("failing")["trials"]] == ["complete", "failed", "complete"]
    text = Path("outputs/failing/report.md").read_text(encoding="utf-8")
    assert text.count("loss or gradient is not finite") == 1


def test_a_value_that_is_no_number_is_a_bad_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Search.found
    lost = {"metrics": {"accuracy": None}}
    monkeypatch.setattr(Search, "found", lambda self, trial: lost if trial.number == 0 else found(self, trial))
    assert distillkit(*SEARCH, "name=nan", "hydra.sweeper.trials=2").code == 0
    assert [trial["problem"] for trial in sweep("nan")["trials"]] == ["the training measured no finite accuracy", None]


def test_a_trial_that_was_drawn_in_part_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = optuna.Study.ask

    def stop(self: optuna.Study, space: Any) -> Any:
        ask(self).suggest_float("loss.temperature", 1, 8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", stop)
        assert distillkit(*SEARCH, "name=part").code == 130
    assert ask is optuna.Study.ask
    result = distillkit(*SEARCH, "name=part", "hydra.sweeper.trials=2")
    assert (result.code, result.err) == (0, "")
    assert [trial["state"] for trial in sweep("part")["trials"]] == ["failed", "complete"]


def test_a_search_in_which_all_fails_ends_with_the_reason() -> None:
    result = distillkit(*SEARCH, "name=lost", "student.path=nowhere", "hydra.sweeper.trials=9")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "nowhere" in result.err
    assert len(sweep("lost")["trials"]) <= 3
    assert distillkit(*SEARCH, "name=lost", "hydra.sweeper.trials=1").code == 0  # nothing there to be lost


def test_equal_trials_are_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(train, "fit", lambda run: started.append(run.folder) or loop.fit(run))
    search = [*BASE, "-m", "hydra/sweeper=optuna", "hydra.sweeper.trials=5", "hydra.sweeper.sampler=random"]
    assert distillkit(*search, "name=twins", "loss.temperature=1,2").code == 0
    assert len(started) == 2
    trials = sweep("twins")["trials"]
    assert len(trials) == 5
    assert sum(trial["same_as"] is not None for trial in trials) == 3
    assert len({(trial["values"]["loss.temperature"], trial["value"]) for trial in trials}) == 2


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([*SEARCH, "hydra.sweeper.metric=macro_f2"], "did you mean 'macro_f1'?"),
        ([*SEARCH, "hydra.sweeper.sampler=grid"], "unknown sampler 'grid'"),
        ([*SEARCH, "hydra.sweeper.trials=0"], "hydra.sweeper.trials: must be at least 1, got 0"),
        ([*SEARCH, "train.nothing=interval(1,2)"], "train.nothing: unknown key"),
        ([*SEARCH, "loss=kd,kdd"], "did you mean 'kd'?"),
        ([*BASE, "-m", "hydra/sweeper=optuna"], "there is nothing to search"),
        (["eval", *DATA, "-m", "hydra/sweeper=optuna", *RANGES], "only trainings are searched"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(arguments: list[str], what: str) -> None:
    result = distillkit(*arguments, "name=mistake")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert what in result.err
    assert not Path("outputs/mistake").exists()


def test_a_search_in_a_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "launch.num_processes=N" in distillkit(*SEARCH, "name=mistake").err


def test_a_search_without_validation_says_so() -> None:
    result = distillkit(*SEARCH, "dataset.validation=null", "name=blind")
    assert result.code == 2
    assert "a search needs a validation split" in result.err


def test_a_grid_of_trainings_has_a_table_too() -> None:
    grid = [*BASE, "-m", "loss.temperature=1,4", "train.learning_rate=0.001,0.05", "name=grid"]
    assert distillkit(*grid).code == 0
    found = sweep("grid")
    assert found["scales"] == {"loss.temperature": "linear", "train.learning_rate": "log"}
    assert [trial["values"]["loss.temperature"] for trial in found["trials"]] == ["1", "1", "4", "4"]
    assert Path("outputs/grid/report.html").read_text(encoding="utf-8").count("<title>trial ") == 4

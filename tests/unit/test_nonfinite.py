"""Steps that are not finite change nothing; too many in a row end the run."""

from __future__ import annotations

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.task import CrossEntropy
from distillkit.training.loop import fit
from tests.tiny import classifier, encoded, events, training


class Broken(CrossEntropy):
    """Cross-entropy that is infinite (or has a gradient that is) in some calls."""

    def __init__(self, calls: set[int], how: str) -> None:
        super().__init__()
        self.calls, self.how, self.call = calls, how, 0

    def per_item(self, student, teacher, labels):
        self.call += 1
        loss = super().per_item(student, teacher, labels)
        if self.call not in self.calls:
            return loss
        return loss + torch.inf if self.how == "loss" else loss + (student - student.detach()).abs().sqrt().sum(-1)

    derive = None  # so that autograd is used


def run(folder, calls: set[int], how: str = "loss", **settings):
    data = encoded(folder / "data", classifier().task)
    made = training(folder, classifier(layers=1), classifier(seed=7), data, **{"max_steps": 6, **settings})
    made.evaluate = None
    made.objective.losses[0] = Broken(calls, how)
    return made


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_written_down(tmp_path, how):
    made = run(tmp_path, {1, 2, 3}, how, max_steps=3)
    before = {name: tensor.clone() for name, tensor in made.student.model.state_dict().items()}
    result = fit(made)
    after = made.student.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (result.steps, result.skipped_steps) == (3, 3)
    skipped = [event for event in events(tmp_path) if event["event"] == "skipped"]
    assert [event["step"] for event in skipped] == [1, 2, 3]
    rows = [row for event in skipped for row in event["rows"]]
    assert len(set(rows)) == 24
    assert set(rows) <= set(range(40))


def test_the_log_counts_the_other_steps_only(tmp_path):
    fit(run(tmp_path, {2}, log_every=3))
    logged = [event for event in events(tmp_path) if event["event"] == "train"]
    assert [event["items"] for event in logged] == [16, 24]
    assert all(torch.tensor(event["loss"]).isfinite() for event in logged)


def test_too_many_in_a_row_end_the_run(tmp_path):
    with pytest.raises(UserError, match=r"not finite for 2 steps in a row; the last is step 4, of rows \d+, .*lower"):
        fit(run(tmp_path, {1, 3, 4, 5}, max_nonfinite_steps=2, max_steps=9, checkpoint_every=2))


def test_some_apart_do_not(tmp_path):
    assert fit(run(tmp_path, {1, 3, 5}, max_nonfinite_steps=2)).skipped_steps == 3

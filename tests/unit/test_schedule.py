"""Weights and temperatures that change over a run."""

from __future__ import annotations

import pytest
import torch

from distillkit.errors import UserError
from distillkit.losses.divergences import ForwardKL
from distillkit.losses.objective import Objective
from distillkit.losses.schedule import Cosine, Linear, Step
from distillkit.losses.task import CrossEntropy
from distillkit.training.loop import fit
from tests.tiny import classifier, encoded, events, training


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(4.0, 1.0), {0.0: 4.0, 0.5: 2.5, 1.0: 1.0}),
        (Linear(1.0, 0.0, begin=0.2, until=0.6), {0.0: 1.0, 0.2: 1.0, 0.4: 0.5, 0.6: 0.0, 0.9: 0.0}),
        (Cosine(0.0, 1.0), {0.0: 0.0, 1 / 3: 0.25, 0.5: 0.5, 1.0: 1.0}),
        (Step([[0, 1.0], [0.5, 0.0]]), {0.0: 1.0, 0.49: 1.0, 0.5: 0.0, 1.0: 0.0}),
    ],
)
def test_values_over_a_run(schedule, expected):
    for progress, value in expected.items():
        assert schedule.at(progress) == pytest.approx(value)
        assert min(schedule.values()) <= schedule.at(progress) <= max(schedule.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(1, 0, begin=0.5, until=0.5),
        lambda: Cosine(1, 0, until=1.5),
        lambda: Step([]),
        lambda: Step([[0.1, 1.0]]),
        lambda: Step([[0, 1.0], [0, 2.0]]),
        lambda: Step([[0]]),
        lambda: ForwardKL(Linear(1.0, 0.0)),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(UserError, match=r"begin|steps|temperature"):
        make()


def test_a_loss_follows_its_temperature():
    student, teacher = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    loss, labels = ForwardKL(Linear(4.0, 2.0)), torch.zeros(3)
    for progress, temperature in ((0.0, 4.0), (0.5, 3.0), (1.0, 2.0)):
        loss.advance(progress)
        expected = ForwardKL(temperature).per_item(student, teacher, labels)
        torch.testing.assert_close(loss.per_item(student, teacher, labels), expected)


def test_a_resumed_run_goes_on_with_its_schedules(tmp_path):
    """What a step weighs depends on the step alone."""

    def run(folder, **settings):
        task = classifier().task
        made = training(folder, classifier(layers=1, seed=1), classifier(seed=0), encoded(tmp_path, task), **settings)
        made.objective = Objective(
            {
                "hard": {"weight": Step([[0, 0.0], [0.5, 1.0]]), "loss": CrossEntropy()},
                "kd": {"weight": Linear(1.0, 0.0), "loss": ForwardKL(Cosine(4.0, 1.0))},
            }
        )
        return made

    fit(run(tmp_path / "whole", max_steps=8, checkpoint_every=3, keep_best=False))
    whole = [event for event in events(tmp_path / "whole") if event["event"] == "train"]
    first = whole[0]
    assert first["loss"] == pytest.approx(first["terms"]["kd"])  # the hard labels weigh nothing at the start
    assert whole[4]["loss"] == pytest.approx(whole[4]["terms"]["hard"] + 0.5 * whole[4]["terms"]["kd"])
    resumed = run(tmp_path / "resumed", max_steps=8, keep_best=False)
    resumed.resume_from = tmp_path / "whole/checkpoints/step-000006"
    fit(resumed)
    again = [event for event in events(tmp_path / "resumed") if event["event"] == "train"]
    assert again == whole[6:]

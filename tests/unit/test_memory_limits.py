"""Where memory runs out: the micro-batch that fits is found, with the same result, or one line says what takes it."""

from __future__ import annotations

import pytest
import torch

from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.training.loop import fit
from tests.tiny import classifier, encoded, events, training


class Tight(LiveModel):
    """A model that runs out of memory on more rows than `room`, and notes how many it was given."""

    def __init__(self, like: LiveModel, room: int) -> None:
        super().__init__(like.model, like.tokenizer, like.task)
        self.room, self.given = room, []

    def forward(self, batch, *arguments):
        rows = len(batch.counted)
        if self.training:
            self.given.append(rows)
            if rows > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(batch, *arguments)


def run(folder, student, **settings):
    data = encoded(folder / "data", student.task)
    return training(folder, student, classifier(seed=7), data, max_steps=3, batch_size=8, **settings)


def test_the_micro_batch_is_halved_until_it_fits_and_the_result_is_the_same(tmp_path):
    whole = classifier(dropout=0.3)
    fit(run(tmp_path / "whole", whole, micro_batch_size=2))
    tight = Tight(classifier(dropout=0.3), room=3)
    fit(run(tmp_path / "tight", tight, auto_batch=True))
    assert tight.given[:3] == [8, 4, 2]
    assert set(tight.given[3:]) == {2}
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tight.model.state_dict().items())
    assert events(tmp_path / "tight") == events(tmp_path / "whole")


def test_what_fits_is_left_alone(tmp_path):
    tight = Tight(classifier(), room=8)
    fit(run(tmp_path, tight, auto_batch=True))
    assert set(tight.given) == {8}


def test_without_it_one_line_says_what_takes_the_memory(tmp_path):
    with pytest.raises(UserError) as caught:
        fit(run(tmp_path, Tight(classifier(), room=3)))
    text = str(caught.value)
    assert text.startswith("train: out of memory on 8 rows of ")
    assert "train.micro_batch_size=4 or train.auto_batch=true (the result stays the same)" in text
    assert "student 0, gradients 0, optimiser 0, teacher 0 MiB; the process took" in text


def test_one_row_that_does_not_fit_ends_the_run(tmp_path):
    with pytest.raises(UserError, match="out of memory on 1 rows"):
        fit(run(tmp_path, Tight(classifier(), room=0), auto_batch=True))


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    student = Tight(classifier(), room=8)
    monkeypatch.setattr(Tight, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        fit(run(tmp_path, student, auto_batch=True))

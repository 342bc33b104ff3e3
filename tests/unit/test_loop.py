"""The training loop: exact averages, repeatable runs, the best weights, and resuming."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from distillkit.data.batches import BatchPlan, planned_steps
from distillkit.data.encode import Encoded
from distillkit.losses.objective import Objective
from distillkit.losses.task import CrossEntropy
from distillkit.models.live import LiveModel
from distillkit.schema import LoraSettings, TrainSettings
from distillkit.signals import IGNORE
from distillkit.training import engines
from distillkit.training.checkpoint import newest_checkpoint
from distillkit.training.loop import fit
from tests.tiny import classifier, encoded, events, language_model, train, training

KINDS = {"classifier": classifier, "language model": language_model}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def data(kind, tmp_path) -> Encoded:
    rows = encoded(tmp_path / "data", kind(layers=1).task)
    assert len(set(rows.lengths.tolist())) > 5
    return rows


class Spy(torch.optim.SGD):
    """An optimiser that keeps the gradients of every step."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.named = dict(module.named_parameters())
        self.gradients: list[dict[str, torch.Tensor]] = []
        super().__init__([{"params": list(self.named.values()), "scale": 1.0}], lr=0.0)

    def step(self, closure=None):
        self.gradients.append({name: parameter.grad.clone() for name, parameter in self.named.items()})
        return super().step(closure)


@pytest.fixture
def spy(monkeypatch) -> list[Spy]:
    made: list[Spy] = []

    def make(module, settings, scales):
        made.append(Spy(module))
        return made[-1]

    monkeypatch.setattr(engines, "make_optimizer", make)
    return made


def gradients_of(spy, tmp_path, kind, data, **settings) -> dict[str, torch.Tensor]:
    train(tmp_path, kind(layers=1), kind(seed=7), data, max_steps=1, max_grad_norm=None, **settings)
    return spy[-1].gradients[0]


def relative_error(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == exact.keys()
    error = sum((ours[name] - exact[name]).double().square().sum() for name in exact)
    return (error / sum(exact[name].double().square().sum() for name in exact)).sqrt().item()


def test_the_gradient_of_a_step_does_not_depend_on_the_micro_batches(spy, tmp_path, kind, data):
    whole = gradients_of(spy, tmp_path, kind, data, group_by_length=False)
    assert all(gradient.abs().max() > 0 for name, gradient in whole.items() if "key.bias" not in name)
    for size in (1, 3, 4):
        parts = gradients_of(spy, tmp_path, kind, data, group_by_length=False, micro_batch_size=size)
        assert relative_error(parts, whole) < 1e-5
    losses = [event["loss"] for event in events(tmp_path) if event["event"] == "train"]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_the_gradient_is_that_of_the_mean_loss_in_plain_torch(spy, tmp_path, kind, data):
    """α · mean CE + (1 − α) · T² · mean KL over all items of the batch, from the models' own logits."""
    ours = gradients_of(spy, tmp_path, kind, data)
    student, teacher = kind(layers=1), kind(seed=7).eval()
    plan = BatchPlan(data.lengths, 8, 42, True)
    batch = data.batch(plan.rows(0))
    q, p = (model.model(**batch.inputs).logits[batch.counted].double() for model in (student, teacher))
    hard = -q.log_softmax(-1)[torch.arange(len(q)), batch.labels].mean()
    log_q, log_p = (q / 2).log_softmax(-1), (p.detach() / 2).log_softmax(-1)
    loss = 0.5 * hard + 0.5 * 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss.backward()
    exact = {f"student.{name}": parameter.grad for name, parameter in student.named_parameters()}
    assert relative_error(ours, exact) < 1e-5
    assert events(tmp_path)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_terms_are_averaged_over_their_own_items(spy, tmp_path):
    """Micro-batches in which no row has a label, or no row is taught, must not change the average."""
    data = encoded(tmp_path / "data", classifier().task)

    def collate(rows, whole=data.collate):
        batch = whole(rows)
        odd = batch.inputs["attention_mask"].sum(dim=1) % 2 == 1
        return replace(batch, labels=batch.labels.where(~odd, IGNORE), taught=batch.taught & odd)

    data = Encoded(data.rows, data.lengths, collate)
    whole = gradients_of(spy, tmp_path, classifier, data)
    assert relative_error(gradients_of(spy, tmp_path, classifier, data, micro_batch_size=1), whole) < 1e-5


def weights(live: LiveModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_the_same_seed_gives_the_same_run_to_the_last_bit(tmp_path, kind, data):
    runs = []
    for name in ("a", "b"):
        student = kind(layers=1)
        train(tmp_path / name, student, kind(seed=7), data, max_steps=7, micro_batch_size=3, evaluate_every=3)
        runs.append((events(tmp_path / name), weights(student)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    student = kind(layers=1)
    train(tmp_path / "c", student, kind(seed=7), data, max_steps=7, evaluate_every=3, seed=1)
    assert [event.get("loss") for event in events(tmp_path / "c")] != [event.get("loss") for event in runs[0][0]]


RESUMED = {
    "plain": {},
    "frozen": {"freeze": [0, "*.layer.1"]},
    "thawing": {"unfreeze": 0.75},  # at steps 0, 3, 6 and 8: the checkpoints lie between
    "rates": {"layer_decay": 0.7, "head_learning_rate": 0.03},
    "adapters": {"lora": LoraSettings(rank=2, dropout=0.3)},
    "all": {"lora": LoraSettings(rank=2), "unfreeze": 0.75, "freeze": 1, "layer_decay": 0.7, "patience": 9},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_ends_where_the_whole_one_ends(tmp_path, settings):
    data = encoded(tmp_path / "data", classifier().task)
    common = {"max_steps": 11, "evaluate_every": 2, "checkpoint_every": 3, "log_every": 2, "keep_checkpoints": 9}
    common |= settings
    whole = classifier(dropout=0.3)
    expected = train(tmp_path / "whole", whole, classifier(seed=7), data, **common)
    resumed = classifier(dropout=0.3)
    start = weights(resumed)
    run = training(tmp_path / "whole", resumed, classifier(seed=7), data, **common)
    lines = events(tmp_path / "whole")
    for step in (3, 9):
        run.resume_from = tmp_path / "whole" / "checkpoints" / f"step-{step:06d}"
        run.records.rewind(step)
        resumed.model.load_state_dict(start)  # what is frozen comes from there
        torch.manual_seed(step)  # the random state must come from the checkpoint
        result = fit(run)
        assert events(tmp_path / "whole") == lines
        assert same(weights(resumed), weights(whole))
        assert (result.best_step, result.best_value) == (expected.best_step, expected.best_value)


def test_the_best_evaluated_weights_are_kept(tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    qualities = iter([0.2, 0.9, 0.5, 0.9])
    seen = []

    def quality(model: LiveModel) -> dict[str, float]:
        assert not model.training
        seen.append(weights(model))
        return {"accuracy": next(qualities)}

    student = classifier(layers=1)
    run = training(tmp_path, student, classifier(seed=7), data, max_steps=4, evaluate_every=1)
    run.evaluate = quality
    result = fit(run)
    assert (result.best_step, result.best_value, result.best_metric, result.steps) == (2, 0.9, "accuracy", 4)
    assert same(weights(student), seen[1])
    assert not same(seen[1], seen[3])


def test_the_last_weights_are_kept_on_request_and_lower_losses_are_better(tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    qualities = iter([0.9, 0.2, 0.5])
    student = classifier(layers=1)
    run = training(tmp_path, student, classifier(seed=7), data, max_steps=3, evaluate_every=1, keep_best=False)
    seen = []
    run.best_metric = "loss"
    run.evaluate = lambda model: seen.append(weights(model)) or {"loss": next(qualities)}
    assert fit(run).best_step == 2
    assert same(weights(student), seen[2])


def test_training_learns(tmp_path, kind, data):
    student = kind(layers=1)
    train(tmp_path, student, kind(seed=7), data, max_steps=30, evaluate_every=30)
    losses = [event["loss"] for event in events(tmp_path) if event["event"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert losses[0] == pytest.approx(0.5 * math.log(2 if kind is classifier else 320), rel=0.2)


def test_gradients_are_clipped_and_their_norm_is_recorded(spy, tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    train(tmp_path, classifier(layers=1), classifier(seed=7), data, max_steps=1, max_grad_norm=1e-3)
    norm = sum(gradient.square().sum() for gradient in spy[-1].gradients[0].values()).sqrt().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert events(tmp_path)[0]["grad_norm"] > 1e-3


def test_weights_may_be_held_after_every_step(tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    student = classifier(layers=1)
    run = training(tmp_path, student, classifier(seed=7), data, max_steps=3, evaluate_every=1)
    run.after_step = lambda: student.model.classifier.weight.data.zero_()
    fit(run)
    assert (student.model.classifier.weight == 0).all()


def test_a_run_without_teacher_and_evaluation(tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    run = training(tmp_path, classifier(layers=1), classifier(), data, epochs=1.5, log_every=4)
    run.teacher, run.evaluate = None, None
    run.objective = Objective({"hard": {"weight": 2.0, "loss": CrossEntropy()}})
    result = fit(run)
    assert (result.steps, result.best_step) == (8, None)
    assert [event["step"] for event in events(tmp_path)] == [4, 8]
    assert [event["items"] for event in events(tmp_path)] == [32, 32]
    assert result.items == 64
    assert events(tmp_path)[0]["loss"] == pytest.approx(2 * events(tmp_path)[0]["terms"]["hard"])


def test_bfloat16_stays_close_to_float32(tmp_path, kind, data):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    losses = []
    for precision in ("no", "bf16"):
        run = training(tmp_path / precision, kind(layers=1), kind(seed=7), data, max_steps=4, evaluate_every=4)
        AcceleratorState._reset_state()
        run.accelerator = run.records.accelerator = Accelerator(cpu=True, mixed_precision=precision)
        fit(run)
        losses.append([event["loss"] for event in events(tmp_path / precision)])
        assert {parameter.dtype for parameter in run.student.parameters()} == {torch.float32}
    AcceleratorState._reset_state()
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]


def test_how_many_steps_are_planned():
    assert planned_steps(100, TrainSettings(batch_size=32, epochs=3)) == 12
    assert planned_steps(100, TrainSettings(batch_size=32, epochs=0.1)) == 1
    assert planned_steps(100, TrainSettings(batch_size=32, epochs=3, max_steps=5)) == 5


def test_no_checkpoints_on_request(tmp_path):
    data = encoded(tmp_path / "data", classifier().task)
    train(tmp_path, classifier(layers=1), classifier(), data, max_steps=3, checkpoint_every=None)
    assert newest_checkpoint(tmp_path / "checkpoints") == (None, [])

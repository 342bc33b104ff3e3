"""Training that feels the rounding, and the search for the layers that have to stay in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from distillkit.compression import auto
from distillkit.compression.auto import AutoInt8
from distillkit.compression.export import OnnxFloat, onnx_model
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.memory import enough_memory
from distillkit.compression.qat import QuantisationAware, straight_through
from distillkit.compression.smooth import smooth
from distillkit.compression.variant import Context, Corpus, Variant
from distillkit.errors import UserError
from distillkit.models.live import LiveModel
from distillkit.models.tokenizers import ByteLevelBPE
from distillkit.schema import TrainSettings
from distillkit.signals import Batch
from distillkit.tasks.sequence_classification import SequenceClassification

TEXTS = ["a first text", "and one more", "something else", "numbers 1 2 3"]


def bert() -> LiveModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(**sizes, vocab_size=258, pad_token_id=1, id2label={0: "bad", 1: "good"})
    return LiveModel(
        BertForSequenceClassification(config).eval(),
        ByteLevelBPE(258).train([]),
        SequenceClassification(max_length=32),
    )


def batch(live: LiveModel, texts: list[str], labels: list[str] | None = None) -> Batch:
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    rows = live.task.encode(columns, live.tokenizer, {"bad": 0, "good": 1})
    rows = {name: values for name, values in rows.items() if name != "truncated"}
    return live.task.collate(
        [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)], live.tokenizer
    )


def test_rounding_is_symmetric_per_row_and_its_gradient_is_straight_through():
    values = torch.tensor([[0.1, -1.27, 0.634], [0.0, 0.0, 0.0]], requires_grad=True)
    found = straight_through(values, 8)
    torch.testing.assert_close(found, torch.tensor([[0.1, -1.27, 0.63], [0.0, 0.0, 0.0]]))
    (found * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum().backward()
    assert values.grad.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_layers_compute_with_rounded_weights_while_training_and_not_after(activation_bits, tmp_path):
    live = bert()
    module = live.model.bert.encoder.layer[0].output.dense
    keys, inputs = list(live.model.state_dict()), torch.randn(3, 128)
    seen = {}

    def retrain(model, masks, settings):
        seen["rounded"] = module(inputs)
        seen["keys"] = list(live.model.state_dict())
        loss = model(batch(live, TEXTS)).logits.rows(0, 4).logsumexp(dim=-1).sum()
        loss.backward()
        seen["gradient"] = module.weight.grad.abs().sum()

    context = Context(batch(live, TEXTS), TrainSettings(), retrain, tmp_path)
    step = QuantisationAware(weight_bits=4, activation_bits=activation_bits)
    step.check(live)
    variant = step(Variant(live), context)
    weight = straight_through(module.weight, 4)
    given = inputs if activation_bits is None else straight_through(inputs, 8)
    torch.testing.assert_close(seen["rounded"], given @ weight.T + module.bias)
    torch.testing.assert_close(module(inputs), inputs @ module.weight.T + module.bias)
    assert seen["keys"] == keys
    assert seen["gradient"] > 0
    assert len(weight[0].unique()) <= 15
    assert variant.notes["trained_for"].startswith("w4a")


@pytest.mark.parametrize("arguments", [{"weight_bits": 1}, {"activation_bits": 9}, {"train": {"max_stps": 1}}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UserError):
        QuantisationAware(**arguments)


@dataclass
class Rows:
    live: LiveModel

    lengths = np.array([12, 12, 14, 13])

    def __len__(self) -> int:
        return 4

    def batch(self, indices) -> Batch:
        return batch(self.live, [TEXTS[i] for i in indices], [("bad", "good")[i % 2] for i in indices])


def test_auto_leaves_the_costliest_layers_in_float(tmp_path, monkeypatch):
    """Quality is made up: quantising layer 1 costs 0.3, layer 0 costs 0.01."""
    live, tried = bert(), []
    quantise = OnnxInt8.make

    def spy(step, source, context):
        tried.append(list(step.left))
        return quantise(step, source, context)

    def made_up(model, data, most):
        if "float" in model.folder.name:
            return 0.9
        return 0.9 - sum(cost for n, cost in ((0, 0.01), (1, 0.3)) if f"bert.encoder.layer.{n}" not in tried[-1])

    monkeypatch.setattr(OnnxInt8, "make", spy)
    monkeypatch.setattr(auto, "quality", made_up)
    corpus = Corpus(None, lambda split: Rows(live))
    context = Context(batch(live, TEXTS), TrainSettings(), None, tmp_path, corpus=corpus)
    variant = AutoInt8(max_quality_drop=0.05)(Variant(live), context)
    assert variant.notes["in_float"] == ["bert.encoder.layer.1"]
    assert variant.notes["quality_drop"] == pytest.approx(0.01)
    parts = {"bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense", "classifier"}
    assert parts < set(auto.groups_of(OnnxFloat()(Variant(live), context).model))
    assert tried[0] == []

    tried.clear()
    assert AutoInt8(max_quality_drop=0.4)(Variant(live), context).notes["in_float"] == []
    assert tried == [[], []]  # once to find out, once to keep
    monkeypatch.setattr(auto, "quality", lambda model, *_: 0.9 - ("int8" in model.folder.name))
    with pytest.raises(UserError, match=r"^max_quality_drop: no choice of layers keeps accuracy within 0"):
        AutoInt8(max_quality_drop=0)(Variant(live), context)


def test_real_quality_is_what_the_task_measures(tmp_path):
    live = bert()
    context = Context(batch(live, TEXTS), TrainSettings(), None, tmp_path)
    model = onnx_model(Variant(live), context)
    logits = live(batch(live, TEXTS)).logits.rows(0, 4)
    expected = float((logits.argmax(dim=-1) == torch.tensor([0, 1, 0, 1])).float().mean())
    assert auto.quality(model, Rows(live), 100) == pytest.approx(expected)


def test_smoothing_moves_outliers_into_the_weights_and_changes_no_answer(tmp_path):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [random.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=name) for name in ("a", "b")],
        "two layers that read one tensor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, ["rows", 3]) for name in ("a", "b")],
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, ("a", "b"), strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs = random.normal(size=(50, 4)).astype(np.float32) * np.array([1, 100, 1, 0], dtype=np.float32)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": inputs})
    smooth(model, [{"x": torch.from_numpy(inputs)}], set(), 0.5)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for found, expected in zip(session.run(None, {"x": inputs}), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    factors = 1 / constants["x.smooth.factors"]
    heaviest = np.abs(np.concatenate(weights, axis=1)).max(axis=1)
    np.testing.assert_allclose(factors[:3], np.sqrt(np.abs(inputs).max(axis=0) / heaviest)[:3], rtol=1e-5)
    assert factors[3] == 1


class Fail(Exception):
    """As ONNX Runtime's, which is no RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        Fail("[ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx failed:std::bad_alloc"),
        Fail("Status Message: bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9216000"),
    ],
)
def test_too_little_memory_is_one_line(error):
    told = r"^there is too little memory for this; need less, or use a machine with more; the same command goes on"
    with pytest.raises(UserError, match=told), enough_memory("need less"):
        raise error
    with pytest.raises(UserError, match=told), enough_memory("need less"):
        raise ValueError("an exporter's") from error


def test_other_errors_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="another"), enough_memory(""):
        raise RuntimeError("another")
    with pytest.raises(UserError, match=r"^train: out of memory on 8 rows"), enough_memory(""):
        raise UserError("out of memory on 8 rows", where="train") from MemoryError()

"""Products that read the same tensor become one in an export."""

from __future__ import annotations

import onnx
import pytest
import torch

from distillkit.compression import export as exporting
from distillkit.compression.export import OnnxFloat
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.variant import Variant
from tests.unit.test_onnx import QUESTIONS, answer, batch, context, live_model


def products(folder) -> list:
    graph = onnx.load(folder / "model.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]


@pytest.mark.parametrize(("name", "apart", "joined"), [("bert", 6, 4), ("qwen2_tied", 7, 4)])
def test_joined_products_answer_as_those_apart(name, apart, joined, tmp_path, monkeypatch):
    live = live_model(name)
    one = OnnxFloat()(Variant(live), context(live, tmp_path / "one")).model
    monkeypatch.setattr(exporting, "join", lambda graph: None)
    other = OnnxFloat()(Variant(live), context(live, tmp_path / "other")).model
    layers = live.model.config.num_hidden_layers
    assert len(products(other.folder)) - len(products(one.folder)) == layers * (apart - joined)
    assert one.count_parameters() == other.count_parameters()
    for texts in QUESTIONS:
        question = batch(live, texts)
        torch.testing.assert_close(answer(one, question), answer(other, question))


def test_excluding_one_of_joined_modules_keeps_them_all_in_float(tmp_path):
    live = live_model("bert")
    floating = OnnxFloat()(Variant(live), context(live, tmp_path))
    small = OnnxInt8(exclude=["*.self.key"])(floating, context(live, tmp_path)).model
    (first, second) = products(small.folder)
    for node in (first, second):
        (modules,) = [entry.value for entry in node.metadata_props]
        assert [module.rpartition(".")[2] for module in modules.split()] == ["query", "key", "value"]

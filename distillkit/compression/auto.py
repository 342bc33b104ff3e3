"""Quantise as much as a quality budget allows: the layers that cost most stay in float."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import torch

from distillkit.compression.export import onnx_model
from distillkit.compression.int8 import OnnxInt8
from distillkit.compression.onnx_files import GraphFile, modules_of, modules_of_node, read_graphs
from distillkit.compression.variant import Context, Variant
from distillkit.data.batches import by_length
from distillkit.data.encode import Encoded
from distillkit.errors import UserError
from distillkit.models.onnx import OnnxModel
from distillkit.reporting.console import notice
from distillkit.tasks.base import Answers, higher_is_better

GROUP = re.compile(r"^.*?\.\d+(?=\.|$)")  # a layer: "bert.encoder.layer.3" of "bert.encoder.layer.3.output.dense"
BATCH = 32  # rows of an evaluation


class AutoInt8(OnnxInt8):
    """Export to ONNX in int8, with the fewest layers left in float that keep a quality budget.

    First everything is quantised. If that costs too much, each layer (or module outside of layers) is quantised alone,
    and those whose quantisation costs most are left out, one more at a time, until the budget is kept.

    Args:
        max_quality_drop: Of the task's metric, against the float export, on these rows.
        split: Of the rows.
        rows: How many of them, at most.
        embeddings: Quantise the embeddings too.
        activations: As in `OnnxInt8`.
        method: Likewise.
        smooth: Likewise.
    """

    def __init__(
        self,
        max_quality_drop: float,
        split: str = "validation",
        rows: int = 1000,
        embeddings: bool = True,
        activations: Literal["dynamic", "static"] = "dynamic",
        method: str = "minmax",
        smooth: float | None = None,
    ) -> None:
        super().__init__(embeddings, None, activations, method, smooth)
        for key, value, least in (("max_quality_drop", max_quality_drop, 0), ("rows", rows, 1)):
            if value < least:
                raise UserError(f"must be at least {least}, got {value}", where=key)
        self.allowed = max_quality_drop
        self.split = split
        self.rows = rows
        self.left: list[str] = []

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Search."""
        assert context.corpus is not None
        source = onnx_model(variant, context)
        rows = context.corpus.encode(self.split)
        best = source.task.best_metric
        sign = 1 if higher_is_better(best) else -1
        expected = quality(source, rows, self.rows)

        def drop(left: list[str]) -> float:
            self.left = left
            made = self.make(source, context)
            return sign * (expected - quality(made, rows, self.rows))

        lost = drop([])
        groups = groups_of(source)
        order = [] if lost <= self.allowed else self._by_cost(groups, drop)
        left: list[str] = []
        for group in order:
            left.append(group)
            if len(left) == len(groups):
                raise UserError(
                    f"no choice of layers keeps {best} within {self.allowed:g}",
                    where="max_quality_drop",
                    fix="raise it, or distil with compress=qat_int8",
                )
            lost = drop(left)
            notice(f"{len(left)} of {len(groups)} parts in float: {best} {sign * -lost:+.4f}")
            if lost <= self.allowed:
                break
        made = super().__call__(Variant(source), context)
        return Variant(made.model, notes={**made.notes, "in_float": left, "quality_drop": lost})

    def kept(self, graphs: list[GraphFile]) -> set[str]:
        """Return the modules that stay in float."""
        return super().kept(graphs) | {module for module in modules_of(graphs) if _group(module) in self.left}

    def _by_cost(self, groups: list[str], drop: Callable[[list[str]], float]) -> list[str]:
        """Order the groups by what it costs to quantise them and nothing else, the costliest first."""
        cost = {group: drop([other for other in groups if other != group]) for group in groups}
        return sorted(groups, key=lambda group: -cost[group])


def groups_of(model: OnnxModel) -> list[str]:
    """Return what is quantised or left out as a whole: layers, and modules outside of layers."""
    graphs = read_graphs(model.folder)
    constants = {file.name: {tensor.name for tensor in file.model.graph.initializer} for file in graphs}
    weighty = {
        module
        for file in graphs
        for node in file.model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Gather") and set(node.input) & constants[file.name]
        for module in modules_of_node(node)
    }
    return list(dict.fromkeys(_group(name) for name in sorted(weighty)))


def _group(module: str) -> str:
    found = GROUP.match(module)
    return module if found is None else found[0]


@torch.no_grad()
def quality(model: OnnxModel, data: Encoded, most: int) -> float:
    """Return the task's metric on the first rows."""
    task = model.task
    found: Answers = {}
    for indices in by_length(data.lengths[:most], BATCH):
        for column, values in task.answer(model, data.batch(indices)).items():
            found.setdefault(column, []).extend(values)
    return task.metrics(task.merge(found))[task.best_metric]

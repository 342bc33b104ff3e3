"""What the rest of the program asks of a task, and the padding that tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from distillkit.signals import Batch, DenseLogits, Model, Signal
from distillkit.tasks.labels import name_outputs

Row = dict[str, Any]
Answers = dict[str, list[Any]]


class Task(Protocol):
    """One kind of problem: which model, how rows become batches, what counts. Tasks derive from it."""

    name: str
    required_columns: tuple[tuple[str, ...], ...]  # alternatives: the rows must have all columns of one of them
    best_metric: str
    metric_names: tuple[str, ...]
    metric_columns: tuple[str, ...]  # what `metrics` reads of the answers
    has_classes: bool  # the data name the classes that an item may be of
    max_length: int  # tokens of a row
    modality: str = "text"  # or "image": whether a tokenizer or an image processor comes with the models
    random: bool = False  # `collate` draws something anew for each step
    packing: bool = False  # in training, several texts share a row
    prompts: tuple[str, ...] = ()  # columns that a model of the task can write an answer to
    output_names: tuple[str, ...] = ("logits",)  # of the transformers model: what `item_logits` is made of
    output_kind: str = "classes"  # of an item: one of the "classes", each of the "labels" by itself, or "scores"

    @property
    def label_column(self) -> str | None:
        """The column of the hard labels, which losses and metrics may need; None where the texts themselves are."""
        return "label" if self.has_classes else None

    @property
    def adds_head(self) -> bool:
        """Whether a pretrained model gets a new head for the task, and is no model that writes text."""
        return self.has_classes

    @property
    def soft_labels(self) -> bool:
        """Whether each row has one item, whose logits can be recorded with it."""
        return self.has_classes

    def auto_class(self) -> Any:
        """Return the transformers AutoModel class."""
        ...

    def prepare(self, config: Any, labels: list[str] | None, trained: bool, key: str) -> None:
        """Write into a model's config what data and task decide, before the model is made or loaded.

        Args:
            config: Of transformers; changed in place.
            labels: Class names of the data; None for tasks without classes, or to take those of the model.
            trained: Whether the model was trained for the task, so that its config must fit already.
            key: Config key for messages.

        Raises:
            UserError: If the model was trained for something else.
        """
        if self.has_classes and labels is not None:
            name_outputs(config, labels, trained, key)

    def adapt(self, tokenizer: Any) -> None:  # noqa: ARG002
        """Change a model's tokenizer in place to what the task needs, such as a chat template; it is saved so."""
        return

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any, label_ids: dict[str, int] | None) -> dict[str, list]:
        """Turn rows (column → values) into encoded rows (column → values); one row may give several or none.

        Called with a batch of rows, in any process, and cached on disk: the result depends on nothing but the
        arguments and `vars(self)`, so what is random (masking) belongs to `collate`. Values are numbers, text, bytes,
        lists or dicts of them, or None; a column has one kind of value.

        The rows were checked: of the first alternative in `required_columns` that the split has (list longer ones
        first), every column is there, of the kind that `distillkit/data/columns.py` declares, and not empty. `label`,
        `labels` and `tags` hold names that `label_ids` knows, or None where they are missing. Other columns may hold
        None, and are absent (`rows.get(name)`) where the dataset has none.

        Four names are reserved:

        - `row`: int for each encoded row: which of `rows` (its index in this batch) it was made of. Needed unless
          every row gives exactly one encoded row. `collate` sees it as the row's index in the whole split.
        - `truncated`: bool for each encoded row: something of it was cut off and is lost. Counted and removed; the
          share of such rows is reported.
        - `length`: int for each encoded row: its size in tokens, for batches of similar length; without it, that of
          `input_ids`. Removed.
        - `bad`: a list, of any length, of (index in `rows`, reason): rows that cannot be used, such as
          `(3, "the answer is not in its context")`. The caller names file and line, and refuses or skips them as
          `dataset.on_bad_row` says; what they gave is dropped. Removed.

        A row that gives nothing and is not bad is reported as left out, never refused.
        """
        ...

    def collate(self, rows: list[Row], tokenizer: Any) -> Batch:
        """Pad encoded rows into one batch.

        Each row also has `draw`, whole numbers that seed whatever is random about it: of the run's seed, the step and
        the row in training, of the row alone in an evaluation. So it stays the same for any micro-batch and number of
        processes, and after a resume.
        """
        ...

    def signal(self, model: Any, batch: Batch) -> Signal:
        """Run a transformers model over a batch."""
        ...

    def item_logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> DenseLogits:
        """Pick the items' logits from the outputs of a model that ran as a whole, such as an exported one."""
        return DenseLogits(outputs["logits"][batch.counted])

    def decide(self, logits: Tensor, labels: list[str]) -> list[Any]:
        """Turn logits `[rows, outputs]` into hard labels, as the label column holds them."""
        return [labels[index] for index in logits.argmax(dim=-1).tolist()]

    def quick(self) -> Task:
        """Return the task as it is evaluated while training: without what takes long."""
        return self

    def answer(self, model: Model, batch: Batch) -> Answers:
        """Let a model answer a batch: columns with one entry for each row.

        "prediction" is what two models agree on or not: a number, a text, or a list of numbers for each row.
        """
        ...

    def merge(self, answers: Answers) -> Answers:
        """Put the answers of all rows of a split together where several rows are one example."""
        return answers

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Judge answers of any rows (all of them, or a resample): metric → value. Reads `metric_columns` only."""
        ...


LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte", "mse", "mae"})


def higher_is_better(metric: str) -> bool:
    """Tell in which direction a metric improves."""
    return metric not in LOWER_IS_BETTER


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Pad lists of integers on the right to the longest: int64 `[batch, length]`."""
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.int64)


def attention_mask(rows: list[list[int]]) -> Tensor:
    """Mark the positions that hold tokens: int64 `[batch, length]`."""
    return pad([[1] * len(row) for row in rows], 0)

"""Class names in a transformers config."""

from __future__ import annotations

from typing import Any

from distillkit.errors import UserError


def name_outputs(config: Any, labels: list[str], trained: bool, key: str) -> None:
    """Write the class names of the data into a model's config.

    Args:
        config: Of transformers; changed in place.
        labels: In the order of their ids.
        trained: Whether the model has a trained head, whose classes must be these.
        key: Config key for messages.

    Raises:
        UserError: If the trained head has other classes.
    """
    own = [config.id2label[index] for index in range(config.num_labels)]
    named = own != [f"LABEL_{index}" for index in range(len(own))]
    if trained and (len(own) != len(labels) or (named and own != labels)):
        order = "in another order" if sorted(own) == sorted(labels) else "than the data"
        raise UserError(
            f"the model has other classes {order}: {', '.join(own[:8])}; the data has {', '.join(labels[:8])}",
            where=key,
            fix=f"set dataset.labels=[{','.join(own[:8])}{',…' if len(own) > 8 else ''}] if they mean the same",
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}


def set_problem(config: Any, problem: str, trained: bool, key: str) -> None:
    """Write how the outputs are read: single_label_classification, multi_label_classification or regression.

    Raises:
        UserError: If the model was trained for another kind of problem.
    """
    own = getattr(config, "problem_type", None)
    if trained and own not in (None, problem):
        raise UserError(f"the model was trained for {own}, not {problem}", where=key)
    config.problem_type = problem

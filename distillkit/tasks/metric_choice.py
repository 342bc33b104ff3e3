"""Choose among the metrics that a task knows."""

from __future__ import annotations

from collections.abc import Collection

from distillkit.errors import UserError, did_you_mean

LOSS = "loss"  # is always reported


def chosen_metrics(metrics: list[str] | None, usual: tuple[str, ...], known: Collection[str]) -> tuple[str, ...]:
    """Check a choice of metrics, and add the loss.

    Args:
        metrics: Names, the one that chooses the best weights first; None for the `usual` ones.
        usual: Likewise.
        known: Those that the task can compute.
    """
    names = usual if metrics is None else tuple(metrics)
    for name in names:
        if name not in known and name != LOSS:
            raise UserError(f"unknown metric '{name}'", where="task.metrics", fix=did_you_mean(name, [*known, LOSS]))
    if not names or len(set(names)) < len(names):
        raise UserError(f"must be different metrics, got {list(names)}", where="task.metrics")
    return names if LOSS in names else (*names, LOSS)

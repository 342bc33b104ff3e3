"""Metrics of tagged words, by seqeval: entities found whole and of the right type, and single tags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seqeval.metrics.sequence_labeling import get_entities

OUTSIDE = "O"
PREFIXES = ("B-", "I-", "E-", "S-")  # of tags that make entities
TAGGING = ("f1", "precision", "recall", "accuracy")


def not_entities(tags: Iterable[str]) -> list[str]:
    """Return the tags that are no part of an entity in the BIO or BIOES scheme."""
    return [tag for tag in tags if tag != OUTSIDE and not tag.startswith(PREFIXES)]


def entity_counts(tags: list[str], predictions: list[str]) -> tuple[int, int, int]:
    """Count a row's entities: (those that were found, those predicted, those there)."""
    true, predicted = set(get_entities(tags)), set(get_entities(predictions))
    return len(true & predicted), len(predicted), len(true)


def tagging_metrics(
    entities: Sequence[tuple[int, int, int]], hits: Sequence[int], words: Sequence[int], names: Sequence[str] = TAGGING
) -> dict[str, float]:
    """Return metrics by name: F1, precision and recall over all entities alike, and the share of right tags.

    Args:
        entities: `entity_counts` of each row; no entity goes beyond its row, so they add up.
        hits: Words of each row with the right tag.
        words: Words of each row.
        names: Of `TAGGING`.
    """
    found, predicted, true = (sum(row[part] for row in entities) for part in range(3))
    values = {
        "f1": 2 * found / max(predicted + true, 1),
        "precision": found / max(predicted, 1),
        "recall": found / max(true, 1),
        "accuracy": sum(hits) / max(sum(words), 1),
    }
    return {name: values[name] for name in names}

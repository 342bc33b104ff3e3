"""Which layer of the student learns from which layer of the teacher."""

from __future__ import annotations

from distillkit.errors import UserError, did_you_mean

MAPS = ("uniform", "last", "first", "skip")


def check_layers(layers: str | list[list[int]], *others: str) -> None:
    """Refuse what is no layer map for any depths, nor one of the other names that a loss knows."""
    if isinstance(layers, str):
        if layers not in (*MAPS, *others):
            fix = f"{did_you_mean(layers, [*MAPS, *others])} (or pairs [[student's, teacher's], …])"
            raise UserError(f"unknown layer map '{layers}'", where="layers", fix=fix)
    elif not layers or any(len(pair) != 2 for pair in layers):
        raise UserError(f"must be pairs [[student's layer, teacher's layer], …], got {layers}", where="layers")


def layer_pairs(layers: str | list[list[int]], student: int, teacher: int) -> list[tuple[int, int]]:
    """Return pairs (student's layer, teacher's layer), counted from 0.

    Args:
        layers: How to map.
            uniform: layers at the same relative depth, the last with the last: student's i of S (from 1) and
                teacher's i · T/S, as TinyBERT (Jiao et al. 2020); a deeper student is thinned out likewise.
            skip: uniform without the last pair, as PKD-Skip (Sun et al. 2019).
            last, first: as many of the last (first) layers as the shallower model has.
            pairs: [[student's, teacher's], …] from 0; negative ones count from the end.
        student: The student's depth S.
        teacher: The teacher's depth T.

    Raises:
        UserError: If a layer is not there, or nothing is mapped.
    """
    check_layers(layers)
    if not isinstance(layers, str):
        return [(_layer(ours, student, "student"), _layer(theirs, teacher, "teacher")) for ours, theirs in layers]
    count = min(student, teacher)
    if layers == "first":
        return [(index, index) for index in range(count)]
    if layers == "last":
        return [(student - count + index, teacher - count + index) for index in range(count)]
    pairs = [(_spread(index, count, student), _spread(index, count, teacher)) for index in range(1, count + 1)]
    pairs = pairs[:-1] if layers == "skip" else pairs
    if not pairs:
        raise UserError("'skip' leaves the last layer out, and there is no other", where="layers", fix="use uniform")
    return pairs


def _spread(index: int, count: int, depth: int) -> int:
    """Return the layer (from 0) at index/count of the depth, rounded to the nearest, halves up."""
    return (2 * index * depth + count) // (2 * count) - 1


def _layer(layer: int, depth: int, model: str) -> int:
    if not -depth <= layer < depth:
        raise UserError(f"the {model} has no layer {layer}", where="layers", fix=f"its layers are 0 … {depth - 1}")
    return layer % depth

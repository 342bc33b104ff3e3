"""Losses on attention and relations, written out in float64."""

from __future__ import annotations

from math import exp, fsum, log, sqrt

import numpy as np


def heads_of(value, own, split):
    """[heads or fewer, length, d] → a list of [length, d] of the compared heads."""
    repeated = [value[head // (own // len(value))] for head in range(own)]
    if not isinstance(split, int):
        return repeated
    joint = np.concatenate(repeated, axis=1)
    width = joint.shape[1] // split
    return [joint[:, head * width : (head + 1) * width] for head in range(split)]


def maps(row, layer, parts, own, split):
    """A list of score rows: [heads][query][key]."""
    left, right = (heads_of(row[f"layers.{layer}.{part}"], own, split) for part in parts)
    return [
        [[sum(x * y for x, y in zip(q, k, strict=True)) / sqrt(len(q)) for k in b] for q in a]
        for a, b in zip(left, right, strict=True)
    ]


def softmax(scores, temperature):
    powers = [exp(score / temperature) for score in scores]
    return [power / fsum(powers) for power in powers]


def average(rows):
    return [fsum(values) / len(values) for values in zip(*rows, strict=True)]


def kl_of(split=None, temperature=1.0):
    def between(student, teacher):
        """Lists of the scores of all heads."""
        q, p = ([softmax(scores, temperature) for scores in rows] for rows in (student, teacher))
        if split == "mean":
            q, p = [average(q)], [average(p)]
        values = [fsum(x * log(x / y) for x, y in zip(a, b, strict=True)) for a, b in zip(p, q, strict=True)]
        return temperature**2 * fsum(values) / len(values)

    return between


def mse_of(split=None):
    def between(student, teacher):
        if split == "mean":
            student, teacher = [average(student)], [average(teacher)]
        pairs = [(x, y) for a, b in zip(student, teacher, strict=True) for x, y in zip(a, b, strict=True)]
        return fsum((x - y) ** 2 for x, y in pairs) / len(pairs)

    return between


def over_queries(between, pairs, split=None, relations=(("query", "key"),), causal=False, own=(2, 2)):
    """Σ over rows, queries and relations of the mean over pairs of layers."""

    def formula(student, teacher, loss):
        total = 0.0
        for ours, theirs in zip(student, teacher, strict=True):
            for i, j in pairs:
                for parts in relations:
                    s, t = maps(ours, i, parts, own[0], split), maps(theirs, j, parts, own[1], split)
                    for query in range(len(s[0])):
                        seen = slice(query + 1) if causal else slice(None)
                        total += between([m[query][seen] for m in s], [m[query][seen] for m in t]) / len(pairs)
        return total

    return formula
